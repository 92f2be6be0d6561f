"""Randomness as a function of (seed, step, example): never of history, hosts or devices.

One device sees a part of the global batch. Its draws are those of the examples that it
holds, so a batch meets the same noise on one device as on many, and a run that was
resumed the same as one that never stopped.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
import numpy as np

# What a draw is for: each use folds its own number into the key.
TIME, NOISE, RECONSTRUCTION, DROPOUT, AUGMENT, LATENT, DECODE, CONTEXT, LABEL, PROBE = range(10)
AUTOENCODER = 10  # dropout in a latent model's encoder and decoder
PASS = 11  # of one pass alone


class Rng(NamedTuple):
    """The randomness of some examples of a global batch.

    Attributes:
      key: one key, the same for the whole global batch.
      index: int32 [batch], the place of each of these examples in the global batch.
      size: how many examples the global batch has.
    """

    key: jax.Array
    index: jax.Array  # type: ignore[assignment]  # also a method of tuples
    size: int | jax.Array

    def shared(self, use: int) -> Key[Array, ""]:
        """One key for the whole global batch."""
        return jax.random.fold_in(self.key, use)

    def keys(self, use: int) -> Key[Array, "batch"]:
        """One key for each example."""
        return fold_in(jnp.broadcast_to(self.shared(use), self.index.shape), self.index)

    def normal(self, use: int, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
        """Standard normal draws."""
        return jax.vmap(lambda key: jax.random.normal(key, shape))(self.keys(use))

    def uniform(self, use: int) -> Float[Array, "batch"]:
        """Uniform on [0, 1), and stratified over the global batch (VDM app. I.1): (u + i/n) mod 1 for the
        i-th of n examples."""
        place = self.index.astype(jnp.float32) / self.size
        return jnp.mod(jax.random.uniform(self.shared(use)) + place, 1.0)


class QuasiRng(NamedTuple):
    """The randomness of one pass of several over a split: an Rng whose draws, over the passes,
    are spread more evenly than chance would. Each draw on its own is exactly uniform or normal,
    so that averages stay unbiased; one image's draws in different passes depend on each other,
    and `key` is to be another one for each set of passes.

    Attributes:
      key: one key, the same for all passes of a set.
      index: int32 [batch], the place of each image in the split.
      number: int32 [], which pass of the set this is.
      images, passes: int32 [], how many there are.
    """

    key: jax.Array
    index: jax.Array  # type: ignore[assignment]  # also a method of tuples
    number: jax.Array
    images: jax.Array
    passes: jax.Array

    def shared(self, use: int) -> Key[Array, ""]:
        """One key for the whole set of passes."""
        return jax.random.fold_in(self.key, use)

    def keys(self, use: int) -> Key[Array, "batch"]:
        """One key for each image in each pass."""
        place = self.number * self.images + self.index
        return fold_in(jnp.broadcast_to(self.shared(use), place.shape), place)

    def normal(self, use: int, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
        """Standard normal draws.

        Each value has a random start on the circle of the normal's quantiles, and goes on by
        the golden ratio of a turn from pass to pass: any few passes in a row lie far apart.
        """
        keys = fold_in(jnp.broadcast_to(self.shared(use), self.index.shape), self.index)
        start = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
        turn = start + self.number.astype(jnp.uint32) * _GOLDEN
        # 24 bits, and the middle of their cell: float32 holds it, and it is never −1 or 1.
        cell = jax.lax.bitcast_convert_type(turn, jnp.int32) >> 8
        return math.sqrt(2.0) * jax.lax.erf_inv((cell.astype(jnp.float32) + 0.5) / 2.0**23)

    def alone(self) -> Rng:
        """Randomness of this pass that is independent of all other passes."""
        return Rng(jax.random.fold_in(self.shared(PASS), self.number), self.index, self.images)

    def uniform(self, use: int) -> Float[Array, "batch"]:
        """Uniform on [0, 1): (u + (k + i/n) / passes) mod 1 for pass k of image i, so that the draws of one
        image are spread evenly over [0, 1), and so are those of all images."""
        first = self.number.astype(jnp.float32) + self.index.astype(jnp.float32) / self.images
        return jnp.mod(jax.random.uniform(self.shared(use)) + first / self.passes, 1.0)


fold_in = jax.vmap(jax.random.fold_in)
_GOLDEN = np.uint32(round(2**32 * (math.sqrt(5.0) - 1.0) / 2.0))
