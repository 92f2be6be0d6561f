"""The diffusion term with less weight on the lowest and on the highest levels of noise."""

import dataclasses

import jax
from jaxtyping import Array, Float

from vdm.component import accept
from vdm.methods.weighted import OfNoise


@dataclasses.dataclass(frozen=True)
class Band(OfNoise):
    """The diffusion term times w(γ); the other terms are unchanged.

      w = sigmoid(γ − low) (1 − (1 − share) sigmoid(γ − high))

    For a network that could represent every denoiser, any w > 0 has the same optimum. For a small network
    and a short run, w decides how noisy the gradient is. Below `low`, where the noise of an image of 256
    levels is under half a level, the gradient is noisiest, and slightly noisier images teach the network the
    same. Above `high` lie few of an image's bits.

    Attributes:
      low: γ at which the weight is about ½, and below which it falls to 0.
      high: γ above which the weight falls to `share`.
      share: weight far above `high`, at most 1.
    """

    low: float = -11.0
    high: float = -6.0
    share: float = 0.3

    def check(self) -> None:
        accept("high", self.low <= self.high, f"at least low, {self.low}")
        accept("share", 0 <= self.share <= 1, "0 to 1")

    def weight(self, gamma: Float[Array, "*any"]) -> Float[Array, "*any"]:
        above = jax.nn.sigmoid(gamma - self.high)
        return jax.nn.sigmoid(gamma - self.low) * (1.0 - (1.0 - self.share) * above)
