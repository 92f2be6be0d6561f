"""What a noise schedule is: γ(t) = −log SNR(t), increasing from γ(0) to γ(1) (VDM sec. 3.2)."""

from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm.component import Component, accept
from vdm.parameters import Role, by_path


class Schedule(nn.Module, Component):
    """A Flax module that maps times t to γ(t); t = 0 is data, t = 1 is noise.

    In continuous time only the end points of one γ for all values change the ELBO. What lies between them,
    the interior, changes the variance of its estimate (VDM sec. 5.1, app. I.2).

    Attributes:
      shape: height, width and channels of a picture.
      gamma_min: γ(0), or where it starts; the γ that the network sees as 0.
      gamma_max: γ(1), or where it starts; the γ that the network sees as 1.
      per_value: whether each value of a picture has a γ of its own, so that γ is [..., *shape].
    """

    shape: tuple[int, int, int]
    gamma_min: float = -13.3
    gamma_max: float = 5.0

    per_value: ClassVar[bool] = False

    @property
    def learned_ends(self) -> bool:
        """Whether γ(0) and γ(1) are learned."""
        return False

    @property
    def learned_interior(self) -> bool:
        """Whether something between the end points is learned that changes no mean of the ELBO."""
        return False

    @property
    def context_size(self) -> int:
        """Size of the learned context of each picture that it takes as a second argument; 0 for none."""
        return 0

    def check(self) -> None:
        accept(
            "gamma_min",
            self.gamma_min < self.gamma_max,
            f"less than gamma_max, which is {self.gamma_max}, as γ = −log SNR grows from data to noise",
        )

    def is_interior(self, names: list[str]) -> bool:
        """Whether a parameter bends γ between its end points, by the names on the way to it."""
        return False

    def roles(self, params: PyTree) -> PyTree[Role]:
        """A level of noise is not decayed: zero is no simpler a level than another."""
        return by_path(params, lambda names, _: Role(decayed=False, interior=self.is_interior(names)))


def with_slope(gamma, t: Float[Array, "batch"]) -> tuple[Array, Array]:
    """γ(t) and its exact derivative γ'(t) by forward differentiation."""
    return jax.jvp(gamma, (t,), (jnp.ones_like(t),))
