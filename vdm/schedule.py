"""The noise schedule γ(t) = −log SNR(t), increasing from γ(0) to γ(1) (VDM sec. 3.2).

A schedule is a Flax module: `schedule.apply(params, t)` maps times [...] to γ [...].
t = 0 is data, t = 1 is noise. A new schedule is one class and one line in SCHEDULES.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp


class FixedLinear(nn.Module):
    """γ(t) = γ_min + (γ_max − γ_min) t: nothing is learned."""

    gamma_min: float
    gamma_max: float

    def __call__(self, t):
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t


class Cosine(nn.Module):
    """γ = 2 log tan(π s/2): α = cos(π s/2) (Nichol & Dhariwal 2021), s linear in t between its
    values at the two end points."""

    gamma_min: float
    gamma_max: float

    def __call__(self, t):
        s = (2.0 / math.pi * math.atan(math.exp(0.5 * g)) for g in (self.gamma_min, self.gamma_max))
        low, high = s
        return 2.0 * jnp.log(jnp.tan(0.5 * math.pi * (low + (high - low) * t)))


class LinearBeta(nn.Module):
    """γ = log expm1(b s + (B − b) s²/2): noise added at a rate that grows from b to B, as in
    DDPM (Ho et al. 2020; Song et al. 2021, app. C), s linear in t between its values at the
    two end points."""

    gamma_min: float
    gamma_max: float
    slow: float = 0.1  # b
    fast: float = 20.0  # B

    def __call__(self, t):
        rise = self.fast - self.slow

        def time_of(gamma):
            added = math.log1p(math.exp(gamma))
            return (math.sqrt(self.slow**2 + 2.0 * rise * added) - self.slow) / rise

        low, high = time_of(self.gamma_min), time_of(self.gamma_max)
        s = low + (high - low) * t
        return jnp.log(jnp.expm1(self.slow * s + 0.5 * rise * s * s))


class LearnedLinear(nn.Module):
    """A straight line whose two end points are learned: γ(t) = b + |w| t (VDM app. H)."""

    gamma_min: float
    gamma_max: float

    @nn.compact
    def __call__(self, t):
        start = self.param("start", _constant(self.gamma_min))
        width = self.param("width", _constant(self.gamma_max - self.gamma_min))
        return start + jnp.abs(width) * t


class LearnedNet(nn.Module):
    """The monotone network of VDM app. H, its interior learned between given end points.

    With weights kept positive, f(t) = l1(t) + l3(sigmoid(l2(l1(t)))) increases, and
    γ(t) = γ_0 + (γ_1 − γ_0) (f(t) − f(0)) / (f(1) − f(0)) has end points that do not
    depend on f: learning the interior cannot move them. `learn_ends` learns them too.
    """

    gamma_min: float
    gamma_max: float
    learn_ends: bool = False
    hidden: int = 1024

    @nn.compact
    def __call__(self, t):
        if self.learn_ends:
            ends = LearnedLinear(self.gamma_min, self.gamma_max, name="ends")
        else:
            ends = FixedLinear(self.gamma_min, self.gamma_max)
        layers = (Positive(1, 1.0), Positive(self.hidden, 1.0), Positive(1, 1.0 / self.hidden))

        def f(t):
            first = layers[0](t[..., None])
            return (first + layers[2](jax.nn.sigmoid(layers[1](first))))[..., 0]

        t = jnp.asarray(t)
        f0, f1 = f(jnp.zeros((), t.dtype)), f(jnp.ones((), t.dtype))
        return ends((f(t) - f0) / (f1 - f0))


class Positive(nn.Module):
    """A dense layer whose weights are positive, so that its output increases in its input."""

    features: int
    scale: float

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.normal(1.0), (self.features,))
        return x @ (self.scale * jax.nn.softplus(kernel)) + bias


SCHEDULES = {
    "fixed_linear": lambda c: FixedLinear(c.gamma_min, c.gamma_max),
    "cosine": lambda c: Cosine(c.gamma_min, c.gamma_max),
    "linear_beta": lambda c: LinearBeta(c.gamma_min, c.gamma_max),
    "learned_linear": lambda c: LearnedLinear(c.gamma_min, c.gamma_max),
    "learned_net": lambda c: LearnedNet(c.gamma_min, c.gamma_max, c.learn_ends),
}


def with_slope(gamma, t):
    """γ(t) and its exact derivative γ'(t) by forward differentiation: two arrays like t."""
    return jax.jvp(gamma, (t,), (jnp.ones_like(t),))


def _constant(value):
    return lambda key: jnp.asarray(value, jnp.float32)
