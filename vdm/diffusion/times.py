"""Diffusion times: independent, stratified, or drawn more often where the loss varies more.

For every density q, the mean of L(t)/q(t) over a batch is an unbiased estimate of ∫ L(t) dt; its variance
depends on q. Evaluation draws its own times, the same for all of these.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm.component import Component
from vdm.contract import DrawTimes, Random
from vdm.runtime import randomness

PerExample = Float[Array, "batch"]

PARTS = 40  # equal parts of [0, 1), for each of which the loss is recorded
_DECAY = 0.995
_TRUST = {"doubt": 0.2, "uniform": 0.03}  # in training, gradients matter more than the largest weight


@dataclasses.dataclass(frozen=True)
class Times(Component):
    """How training draws diffusion times. A new one defines `draw`, as in examples/beta_times.py."""

    def draw(self, rng: Random, state: PyTree) -> tuple[PerExample, Float[Array, "*#batch"]]:
        """A time t in [0, 1) for each example, and 1/q(t), where q is the density of t."""
        raise NotImplementedError

    def init(self) -> PyTree:
        """The state before the first step; None if the density does not adapt."""
        return None

    def observe(self, t: PerExample, loss: PerExample) -> PyTree:
        """Statistics of a batch, which are summed over devices and passed to `remember`.

        Args:
          loss: the loss at each time, nats, without the factor 1/q(t).
        """
        raise NotImplementedError

    def remember(self, state: PyTree, observed: PyTree) -> PyTree:
        """The state after one more step."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Stratified(Times):
    """Uniform, and stratified over the global batch (VDM app. I.1): t_i = (u + i/n) mod 1."""

    def draw(self, rng, state):
        return rng.uniform(randomness.TIME), jnp.ones(())


@dataclasses.dataclass(frozen=True)
class IID(Times):
    """Uniform and independent."""

    def draw(self, rng, state):
        return jax.vmap(jax.random.uniform)(rng.keys(randomness.TIME)), jnp.ones(())


@dataclasses.dataclass(frozen=True)
class Importance(Stratified):
    """Stratified, and denser where the loss varies more, as measured over about the last 200 steps."""

    def draw(self, rng, state):
        u, _ = super().draw(rng, state)
        return warp(u, cdf(state, **_TRUST))

    def init(self):
        return jnp.zeros((3, PARTS))

    def observe(self, t, loss):
        return moments(t, loss)

    def remember(self, state, observed):
        return _DECAY * state + observed


def distributed(cdf: Float[Array, "parts_and_one"]) -> DrawTimes:
    """Stratified times with the distribution function `cdf`, as in `warp`."""

    def draw(rng):
        return warp(rng.uniform(randomness.TIME), cdf)

    return draw


def warp(
    u: Float[Array, "batch"], cdf: Float[Array, "parts_and_one"]
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Times with a piecewise constant density q on k equal parts of [0, 1).

    Args:
      u: uniform times.
      cdf: the distribution function of q at 0, 1/k, …, 1; increasing from 0 to 1.

    Returns:
      t = cdf⁻¹(u) and 1/q(t), so that E_u[f(t)/q(t)] = ∫ f(t) dt for all f.
    """
    parts = cdf.shape[0] - 1
    part = jnp.clip(jnp.searchsorted(cdf, u, side="right") - 1, 0, parts - 1)
    share = cdf[part + 1] - cdf[part]
    return (part + (u - cdf[part]) / share) / parts, 1.0 / (parts * share)


def moments(t: Float[Array, "batch"], loss: Float[Array, "batch"]) -> Float[Array, "3 parts"]:
    """For each part of [0, 1): the number of times, the sum of their losses, and of the squared losses.

    Args:
      loss: the loss at each time, without the factor 1/q(t).
    """
    part = jnp.clip(jnp.floor(t * PARTS).astype(jnp.int32), 0, PARTS - 1)
    powers = jnp.stack([jnp.ones_like(loss), loss, jnp.square(loss)])
    return jnp.zeros((3, PARTS)).at[:, part].add(powers)


def cdf(
    moments: Float[Array, "3 parts"], doubt: float = 5.0, uniform: float = 0.1
) -> Float[Array, "parts_and_one"]:
    """The distribution function of times, for `warp`, that minimises the variance of the loss.

    The variance of a stratified estimate is least if the density of times is proportional to the standard
    deviation of the loss (Neyman 1934). The variance of a part is estimated from its own losses, and the mean
    variance of all parts counts as `doubt` further losses.

    Args:
      moments: from the function `moments`, or sums of several.
      doubt: a number of losses.
      uniform: share of the times that stays uniform, so that no weight 1/q exceeds 1/uniform. Larger values
        of both are safer, but draw more times where there is almost no gradient: on photographs 40% of t.
    """
    count, total, square = moments
    some = jnp.maximum(count, 1e-6)
    variance = jnp.maximum(square / some - jnp.square(total / some), 0.0)
    overall = jnp.sum(count * variance) / jnp.maximum(jnp.sum(count), 1e-6)
    spread = jnp.sqrt((count * variance + doubt * overall) / (count + doubt))
    whole = jnp.sum(spread)
    share = jnp.where(whole > 0, spread / jnp.where(whole > 0, whole, 1.0), 1.0 / PARTS)
    ends = jnp.cumsum((1.0 - uniform) * share + uniform / PARTS)
    return jnp.concatenate([jnp.zeros(1), ends / ends[-1]])
