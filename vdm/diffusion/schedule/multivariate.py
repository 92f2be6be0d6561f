"""A noise schedule for each value of a picture (MuLAN: Sahoo et al. 2024)."""

import math
from typing import ClassVar

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.component import accept
from vdm.diffusion.schedule.base import Schedule


class Multivariate(Schedule):
    """A schedule for each value of a picture (MuLAN: Sahoo et al. 2024, sec. 3.2).

    γ_i(t) = γ_0 + (γ_1 − γ_0) f_i(t)/f_i(1), with f_i(t) = ∫_0^t (a τ² + b τ + d)² + δ dτ, where a, b
    and d are learned for each value, and shifted by a linear map of the context where there is
    one. The end points are the same for all. Unlike with one schedule for all values, the ELBO
    depends on the way between them.

    Attributes:
      context: size of a learned context of each picture; 0 for none.
    """

    context: int = 0

    per_value: ClassVar[bool] = True

    @property
    def context_size(self) -> int:
        return self.context

    def check(self) -> None:
        super().check()
        accept("context", self.context >= 0, "0 (none) or more")

    def is_interior(self, names: list[str]) -> bool:
        return True  # the end points are fixed

    @nn.compact
    def __call__(
        self, t: Float[Array, "*times"], context: Float[Array, "*times size"] | None = None
    ) -> Float[Array, "*times height width channels"]:
        start = jnp.array([0.0, 0.0, 1.0])  # a straight line
        bends = [self.param(name, nn.initializers.zeros, self.shape) for name in "abd"]
        if context is not None:
            size = math.prod(self.shape)
            shift = nn.Dense(3 * size, use_bias=False, kernel_init=nn.initializers.zeros, name="shift")
            times = context.shape[:-1]
            shift = jnp.moveaxis(shift(context).reshape(*times, 3, *self.shape), len(times), 0)
            bends = [bend + more for bend, more in zip(bends, shift)]
        a, b, d = (start[k] + _SLOW * bend for k, bend in enumerate(bends))
        t = t.reshape(*t.shape, *(1,) * len(self.shape))

        def f(t):
            square = a * a / 5 * t**5 + a * b / 2 * t**4 + (b * b + 2 * a * d) / 3 * t**3
            return square + b * d * t**2 + (d * d + _FLOOR) * t

        return self.gamma_min + (self.gamma_max - self.gamma_min) * f(t) / f(jnp.ones_like(t))


_FLOOR = 1e-3  # δ: γ_i increases also where the square is zero
_SLOW = 0.1  # Adam moves all parameters alike, and one value's gradient is mostly noise: γ_i would wander
