"""Diffusion times: independent, stratified, or drawn more often where the loss varies more.

Whatever density q they have, the mean of L(t)/q(t) over a batch estimates ∫ L(t) dt; what differs is the
noise. Evaluation draws times of its own, so that all these are judged alike.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm.component import Component
from vdm.contract import DrawTimes, Random
from vdm.runtime import randomness

PerExample = Float[Array, "batch"]

PARTS = 40  # equal parts of [0, 1) that a loss is watched in
_DECAY = 0.995
_TRUST = {"doubt": 0.2, "uniform": 0.03}  # in training, where gradients matter more than the worst weight


@dataclasses.dataclass(frozen=True)
class Times(Component):
    """How training draws diffusion times. One of your own defines `draw`; examples/beta_times.py."""

    def draw(self, rng: Random, state: PyTree) -> tuple[PerExample, Float[Array, "*#batch"]]:
        """A time t in [0, 1) for each example, and 1/q(t) of their density q."""
        raise NotImplementedError

    def init(self) -> PyTree:
        """What is remembered of the losses before the first step; None where nothing is."""
        return None

    def observe(self, t: PerExample, loss: PerExample) -> PyTree:
        """Of a batch, what `remember` adds up over devices.

        Args:
          loss: what is minimised at each time, nats, as it would be under the density 1.
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
    """Uniform, and independent of each other."""

    def draw(self, rng, state):
        return jax.vmap(jax.random.uniform)(rng.keys(randomness.TIME)), jnp.ones(())


@dataclasses.dataclass(frozen=True)
class Importance(Stratified):
    """Stratified, and more of them where the loss varies more, as measured over about the last 200
    steps."""

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
    """Stratified times, distributed as `warp` has them."""

    def draw(rng):
        return warp(rng.uniform(randomness.TIME), cdf)

    return draw


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


def cdf(
    moments: Float[Array, "3 parts"], doubt: float = 5.0, uniform: float = 0.1
) -> Float[Array, "parts_and_one"]:
    """How times are best distributed, for `warp`.

    The variance of a stratified estimate is least where times have a density in proportion
    to the standard deviation of what is averaged (Neyman 1934). A part's variance is estimated
    from its own draws, and with the weight of `doubt` draws from those of all parts.

    Args:
      moments: as `moments` gives them, or sums of such.
      doubt: how many draws.
      uniform: share of the times that stay uniform, so that no weight 1/q is above 1/uniform. More of both is
        safer, and draws more times where there is next to no gradient: on photographs 40% of t.
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
