"""Noise schedules in which nothing is learned: a straight line, and the published ones."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion.schedule.base import Schedule


class FixedLinear(Schedule):
    """γ(t) = γ_min + (γ_max − γ_min) t: nothing is learned."""

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t


class Cosine(Schedule):
    """γ = 2 log tan(π s/2): α = cos(π s/2) (Nichol & Dhariwal 2021), s linear in t between its
    values at the two end points."""

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        s = (2.0 / math.pi * math.atan(math.exp(0.5 * g)) for g in (self.gamma_min, self.gamma_max))
        low, high = s
        return 2.0 * jnp.log(jnp.tan(0.5 * math.pi * (low + (high - low) * t)))


class LinearBeta(Schedule):
    """γ = log expm1(b s + (B − b) s²/2): noise added at a rate that grows from b to B, as in
    DDPM (Ho et al. 2020; Song et al. 2021, app. C), s linear in t between its values at the
    two end points."""

    slow: float = 0.1  # b
    fast: float = 20.0  # B

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        rise = self.fast - self.slow

        def time_of(gamma):
            added = math.log1p(math.exp(gamma))
            return (math.sqrt(self.slow**2 + 2.0 * rise * added) - self.slow) / rise

        low, high = time_of(self.gamma_min), time_of(self.gamma_max)
        s = low + (high - low) * t
        return jnp.log(jnp.expm1(self.slow * s + 0.5 * rise * s * s))


class Sigmoid(Schedule):
    """α² falls as a sigmoid does between −3 and 3, from 1 to 0 (Jabri et al. 2022), s linear in t
    between its values at the two end points."""

    steep: float = 3.0

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        a = self.steep
        whole = math.tanh(0.5 * a)  # sigmoid(a) − sigmoid(−a)

        def time_of(gamma):
            noise = 1.0 / (1.0 + math.exp(-gamma)) * whole + 1.0 / (1.0 + math.exp(a))
            return (math.log(noise) - math.log1p(-noise) + a) / (2.0 * a)

        low, high = time_of(self.gamma_min), time_of(self.gamma_max)
        s = low + (high - low) * t
        # sigmoid(b) − sigmoid(a) = sigmoid(b) sigmoid(−a) (1 − e^{a − b}) loses no digits.
        noise = jax.nn.log_sigmoid(2.0 * a * s - a) + jnp.log(-jnp.expm1(-2.0 * a * s))
        signal = jax.nn.log_sigmoid(a - 2.0 * a * s) + jnp.log(-jnp.expm1(2.0 * a * (s - 1.0)))
        return noise - signal


class Polynomial(Schedule):
    """α = 1 − s² (Hoogeboom et al. 2022), s linear in t between its values at the two end points."""

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        def time_of(gamma):
            alpha2 = 1.0 / (1.0 + math.exp(gamma))
            return math.sqrt(1.0 / (1.0 + math.exp(-gamma)) / (1.0 + math.sqrt(alpha2)))

        low, high = time_of(self.gamma_min), time_of(self.gamma_max)
        square = jnp.square(low + (high - low) * t)
        return jnp.log(square) + jnp.log(2.0 - square) - 2.0 * jnp.log1p(-square)
