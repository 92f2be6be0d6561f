"""What the networks share: embeddings, Fourier features, dropout, attention.

Nothing here knows of diffusion: a network maps pictures z [batch, height, width, channels]
to pictures, given `time` [batch] in about [0, 1], a `condition` [batch, k] or None, and,
when dropout is on, `keys` [batch], one random key for each example.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm import rng

ZEROS = nn.initializers.zeros


def sinusoids(time, width):
    """Sine and cosine of `time` at width/2 frequencies: [batch] to [batch, width]."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - 1))
    angles = 1000.0 * time[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_features(z, frequencies):
    """z with sin and cos of 2π f z appended for each f (VDM app. C.3): more channels.

    f counts cycles per unit of z. At half the number of levels in [−1, 1] one cycle spans
    one level, so these features say where between two levels a value lies.
    """
    angles = [2.0 * jnp.pi * f * z for f in frequencies]
    return jnp.concatenate([z, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1)


class Embedding(nn.Module):
    """`time` and `condition` as one vector: [batch, 4 · width] (VDM app. B)."""

    width: int

    @nn.compact
    def __call__(self, time, condition):
        parts = [sinusoids(time, self.width)]
        if condition is not None:
            parts.append(condition)
        h = nn.silu(nn.Dense(4 * self.width)(jnp.concatenate(parts, axis=-1)))
        return nn.silu(nn.Dense(4 * self.width)(h))


def dropout(h, rate, keys):
    """Zeroes a share `rate` of each example, drawn with its own key; h itself without keys.

    Each value is given 16 random bits, not the 32 of a uniform: half the cost, and a rate
    that is exact to 2^-16.
    """
    if keys is None or rate == 0:
        return h
    size = math.prod(h.shape[1:])
    threshold = round(rate * 2**16)

    def keep(key):
        words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
        return (bits >= threshold).reshape(h.shape[1:])

    return jnp.where(jax.vmap(keep)(keys), h / (1.0 - threshold / 2**16), 0.0)


def layer_keys(keys, layer):
    """Keys for the layer of that number; None stays None."""
    if keys is None:
        return None
    return rng.fold_in(keys, jnp.broadcast_to(layer, keys.shape))


class Attention(nn.Module):
    """Self-attention among the tokens of h [batch, tokens, width]; its last layer starts at 0."""

    heads: int

    @nn.compact
    def __call__(self, h):
        batch, tokens, width = h.shape
        flat = h.reshape(-1, width)
        qkv = nn.Dense(3 * width, name="qkv")(flat).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = (qkv[:, :, i] for i in range(3))
        out = jax.nn.dot_product_attention(q, k, v).reshape(-1, width)
        return nn.Dense(width, kernel_init=ZEROS, name="out")(out).reshape(h.shape)
