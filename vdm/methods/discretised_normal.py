"""A normal distribution that is restricted to the levels, and its mean."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from vdm.diffusion import process

NEAREST = 4  # levels on either side that are summed over
OUTSIDE = 4.0  # standard deviations that a mean lies outside the ends at most


def restricted_mean(
    mean: Float[Array, "*any"], variance: Float[Array, "*any"], vocab_size: int
) -> Float[Array, "*any"]:
    """Σ_v x_v N(x_v; mean, variance) / Σ_v N(x_v; mean, variance) over the levels x_v.

    Where the standard deviation σ is at most the distance of two levels, nine levels around the mean are all
    that count. Where it is larger, the sum over levels is an integral from −1 to 1, in closed form: exact to
    float32 away from the ends; at them to 1/20 of that distance, to 1/3 where the mean is up to 4 σ beyond.
    A mean that is further out counts as 4 σ beyond, by which gradients stay finite.
    """
    deviation, apart = jnp.sqrt(variance), 2.0 / vocab_size
    return jnp.where(
        deviation > apart,
        _between_ends(mean, deviation),
        _of_nearest(mean, jnp.minimum(variance, apart**2), vocab_size),
    )


def _between_ends(mean, deviation):
    mean = jnp.clip(mean, -1.0 - OUTSIDE * deviation, 1.0 + OUTSIDE * deviation)
    sign = jnp.where(mean < 0.0, -1.0, 1.0)  # by the nearer end, as ndtr is exact where it is small
    low, high = ((end - sign * mean) / deviation for end in (-1.0, 1.0))
    density = lambda u: jnp.exp(-0.5 * jnp.square(u)) / math.sqrt(2.0 * math.pi)
    return mean + sign * deviation * (density(low) - density(high)) / (ndtr(high) - ndtr(low))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _of_nearest(mean, variance, vocab_size):
    return _moments(mean, variance, vocab_size)[0]


@_of_nearest.defjvp
def _derivative(vocab_size, at, moves):
    """∂E[x]/∂m = Var[x]/σ² and ∂E[x]/∂σ² = Cov[x, (x − m)²]/(2 σ⁴). Autodiff would keep each of the levels'
    weights in memory, where these are moments of the same sum."""
    mean, variance = at
    value, by_mean, by_variance = _moments(mean, variance, vocab_size)
    return value, by_mean * moves[0] + by_variance * moves[1]


def _moments(mean, variance, vocab_size):
    """E[x] over the nearest levels, and its derivatives by mean and variance."""
    apart = 2.0 / vocab_size
    nearest = process.unscale(mean, vocab_size)
    x = process.scale(nearest, vocab_size)
    ratio, offset = jnp.square(apart) / variance, (x - mean) / apart
    total, first, second, third = 1.0, 0.0, 0.0, 0.0  # of k, the level counted from the nearest
    for k in (k for k in range(-NEAREST, NEAREST + 1) if k):
        exists = (nearest + k >= 0) & (nearest + k < vocab_size)
        # Relative to the nearest level, whose exponent is the largest.
        weight = jnp.exp(jnp.where(exists, -0.5 * ratio * (k * k + 2.0 * k * offset), -jnp.inf))
        total, first = total + weight, first + k * weight
        second, third = second + k**2 * weight, third + k**3 * weight
    first, second, third = first / total, second / total, third / total
    spread = second - jnp.square(first)
    skewed = third - first * second + 2.0 * offset * spread
    return x + apart * first, ratio * spread, 0.5 * ratio / variance * apart * skewed
