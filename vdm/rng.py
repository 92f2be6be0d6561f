"""Randomness as a function of (seed, step, example): never of history, hosts or devices.

One device sees a part of the global batch. Its draws are those of the examples that it
holds, so a batch meets the same noise on one device as on many, and a run that was
resumed the same as one that never stopped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# What a draw is for: each use folds its own number into the key.
TIME, NOISE, RECONSTRUCTION, DROPOUT, AUGMENT, LATENT, DECODE = range(7)


class Rng(NamedTuple):
    """The randomness of some examples of a global batch.

    Attributes:
      key: one key, the same for the whole global batch.
      index: int32 [batch], the place of each of these examples in the global batch.
      size: how many examples the global batch has.
    """

    key: jax.Array
    index: jax.Array
    size: int

    def shared(self, use):
        """One key for the whole global batch."""
        return jax.random.fold_in(self.key, use)

    def keys(self, use):
        """One key for each example: [batch]."""
        return fold_in(jnp.broadcast_to(self.shared(use), self.index.shape), self.index)

    def normal(self, use, shape):
        """Standard normal draws, float32 [batch, *shape]."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.keys(use))

    def strata(self):
        """i/n for the i-th of n examples: [batch]."""
        return self.index.astype(jnp.float32) / self.size


fold_in = jax.vmap(jax.random.fold_in)
