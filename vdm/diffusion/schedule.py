"""The noise schedule γ(t) = −log SNR(t), increasing from γ(0) to γ(1) (VDM sec. 3.2).

A schedule is a Flax module: `schedule.apply(params, t)` maps times [...] to γ [...], one for all values
of a picture; but for `Multivariate`, whose values have a γ each.
t = 0 is data, t = 1 is noise. A new schedule is one class and one line in SCHEDULES.

In continuous time only the end points of one γ change the ELBO, and what lies between them the variance
of its estimate. So a schedule whose `min_variance` is true has its interior trained for that variance,
and its parameters named "ends" for the ELBO (VDM app. I.2; see variance.py).
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


class Sigmoid(nn.Module):
    """α² falls as a sigmoid does between −3 and 3, from 1 to 0 (Jabri et al. 2022), s linear in t
    between its values at the two end points."""

    gamma_min: float
    gamma_max: float
    steep: float = 3.0

    def __call__(self, t):
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


class Polynomial(nn.Module):
    """α = 1 − s² (Hoogeboom et al. 2022), s linear in t between its values at the two end points."""

    gamma_min: float
    gamma_max: float

    def __call__(self, t):
        def time_of(gamma):
            alpha2 = 1.0 / (1.0 + math.exp(gamma))
            return math.sqrt(1.0 / (1.0 + math.exp(-gamma)) / (1.0 + math.sqrt(alpha2)))

        low, high = time_of(self.gamma_min), time_of(self.gamma_max)
        square = jnp.square(low + (high - low) * t)
        return jnp.log(square) + jnp.log(2.0 - square) - 2.0 * jnp.log1p(-square)


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
    """The monotone network of VDM app. H, its interior learned between given end points, by the
    ELBO or for least variance.

    With weights kept positive, f(t) = l1(t) + l3(sigmoid(l2(l1(t)))) increases, and
    γ(t) = γ_0 + (γ_1 − γ_0) (f(t) − f(0)) / (f(1) − f(0)) has end points that do not
    depend on f: learning the interior cannot move them. `learn_ends` learns them too.
    """

    gamma_min: float
    gamma_max: float
    learn_ends: bool = False
    min_variance: bool = False
    hidden: int = 1024

    @nn.compact
    def __call__(self, t):
        ends = _ends(self)
        # Sigmoids as narrow as a fifth of the road, spread over all of it, or it bends too slowly.
        layers = (Positive(1, 1.0), Positive(self.hidden, 10.0), Positive(1, 10.0 / self.hidden))

        def f(t):
            first = layers[0](t[..., None])
            return (first + layers[2](jax.nn.sigmoid(layers[1](first))))[..., 0]

        # All in one product, so that γ(0) and γ(1) are the end points to the last digit.
        t = jnp.asarray(t)
        values = f(jnp.append(t, jnp.array([0.0, 1.0])))
        f_t, f_0, f_1 = values[:-2].reshape(t.shape), values[-2], values[-1]
        return ends((f_t - f_0) / (f_1 - f_0))


class Piecewise(nn.Module):
    """Straight lines over `parts` equal parts of [0, 1], whose shares of the road from γ(0) to γ(1)
    are learned, for least variance."""

    gamma_min: float
    gamma_max: float
    learn_ends: bool = False
    parts: int = 20
    min_variance = True

    @nn.compact
    def __call__(self, t):
        ends = _ends(self)
        share = jax.nn.softmax(self.param("share", nn.initializers.zeros, (self.parts,)))
        at = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])
        at /= at[-1]  # 1 exactly, so that γ(1) stays where it is
        part = jnp.clip(jnp.floor(t * self.parts), 0, self.parts - 1).astype(jnp.int32)
        return ends(at[part] + (at[part + 1] - at[part]) * (t * self.parts - part))


class Multivariate(nn.Module):
    """A schedule for each value of a picture (MuLAN: Sahoo et al. 2024, sec. 3.2).

    γ_i(t) = γ_0 + (γ_1 − γ_0) f_i(t)/f_i(1), with f_i(t) = ∫_0^t (a τ² + b τ + d)² + δ dτ, where a, b
    and d are learned for each value, and shifted by a linear map of `context` where there is
    one. The end points are the same for all. Unlike with one schedule for all values, the ELBO
    depends on the way between them.

    t [batch] and context [batch, k] to γ [batch, *shape].
    """

    gamma_min: float
    gamma_max: float
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, t, context=None):
        start = jnp.array([0.0, 0.0, 1.0])  # a straight line
        bends = [self.param(name, nn.initializers.zeros, self.shape) for name in "abd"]
        if context is not None:
            size = math.prod(self.shape)
            shift = nn.Dense(3 * size, use_bias=False, kernel_init=nn.initializers.zeros, name="shift")
            shift = jnp.moveaxis(shift(context).reshape(-1, 3, *self.shape), 1, 0)
            bends = [bend + more for bend, more in zip(bends, shift)]
        a, b, d = (start[k] + _SLOW * bend for k, bend in enumerate(bends))
        t = t.reshape(*t.shape, *(1,) * len(self.shape))

        def f(t):
            square = a * a / 5 * t**5 + a * b / 2 * t**4 + (b * b + 2 * a * d) / 3 * t**3
            return square + b * d * t**2 + (d * d + _FLOOR) * t

        return self.gamma_min + (self.gamma_max - self.gamma_min) * f(t) / f(jnp.ones_like(t))


_FLOOR = 1e-3  # δ: γ_i increases also where the square is zero
_SLOW = 0.1  # Adam moves all parameters alike, and one value's gradient is mostly noise: γ_i would wander


class Positive(nn.Module):
    """A dense layer whose weights are positive, so that its output increases in its input."""

    features: int
    scale: float

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.normal(1.0), (self.features,))
        return self.scale * (x @ jax.nn.softplus(kernel) + bias)


# Name → (config.model.schedule, the shape of a picture) → schedule.
SCHEDULES = {
    "fixed_linear": lambda c, shape: FixedLinear(c.gamma_min, c.gamma_max),
    "cosine": lambda c, shape: Cosine(c.gamma_min, c.gamma_max),
    "linear_beta": lambda c, shape: LinearBeta(c.gamma_min, c.gamma_max),
    "sigmoid": lambda c, shape: Sigmoid(c.gamma_min, c.gamma_max),
    "polynomial": lambda c, shape: Polynomial(c.gamma_min, c.gamma_max),
    "learned_linear": lambda c, shape: LearnedLinear(c.gamma_min, c.gamma_max),
    "learned_net": lambda c, shape: LearnedNet(c.gamma_min, c.gamma_max, c.learn_ends),
    "min_variance": lambda c, shape: LearnedNet(c.gamma_min, c.gamma_max, c.learn_ends, True),
    "piecewise": lambda c, shape: Piecewise(c.gamma_min, c.gamma_max, c.learn_ends),
    "multivariate": lambda c, shape: Multivariate(c.gamma_min, c.gamma_max, shape),
}


def with_slope(gamma, t):
    """γ(t) and its exact derivative γ'(t) by forward differentiation: two arrays of one shape."""
    return jax.jvp(gamma, (t,), (jnp.ones_like(t),))


def _ends(module):
    """The line between the end points of `module`, learned where it says so."""
    if module.learn_ends:
        return LearnedLinear(module.gamma_min, module.gamma_max, name="ends")
    return FixedLinear(module.gamma_min, module.gamma_max)


def _constant(value):
    return lambda key: jnp.asarray(value, jnp.float32)
