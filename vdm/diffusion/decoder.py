"""The decoder p(x|z_0): independent values over `vocab_size` levels (VDM sec. 3.3, eq. 8).

p(x_i = v | z_0) ∝ q(z_0,i | x_i = v) = N(z_0,i; α_0 x_v, σ_0²), with x_v the v-th level.
Dividing by α_0 leaves the logits −½ e^{−γ_0} (z_0/α_0 − x_v)².
"""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from vdm.diffusion import process
from vdm.runtime import devices

BELOW = 20.0  # nats; e^−20 added to 1 in float32 is 1


def logits(
    z_0: Float[Array, "*any"], gamma_0: Float[Array, "*#any"], vocab_size: int
) -> Float[Array, "*any vocab_size"]:
    """Unnormalised log p(x_i = v | z_0), nats."""
    levels = process.scale(jnp.arange(vocab_size), vocab_size)
    distance = (z_0 / process.alpha(gamma_0))[..., None] - levels
    return -0.5 * jnp.exp(-jnp.asarray(gamma_0))[..., None] * jnp.square(distance)


def log_prob(
    levels: Int[Array, "*any"], z_0: Float[Array, "*any"], gamma_0: Float[Array, "*#any"], vocab_size: int
) -> Float[Array, "*any"]:
    """log p(x|z_0) of each value, nats."""
    x = process.scale(levels, vocab_size)
    return log_prob_at(levels, z_0 / process.alpha(gamma_0) - x, gamma_0, vocab_size)


def log_likelihood(
    levels: Shaped[Array, "batch *shape"], gamma_0: Float[Array, "*#any"], vocab_size: int
) -> Callable[[Array], Float[Array, "batch"]]:
    """The function z_0 → log p(x|z_0) of each image, in nats."""
    levels = levels.astype(jnp.int32)

    def of(z_0):
        log_p = log_prob(levels, z_0, gamma_0, vocab_size)
        return jnp.sum(log_p, axis=tuple(range(1, log_p.ndim)))

    return of


def reach(gamma_0: float, vocab_size: int) -> int:
    """The number of levels on either side of the nearest one whose probability matters in float32.

    The logit of the k-th of them is at least ½ e^{−γ_0} (2/V)² (k² − k) below that of the nearest level.
    """
    unit = 0.5 * math.exp(-gamma_0) * (2.0 / vocab_size) ** 2
    return next(k for k in range(vocab_size) if k + 1 == vocab_size or unit * (k**2 + k) > BELOW)


def log_prob_at(
    levels: Int[Array, "*any"],
    offset: Float[Array, "*any"],
    gamma_0: Float[Array, "*#any"],
    vocab_size: int,
    reach: int | None = None,
) -> Float[Array, "*any"]:
    """log p(x|z_0) of each value for z_0/α_0 = x + `offset`, in nats. For z_0 = α_0 x + σ_0 ε_0 the offset is
    e^{γ_0/2} ε_0, which avoids the difference z_0/α_0 − x, as that loses digits in float32.

    The logits are taken relative to that of the true level x. With d = x_v − x = (2/V) (v − level), exact as
    the levels are integers,

      logit_v − logit_x = ½ e^{−γ_0} d (2 offset − d),

    which is 0 for the true level, so that no log-probability exceeds 0. The largest logit is that of the
    level nearest to x + offset. So one scan over the levels, or on accelerators one fused sum, adds all of
    them, forward and backward, without an array of shape [..., vocab_size].

    Args:
      reach: the number of levels on either side of the nearest one to sum, if γ_0 is known; None for all
        levels.
    """
    count = vocab_size if reach is None else min(2 * reach + 1, vocab_size)
    offset, levels, precision = jnp.broadcast_arrays(offset, levels, jnp.exp(-jnp.asarray(gamma_0)))

    def relative(v, offset, precision):
        apart = (2.0 / vocab_size) * (v - levels).astype(jnp.float32)
        return 0.5 * precision * apart * (2.0 * offset - apart)

    nearest = process.unscale(process.scale(levels, vocab_size) + offset, vocab_size)
    largest = jax.lax.stop_gradient(relative(nearest, offset, precision))
    first = jnp.clip(nearest - (count - 1) // 2, 0, vocab_size - count)

    if devices.platform() == "cpu":

        @jax.checkpoint
        def add(total, k):
            return total + jnp.exp(relative(first + k, offset, precision) - largest), None

        total, _ = jax.lax.scan(add, jnp.zeros(offset.shape), jnp.arange(count), unroll=16)
    else:
        apart = (2.0 / vocab_size) * (first[..., None] + jnp.arange(count) - levels[..., None])
        total = _total(offset, precision, largest, apart)
    return -largest - jnp.log(total)


@jax.custom_jvp
def _total(offset, precision, largest, apart):
    """Σ_v exp(logit_v − logit_x − largest) over the last axis of `apart` = x_v − x, for accelerators."""
    return _moments(offset, precision, largest, apart)[0]


def _moments(offset, precision, largest, apart):
    """Σ_v exp(…) (x_v − x)^n for n = 0, 1, 2 in a single sum; otherwise XLA would write all terms to
    memory."""
    offset, precision, largest = (value[..., None] for value in (offset, precision, largest))
    term = jnp.exp(0.5 * precision * apart * (2.0 * offset - apart) - largest)
    return jnp.sum(jnp.stack([term, term * apart, term * jnp.square(apart)]), axis=-1)


@_total.defjvp
def _(primals, tangents):
    offset, precision, *_ = primals
    d_offset, d_precision, *_ = tangents
    total, mean, square = _moments(*primals)
    return total, precision * mean * d_offset + (offset * mean - 0.5 * square) * d_precision


def sample(
    key: Array, z_0: Float[Array, "*any"], gamma_0: Float[Array, "*#any"], vocab_size: int
) -> Int[Array, "*any"]:
    """A draw of p(x|z_0)."""
    return jax.random.categorical(key, logits(z_0, gamma_0, vocab_size))
