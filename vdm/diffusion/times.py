"""Diffusion times: independent, stratified, or drawn more often where the loss varies more.

Whatever density q they have, the mean of L(t)/q(t) over a batch estimates ∫ L(t) dt; what differs is the
noise.
"""

import jax.numpy as jnp

TIMES = ("iid", "stratified", "importance")

PARTS = 40  # equal parts of [0, 1) that a loss is watched in
_DOUBT = 5.0
_DECAY = 0.99


def uniform(u, strata, stratified):
    """Times in [0, 1): i.i.d., or stratified over the global batch (VDM app. I.1).

    Args:
      u: [batch] uniforms. Stratified times use one and the same u for the whole batch.
      strata: [batch], i/n for the i-th of the n examples of the global batch.
      stratified: whether to stratify: t_i = (u + i/n) mod 1.
    """
    return jnp.mod(u + strata, 1.0) if stratified else u


def warp(u, cdf):
    """Times with a piecewise constant density q on k equal parts of [0, 1).

    Args:
      u: [batch], times with the density 1.
      cdf: [k + 1], the distribution of q at 0, 1/k, …, 1; increasing from 0 to 1.

    Returns:
      t = cdf⁻¹(u) and 1/q(t), both [batch]: E_u[f(t)/q(t)] = ∫ f(t) dt for any f and cdf.
    """
    parts = cdf.shape[0] - 1
    part = jnp.clip(jnp.searchsorted(cdf, u, side="right") - 1, 0, parts - 1)
    share = cdf[part + 1] - cdf[part]
    return (part + (u - cdf[part]) / share) / parts, 1.0 / (parts * share)


def moments(t, loss):
    """How many times fell into each part, and the sums of their losses and squares: [3, PARTS].

    Args:
      t: [batch]. loss: [batch], what each time's loss would be under the density 1.
    """
    part = jnp.clip(jnp.floor(t * PARTS).astype(jnp.int32), 0, PARTS - 1)
    powers = jnp.stack([jnp.ones_like(loss), loss, jnp.square(loss)])
    return jnp.zeros((3, PARTS)).at[:, part].add(powers)


def remember(old, new):
    """Running moments after one more step: those of about the last hundred count."""
    return _DECAY * old + new


def cdf(moments):
    """How times are best distributed, for `warp`: [PARTS + 1].

    The variance of a stratified estimate is least where times have a density in proportion
    to the standard deviation of what is averaged (Neyman 1934). A part's own variance counts
    as much as the variance of all parts together where it has _DOUBT draws, and more with
    more; a tenth stays uniform, so that no weight 1/q is above 10.

    Args:
      moments: [3, PARTS], as `moments` gives them, or sums of such.
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
