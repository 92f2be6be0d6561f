"""Diagonal Gaussians N(mean, e^log_variance I) of latents. Pure functions of arrays."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


class Gaussian(NamedTuple):
    """N(mean, e^log_variance) of each value; both [batch, …], or broadcastable to that."""

    mean: jax.Array
    log_variance: jax.Array


# N(0, I), of any shape; a NumPy array, as importing a module must not start JAX.
STANDARD = Gaussian(*np.zeros((2,), np.float32))  # type: ignore[arg-type]


def noise(keys: Array, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """ε ~ N(0, I) from a key for each example, independent of all other draws, unlike the draws of
    randomness.QuasiRng.normal in different passes."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def draw(q: Gaussian, eps: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
    """z = μ + σ ε (lecture, at (16))."""
    return q.mean + jnp.exp(0.5 * q.log_variance) * eps


def log_prob(p: Gaussian, z: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """log p(z), nats."""
    square = jnp.square(z - p.mean) * jnp.exp(-p.log_variance)
    return -0.5 * total(square + p.log_variance + math.log(2.0 * math.pi))


def kl(q: Gaussian, p: Gaussian) -> Float[Array, "batch"]:
    """KL(q ‖ p) in closed form, nats.

    ½ Σ ((μ_q − μ_p)²/σ_p² + r − 1 − log r), with r = σ_q²/σ_p².
    """
    log_ratio = q.log_variance - p.log_variance
    square = jnp.square(q.mean - p.mean) * jnp.exp(-p.log_variance)
    return 0.5 * total(square + jnp.expm1(log_ratio) - log_ratio)


def total(values: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """The sum over all values of each example."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
