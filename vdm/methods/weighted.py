"""The diffusion term weighted by the level of noise (Kingma & Gao 2023)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.component import accept, choose
from vdm.contract import Ability
from vdm.diffusion.schedule import LinearBeta, time_of
from vdm.objective import Objective

WEIGHTINGS = ("sigmoid", "edm_monotone", "flow_matching", "soft_truncation")


@dataclasses.dataclass(frozen=True)
class OfNoise(Objective):
    """The diffusion term times a weight w(γ); the other terms are those of the ELBO."""

    # A weighted loss would move learned end points to where the weight is small.
    needs: ClassVar[frozenset[Ability]] = frozenset(
        {Ability.TIME, Ability.ONE_GAMMA, Ability.FIXED_ENDS, Ability.DENOISER}
    )

    def __call__(self, params, draw):
        return draw.terms | {"diffusion": self.weight(draw.denoising.gamma) * draw.terms["diffusion"]}

    def weight(self, gamma: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """w at γ."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Weighted(OfNoise):
    """The diffusion term times w(λ), where λ = −γ is the log SNR; the other terms are unchanged.

    As w does not decrease in t, the loss is, up to a constant, the mean of the ELBOs of noisy images over a
    distribution of noise levels (Kingma & Gao 2023, sec. 3). The constant is the prior term, whose weight
    would be w(γ_1). The images themselves must therefore be diffused, with fixed end points.

      sigmoid        w = sigmoid(shift − λ)
      edm_monotone   w ∝ N(λ; 2.4, 2.4²) (e^−λ + 0.5²), at most 1 (Karras et al. 2022), and 1 for all λ below
                     the maximum
      flow_matching  w = e^{−λ/2}
      soft_truncation  w = P(τ ≤ time of σ²), where the density of τ is proportional to 1/τ between 1e-5 and
                     1: the mean over τ of the ELBO from time τ on (Soft Truncation: Kim et al. 2022, theorem
                     1, who draw one τ for each batch). In the times of their process,
                     −log(1 − σ²) = 0.1 τ + ½ (20 − 0.1) τ²

    Attributes:
      weighting: the name of w: sigmoid, edm_monotone, flow_matching or soft_truncation.
      shift: the shift of the weighting sigmoid.
    """

    weighting: str = "sigmoid"
    shift: float = 2.0

    def check(self) -> None:
        choose("weighting", self.weighting, WEIGHTINGS)
        accept("shift", math.isfinite(self.shift), "a number")

    def weight(self, gamma: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """w at γ = −λ."""
        if self.weighting == "sigmoid":
            return jax.nn.sigmoid(self.shift + gamma)
        if self.weighting == "flow_matching":
            return jnp.exp(0.5 * gamma)
        if self.weighting == "soft_truncation":
            time = time_of(jax.nn.softplus(gamma), LinearBeta.slow, LinearBeta.fast)
            return jnp.clip(1.0 - jnp.log(time) / math.log(_SMALLEST), 0.0, 1.0)
        return _edm(-jnp.minimum(gamma, -_edm_peak())) / _edm(_edm_peak())


_SMALLEST = 1e-5
_EDM_MEAN, _EDM_SD, _EDM_DATA = 2.4, 2.4, 0.5


def _edm(log_snr):
    """EDM's weighting, up to a constant."""
    normal = jnp.exp(-0.5 * jnp.square((log_snr - _EDM_MEAN) / _EDM_SD))
    return normal * (jnp.exp(-log_snr) + _EDM_DATA**2)


def _edm_peak():
    """The log SNR where _edm is largest: the root of its logarithm's derivative, by Newton's method."""
    log_snr = 0.0
    for _ in range(20):
        share = math.exp(-log_snr) / (math.exp(-log_snr) + _EDM_DATA**2)
        slope = (_EDM_MEAN - log_snr) / _EDM_SD**2 - share
        log_snr -= slope / (-1.0 / _EDM_SD**2 + share * (1.0 - share))
    return log_snr
