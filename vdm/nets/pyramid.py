"""A U-Net of several resolutions with a low cost per image: convolutions of squares of pixels.

The first resolution is that of `patch` × `patch` squares of pixels, read as channels; each further resolution
is half as fine, with the same number of channels. There is no normalisation, as the magnitude of the input is
a measure of its certainty.
"""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import PyTree

from vdm.component import accept
from vdm.nets.conv import Conv
from vdm.nets.layers import ZEROS, Embedding, dropout, fold, layer_keys, swish, unfold
from vdm.nets.network import Network, check_layers
from vdm.parameters import Role, by_path
from vdm.runtime import devices


class Block(nn.Module):
    """A residual branch of swish and convolution, twice; the embedding scales and shifts in between."""

    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, embedding, keys):
        h = devices.by_batch(h)
        width = h.shape[-1]
        scale, shift = jnp.split(nn.Dense(2 * width, kernel_init=ZEROS)(embedding), 2, axis=-1)
        out = Conv(width, dtype=self.dtype)(swish(h))
        out = out * (1.0 + scale[:, None, None]) + shift[:, None, None]
        out = dropout(swish(out), self.dropout, keys).astype(self.dtype)
        return h + Conv(width, dtype=self.dtype, kernel_init=ZEROS)(out)


class Pyramid(Network):
    """A U-Net of several resolutions, the finest of squares of pixels, with a low cost per image.

    Attributes:
      scales: number of resolutions.
      depth: number of blocks of the first resolution on the way down, and on the way up.
      coarse: number of blocks of each other resolution on the way down, and on the way up.
      width: number of channels of each resolution.
      patch: side of a square of pixels; patch · 2^(scales − 1) must divide height and width.
      dropout: share of a block's activations that is dropped.
      dtype: type of the convolutions: float32 or bfloat16.
    """

    scales: int = 3
    depth: int = 2
    coarse: int = 1
    width: int = 32
    patch: int = 1
    dropout: float = 0.0
    dtype: str = "float32"

    def check(self) -> None:
        check_layers(self.depth, self.width, self.dropout, self.dtype)
        accept("scales", self.scales >= 1, "1 or more")
        accept("coarse", self.coarse >= 1, "1 or more")
        accept("patch", self.patch >= 1, "1 or more")
        accept("width", self.width % 2 == 0 and self.width >= 4, "an even number, 4 or more")
        height, width, _ = self.shape
        coarsest = self.patch * 2 ** (self.scales - 1)
        accept(
            "scales",
            height % coarsest == 0 and width % coarsest == 0,
            f"such that {coarsest}, the side of a square of the coarsest resolution, divides the images' "
            f"height {height} and width {width}",
        )

    def roles(self, params: PyTree) -> PyTree[Role]:
        """A convolution's kernel is a matrix from rows · columns · channels to channels."""

        def role_of(names, value):
            return Role(matrix=((0, 1, 2), (3,)) if value.ndim == 4 else None)

        return by_path(params, role_of)

    @nn.compact
    def __call__(self, z, time, condition=None, keys=None):
        dtype = jnp.dtype(self.dtype)
        embedding = Embedding(self.width)(time, condition)
        number = 0

        def blocks(h, scale):
            nonlocal number
            for _ in range(self.coarse if scale else self.depth):
                h = Block(self.dropout, dtype)(h, embedding, layer_keys(keys, number))
                number += 1
            return h

        h = nn.Dense(self.width)(fold(z, self.patch)).astype(dtype)
        skips = []
        for scale in range(self.scales - 1):
            h = blocks(h, scale)
            skips.append(h)
            h = nn.Dense(self.width, dtype=dtype)(fold(h, 2))
        h = blocks(h, self.scales - 1)
        for scale, skip in reversed(list(enumerate(skips))):
            h = blocks(skip + unfold(nn.Dense(4 * self.width, dtype=dtype)(h), 2), scale)
        h = swish(h.astype(jnp.float32))
        out = nn.Dense(self.patch**2 * self.out_channels, kernel_init=ZEROS)(h)
        return unfold(out, self.patch)
