"""The mean of a normal distribution that is restricted to the levels."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from vdm.diffusion import process

NEAREST = 4  # levels on either side that the sum includes
OUTSIDE = 4.0  # standard deviations; a mean further outside the ends is moved to there


def restricted_mean(
    mean: Float[Array, "*any"], variance: Float[Array, "*any"], vocab_size: int
) -> Float[Array, "*any"]:
    """Σ_v x_v N(x_v; mean, variance) / Σ_v N(x_v; mean, variance) over the levels x_v.

    If the standard deviation σ is at most the distance d of two levels, the sum is over the nine levels
    nearest to the mean. If it is larger, the sum is replaced by an integral from −1 to 1 in closed form. The
    error is that of float32 away from the ends, at most d/20 at the ends, and at most d/3 if the mean is up
    to 4 σ outside. A mean further outside is moved to 4 σ, so that gradients stay finite.
    """
    deviation, apart = jnp.sqrt(variance), 2.0 / vocab_size
    return jnp.where(
        deviation > apart,
        _between_ends(mean, deviation),
        _of_nearest(mean, jnp.minimum(variance, apart**2), vocab_size),
    )


def _between_ends(mean, deviation):
    mean = jnp.clip(mean, -1.0 - OUTSIDE * deviation, 1.0 + OUTSIDE * deviation)
    sign = jnp.where(mean < 0.0, -1.0, 1.0)  # from the nearer end: a small ndtr is exact
    low, high = ((end - sign * mean) / deviation for end in (-1.0, 1.0))
    density = lambda u: jnp.exp(-0.5 * jnp.square(u)) / math.sqrt(2.0 * math.pi)
    return mean + sign * deviation * (density(low) - density(high)) / (ndtr(high) - ndtr(low))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_nearest(mean, variance, vocab_size):
    return _moments(mean, variance, vocab_size)[0]


@_of_nearest.defjvp
def _derivative(vocab_size, at, moves):
    """∂E[x]/∂m = Var[x]/σ² and ∂E[x]/∂σ² = Cov[x, (x − m)²]/(2 σ⁴). These are moments of the same sum;
    automatic differentiation would keep the weights of all levels in memory."""
    mean, variance = at
    value, by_mean, by_variance = _moments(mean, variance, vocab_size)
    return value, by_mean * moves[0] + by_variance * moves[1]


def _moments(mean, variance, vocab_size):
    """E[x] over the nearest levels, and its derivatives with respect to mean and variance."""
    apart = 2.0 / vocab_size
    nearest = process.unscale(mean, vocab_size)
    x = process.scale(nearest, vocab_size)
    ratio, offset = jnp.square(apart) / variance, (x - mean) / apart
    total, first, second, third = 1.0, 0.0, 0.0, 0.0  # sums of powers of k
    for k in (k for k in range(-NEAREST, NEAREST + 1) if k):  # counted from the nearest level
        exists = (nearest + k >= 0) & (nearest + k < vocab_size)
        # Relative to the nearest level, which has the largest weight.
        weight = jnp.exp(jnp.where(exists, -0.5 * ratio * (k * k + 2.0 * k * offset), -jnp.inf))
        total, first = total + weight, first + k * weight
        second, third = second + k**2 * weight, third + k**3 * weight
    first, second, third = first / total, second / total, third / total
    spread = second - jnp.square(first)
    skewed = third - first * second + 2.0 * offset * spread
    return x + apart * first, ratio * spread, 0.5 * ratio / variance * apart * skewed
