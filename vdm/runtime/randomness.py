"""Randomness as a function of (seed, step, example), independent of history, hosts and devices.

A device processes a part of the global batch, and draws random numbers for its examples only. So a batch has
the same noise on one device as on many, and a resumed run has the same noise as an uninterrupted one.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32
import numpy as np

# The purposes of draws: each is folded into the key as a number.
TIME, NOISE, RECONSTRUCTION, DROPOUT, AUGMENT, LATENT, DECODE, CONTEXT, LABEL, PROBE = range(10)
AUTOENCODER = 10  # dropout in a latent model's encoder and decoder
PASS = 11  # all draws of a single pass (QuasiRng.alone)


def root(seed: int) -> UInt32[np.ndarray, "words"]:
    """The key of a seed, for jax.random.wrap_key_data. Compiled functions take it as an argument: they would
    have to be compiled anew for each seed if it were a constant."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


class Rng(NamedTuple):
    """The randomness of some examples of a global batch.

    Attributes:
      key: one key, the same for the whole global batch.
      index: int32 [batch], the index of each of these examples in the global batch.
      size: number of examples in the global batch.
    """

    key: jax.Array
    index: jax.Array  # type: ignore[assignment]  # a method of tuples has this name, too
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
        """Uniform on [0, 1), stratified over the global batch (VDM app. I.1): (u + i/n) mod 1 for the i-th of
        n examples."""
        place = self.index.astype(jnp.float32) / self.size
        return jnp.mod(jax.random.uniform(self.shared(use)) + place, 1.0)


class QuasiRng(NamedTuple):
    """The randomness of one of several passes over a split: an Rng whose draws are spread more evenly over
    the passes than independent draws. Each single draw is exactly uniform or normal, so that averages are
    unbiased; the draws of an image in different passes are dependent, and each set of passes needs a
    different `key`.

    Attributes:
      key: one key, the same for all passes of a set.
      index: int32 [batch], the index of each image in the split.
      number: int32 [], the index of this pass in the set.
      images, passes: int32 [], the number of images in the split and of passes in the set.
    """

    key: jax.Array
    index: jax.Array  # type: ignore[assignment]  # a method of tuples has this name, too
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

        Each value starts at a random quantile of the normal, and moves by the golden ratio of a full turn,
        mod 1, from pass to pass: any few consecutive passes are far apart.
        """
        keys = fold_in(jnp.broadcast_to(self.shared(use), self.index.shape), self.index)
        start = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint32))(keys)
        turn = start + self.number.astype(jnp.uint32) * _GOLDEN
        # 24 bits, at the centre of their cell: exact in float32, and never −1 or 1.
        cell = jax.lax.bitcast_convert_type(turn, jnp.int32) >> 8
        return math.sqrt(2.0) * jax.lax.erf_inv((cell.astype(jnp.float32) + 0.5) / 2.0**23)

    def alone(self) -> Rng:
        """Randomness of this pass, independent of all other passes."""
        return Rng(jax.random.fold_in(self.shared(PASS), self.number), self.index, self.images)

    def uniform(self, use: int) -> Float[Array, "batch"]:
        """Uniform on [0, 1): (u + (k + i/n) / passes) mod 1 for pass k of image i, so that both the draws of
        one image and those of all images are spread evenly over [0, 1)."""
        first = self.number.astype(jnp.float32) + self.index.astype(jnp.float32) / self.images
        return jnp.mod(jax.random.uniform(self.shared(use)) + first / self.passes, 1.0)


fold_in = jax.vmap(jax.random.fold_in)
_GOLDEN = np.uint32(round(2**32 * (math.sqrt(5.0) - 1.0) / 2.0))
