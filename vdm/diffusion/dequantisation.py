"""Dequantisation: a random point in the cell of each level, so that a density bounds a probability.

P(x) is the density's integral over the cell α (x ± 1/V), so for any q on the cell
log P(x) ≥ E_q[log p(z) − log q(z)] (Theis et al. 2016).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from vdm.diffusion import process
from vdm.gaussian import STANDARD, log_prob, total

KINDS = ("uniform", "normal")


def start(kind: str, gamma_0: Float[Array, ""], vocab_size: int) -> Float[Array, ""]:
    """The γ of the z that a kind of dequantisation draws. The flow starts at this γ; a different start would
    be a different model. For "normal", and for the latents of a VAE ("latent"), it is γ_0. For "uniform" and
    "variational", whose noise fills the whole cell, it is the γ at which σ² is the variance of uniform noise,
    or γ_0 if that is larger."""
    if kind in ("normal", "latent"):
        return gamma_0
    if kind not in ("uniform", "variational"):
        raise ValueError(f"kind is {kind!r}; accepted: 'normal', 'latent', 'uniform', 'variational'")
    return jnp.maximum(gamma_0, -2.0 * math.log(vocab_size * math.sqrt(3.0)))


def dequantise(
    kind: str,
    keys: Key[Array, "batch"],
    levels: Shaped[Array, "batch *shape"],
    gamma_0: Float[Array, ""],
    vocab_size: int,
) -> tuple[Float[Array, "batch *shape"], Float[Array, ""], Float[Array, "batch"]]:
    """Draws a point z in the cell of each value.

    "uniform": z = α (x + u), with u uniform on the cell, at the γ where α² times the variance of u is σ²; or
      at γ_0, if that γ is below the model's range.
    "normal": z = α x + σ ε at γ_0, with ε normal and truncated at the borders of the cell. The model sees
      such z in training (Zheng et al. 2023, sec. 4).

    Returns:
      z, its γ, and −log q(z) in nats.
    """
    x = process.scale(levels, vocab_size)
    if kind == "uniform":
        gamma = start(kind, gamma_0, vocab_size)
        u = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], minval=-1.0))(keys)
        z = process.alpha(gamma) * (x + u / vocab_size)
        nats = x[0].size * jnp.log(2.0 * process.alpha(gamma) / vocab_size)
        return z, gamma, jnp.broadcast_to(nats, x.shape[:1])
    if kind == "normal":
        border = jnp.exp(-0.5 * gamma_0) / vocab_size  # half the width of the cell, in standard deviations
        eps = jax.vmap(lambda key, border: jax.random.truncated_normal(key, -border, border, x.shape[1:]))(
            keys, jnp.broadcast_to(border, x.shape)
        )
        inside = jnp.log(jax.scipy.special.erf(border / math.sqrt(2.0)))
        nats = jnp.broadcast_to(jnp.log(process.sigma(gamma_0)) + inside, x.shape)
        nats = total(nats) - log_prob(STANDARD, eps)
        return process.diffuse(x, gamma_0, eps), gamma_0, nats
    raise ValueError(f"kind is {kind!r}; accepted: 'uniform', 'normal'")


def normal_entropy(gamma_0: float, vocab_size: int) -> float:
    """The entropy E[−log q(z)] of one value's noise under "normal", in nats.

    For a normal distribution truncated at ±b standard deviations, which contain the probability P, it is
    log(σ P √(2πe)) − b e^{−b²/2}/(P √(2π)).
    """
    b = math.exp(-0.5 * gamma_0) / vocab_size
    inside = math.erf(b / math.sqrt(2.0))
    cut = b * math.exp(-0.5 * b * b) / (inside * math.sqrt(2.0 * math.pi))
    return -0.5 * math.log1p(math.exp(-gamma_0)) + math.log(inside * math.sqrt(2.0 * math.pi * math.e)) - cut
