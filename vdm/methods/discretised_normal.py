"""A normal distribution that is restricted to the levels, and its mean."""

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
        _of_nearest(mean, jnp.minimum(deviation, apart), vocab_size),
    )


def _between_ends(mean, deviation):
    mean = jnp.clip(mean, -1.0 - OUTSIDE * deviation, 1.0 + OUTSIDE * deviation)
    sign = jnp.where(mean < 0.0, -1.0, 1.0)  # by the nearer end, as ndtr is exact where it is small
    low, high = ((end - sign * mean) / deviation for end in (-1.0, 1.0))
    density = lambda u: jnp.exp(-0.5 * jnp.square(u)) / math.sqrt(2.0 * math.pi)
    return mean + sign * deviation * (density(low) - density(high)) / (ndtr(high) - ndtr(low))


def _of_nearest(mean, deviation, vocab_size):
    nearest = process.unscale(mean, vocab_size)[..., None] + jnp.arange(-NEAREST, NEAREST + 1)
    x = process.scale(nearest, vocab_size)
    logits = -0.5 * jnp.square((x - mean[..., None]) / deviation[..., None])
    exists = (nearest >= 0) & (nearest < vocab_size)
    return jnp.sum(jax.nn.softmax(logits, axis=-1, where=exists) * x, axis=-1)
