"""A small diffusion transformer: patches as tokens, adaptive layer norm (Peebles & Xie 2023)."""

from flax import linen as nn
import jax.numpy as jnp

from vdm.nets.layers import ZEROS, Attention, Embedding, dropout, fourier_features, layer_keys


class Layer(nn.Module):
    """Attention, then a two-layer network, each normed, shifted, scaled and gated."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, h, layer, embedding, keys):
        width = h.shape[-1]
        modulation = nn.Dense(6 * width, kernel_init=ZEROS)(embedding)[:, None, :]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation, 6, axis=-1)

        def norm(h, shift, scale):
            return nn.LayerNorm(use_bias=False, use_scale=False)(h) * (1.0 + scale) + shift

        keys = layer_keys(keys, layer)
        out = Attention(self.heads)(norm(h, shift_a, scale_a))
        h += (1.0 + gate_a) * dropout(out, self.dropout, layer_keys(keys, 0))
        # One row a token: a product of two matrices, not of three axes, runs at full speed.
        out = nn.gelu(nn.Dense(4 * width)(norm(h, shift_m, scale_m).reshape(-1, width)))
        out = nn.Dense(width, kernel_init=ZEROS)(out).reshape(h.shape)
        h += (1.0 + gate_m) * dropout(out, self.dropout, layer_keys(keys, 1))
        return h, None


class Transformer(nn.Module):
    """See the module's docstring; arguments and result are those of nets/layers.py.

    Attributes:
      out_channels: channels of the result, which starts at zero.
      depth, width: layers, and their channels.
      dropout: share dropped of each layer's two residual branches.
      heads: attention heads.
      patch: side of a token's square of pixels; it divides height and width.
      frequencies: of the Fourier features, in cycles per unit of z; () for none.
      unroll: whether the layers are compiled one by one, not as a loop.
    """

    out_channels: int
    depth: int
    width: int
    dropout: float
    heads: int
    patch: int
    frequencies: tuple[float, ...]
    unroll: bool

    @nn.compact
    def __call__(self, z, time, condition=None, keys=None):
        batch, height, width, _ = z.shape
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        embedding = Embedding(self.width)(time, condition)

        h = fourier_features(z, self.frequencies)
        h = h.reshape(batch, rows, side, columns, side, -1).transpose(0, 1, 3, 2, 4, 5)
        h = nn.Dense(self.width, name="patch_in")(h.reshape(batch, rows * columns, -1))
        h += self.param("position", nn.initializers.normal(1.0), h.shape[1:])

        h, _ = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.depth,
            unroll=self.depth if self.unroll else 1,
        )(self.heads, self.dropout, name="layers")(h, jnp.arange(self.depth), embedding, keys)

        h = nn.LayerNorm()(h)
        h = nn.Dense(side * side * self.out_channels, kernel_init=ZEROS, name="patch_out")(h)
        h = h.reshape(batch, rows, columns, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
        return h.reshape(batch, height, width, self.out_channels)
