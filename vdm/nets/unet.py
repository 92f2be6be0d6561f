"""The paper's U-Net, which never changes resolution (VDM app. B).

`depth` residual blocks down, two in the middle, `depth + 1` up. Each block up also sees
what went into, or came out of, a block down. The blocks of one direction are alike, so
they are one block whose parameters are stacked, scanned over: compile time does not grow
with depth.
"""

import math

from flax import linen as nn
import jax.numpy as jnp

from vdm.nets.layers import ZEROS, Attention, Embedding, dropout, fourier_features, layer_keys


def group_norm(h):
    """Group norm over 32 groups as in the paper, or fewer where these would have less than 4
    channels: with 1 channel a group, it would take the embedding, added to whole channels,
    out again."""
    return nn.GroupNorm(num_groups=math.gcd(32, max(1, h.shape[-1] // 4)))(h)


class Block(nn.Module):
    """Norm, swish, convolution, twice, around a residual; the embedding is added between."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, h, embedding, keys):
        residual = h
        h = nn.Conv(self.width, (3, 3))(nn.silu(group_norm(h)))
        h += nn.Dense(self.width, use_bias=False, kernel_init=ZEROS)(embedding)[:, None, None, :]
        h = dropout(nn.silu(group_norm(h)), self.dropout, keys)
        h = nn.Conv(self.width, (3, 3), kernel_init=ZEROS)(h)
        if residual.shape[-1] != self.width:
            residual = nn.Dense(self.width, name="shortcut")(residual)
        return residual + h


class AttentionBlock(nn.Module):
    """Attention over all pixels around a residual."""

    heads: int

    @nn.compact
    def __call__(self, h):
        batch, height, width, channels = h.shape
        tokens = group_norm(h).reshape(batch, height * width, channels)
        return h + Attention(self.heads)(tokens).reshape(h.shape)


class Layer(nn.Module):
    """One turn of the scan: a block, with attention after it where that is everywhere.

    On the way down it puts out its input, which a block on the way up will take in.
    """

    width: int
    dropout: float
    heads: int
    attention: bool

    @nn.compact
    def __call__(self, h, skip, layer, embedding, keys):
        given = h
        if skip is not None:
            h = jnp.concatenate([h, skip], axis=-1)
        h = Block(self.width, self.dropout)(h, embedding, layer_keys(keys, layer))
        if self.attention:
            h = AttentionBlock(self.heads)(h)
        return h, given if skip is None else None


class UNet(nn.Module):
    """See the module's docstring; arguments and result are those of nets/layers.py.

    Attributes:
      out_channels: channels of the result, which starts at zero.
      depth, width: blocks in one direction, and their channels.
      dropout: share of each block's inner activations that is dropped.
      attention: "middle" or "everywhere".
      heads: attention heads.
      frequencies: of the Fourier features, in cycles per unit of z; () for none.
      unroll: whether the blocks are compiled one by one, not as a loop.
    """

    out_channels: int
    depth: int
    width: int
    dropout: float
    attention: str
    heads: int
    frequencies: tuple[float, ...]
    unroll: bool

    @nn.compact
    def __call__(self, z, time, condition=None, keys=None):
        embedding = Embedding(self.width)(time, condition)
        h = nn.Conv(self.width, (3, 3), name="conv_in")(fourier_features(z, self.frequencies))

        everywhere = self.attention == "everywhere"
        layer_args = (self.width, self.dropout, self.heads, everywhere)

        def scan(first, name, **options):
            scanned = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, nn.broadcast, nn.broadcast),
                length=self.depth,
                unroll=self.depth if self.unroll else 1,
                **options,
            )(*layer_args, name=name)
            return lambda h, skips: scanned(
                h, skips, first + jnp.arange(self.depth), embedding, keys
            )

        middle = self.depth
        h, skips = scan(0, "down")(h, None)
        last = h
        h = Block(self.width, self.dropout, name="middle_0")(
            h, embedding, layer_keys(keys, middle)
        )
        h = AttentionBlock(self.heads, name="middle_attention")(h)
        h = Block(self.width, self.dropout, name="middle_1")(
            h, embedding, layer_keys(keys, middle + 1)
        )
        h, _ = Layer(*layer_args, name="up_first")(h, last, middle + 2, embedding, keys)
        h, _ = scan(middle + 3, "up", reverse=True)(h, skips)

        h = nn.silu(group_norm(h))
        return nn.Conv(self.out_channels, (3, 3), kernel_init=ZEROS, name="conv_out")(h)
