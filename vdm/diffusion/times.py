"""Diffusion times: independent, stratified, or drawn more often where the loss varies more.

Whatever density q they have, the mean of L(t)/q(t) over a batch estimates ∫ L(t) dt; what differs is the
noise.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.contract import Random
from vdm.runtime import randomness

TIMES = ("iid", "stratified", "importance")

PARTS = 40  # equal parts of [0, 1) that a loss is watched in
_DOUBT = 5.0
_DECAY = 0.99


def draw(
    rng: Random, kind: str, cdf: Float[Array, "parts_and_one"] | None
) -> tuple[Float[Array, "batch"], Float[Array, "*#batch"]]:
    """A time t for each example, and 1/q(t).

    Args:
      kind: of TIMES.
      cdf: how times are distributed, for `warp`; None for uniformly.
    """
    if kind == "iid":
        u = jax.vmap(jax.random.uniform)(rng.keys(randomness.TIME))
    else:
        u = jax.random.uniform(rng.shared(randomness.TIME))
    t = uniform(u, rng.strata(), kind != "iid")
    return (t, jnp.ones(())) if cdf is None else warp(t, cdf)


def uniform(
    u: Float[Array, "*#batch"], strata: Float[Array, "batch"], stratified: bool
) -> Float[Array, "batch"]:
    """Times in [0, 1): i.i.d., or stratified over the global batch (VDM app. I.1).

    Args:
      u: uniforms. Stratified times use one and the same u for the whole batch.
      strata: i/n for the i-th of the n examples of the global batch.
      stratified: whether to stratify: t_i = (u + i/n) mod 1.
    """
    return jnp.mod(u + strata, 1.0) if stratified else u


def warp(
    u: Float[Array, "batch"], cdf: Float[Array, "parts_and_one"]
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Times with a piecewise constant density q on k equal parts of [0, 1).

    Args:
      u: times with the density 1.
      cdf: the distribution of q at 0, 1/k, …, 1; increasing from 0 to 1.

    Returns:
      t = cdf⁻¹(u) and 1/q(t): E_u[f(t)/q(t)] = ∫ f(t) dt for any f and cdf.
    """
    parts = cdf.shape[0] - 1
    part = jnp.clip(jnp.searchsorted(cdf, u, side="right") - 1, 0, parts - 1)
    share = cdf[part + 1] - cdf[part]
    return (part + (u - cdf[part]) / share) / parts, 1.0 / (parts * share)


def moments(t: Float[Array, "batch"], loss: Float[Array, "batch"]) -> Float[Array, "3 parts"]:
    """How many times fell into each part, and the sums of their losses and squares.

    Args:
      loss: what each time's loss would be under the density 1.
    """
    part = jnp.clip(jnp.floor(t * PARTS).astype(jnp.int32), 0, PARTS - 1)
    powers = jnp.stack([jnp.ones_like(loss), loss, jnp.square(loss)])
    return jnp.zeros((3, PARTS)).at[:, part].add(powers)


def remember(old: Float[Array, "3 parts"], new: Float[Array, "3 parts"]) -> Float[Array, "3 parts"]:
    """Running moments after one more step: those of about the last hundred count."""
    return _DECAY * old + new


def cdf(moments: Float[Array, "3 parts"]) -> Float[Array, "parts_and_one"]:
    """How times are best distributed, for `warp`.

    The variance of a stratified estimate is least where times have a density in proportion
    to the standard deviation of what is averaged (Neyman 1934). A part's own variance counts
    as much as the variance of all parts together where it has _DOUBT draws, and more with
    more; a tenth stays uniform, so that no weight 1/q is above 10.

    Args:
      moments: as `moments` gives them, or sums of such.
    """
    count, total, square = moments
    some = jnp.maximum(count, 1e-6)
    variance = jnp.maximum(square / some - jnp.square(total / some), 0.0)
    overall = jnp.sum(count * variance) / jnp.maximum(jnp.sum(count), 1e-6)
    spread = jnp.sqrt((count * variance + _DOUBT * overall) / (count + _DOUBT))
    whole = jnp.sum(spread)
    share = jnp.where(whole > 0, spread / jnp.where(whole > 0, whole, 1.0), 1.0 / PARTS)
    ends = jnp.cumsum(0.9 * share + 0.1 / PARTS)
    return jnp.concatenate([jnp.zeros(1), ends / ends[-1]])


def grid(steps: int, context: Array | None) -> Float[Array, "steps_and_one *batch"]:
    """Times 0, 1/steps, …, 1; the same for each picture of a batch, where each has a context."""
    found = jnp.linspace(0.0, 1.0, steps + 1)
    return found if context is None else jnp.broadcast_to(found[:, None], (steps + 1, context.shape[0]))
