"""A small diffusion transformer: patches as tokens, adaptive layer norm (Peebles & Xie 2023)."""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import PyTree

from vdm.component import accept
from vdm.nets.layers import (
    ZEROS,
    Attention,
    Embedding,
    dropout,
    fold,
    fourier_features,
    layer_keys,
    scan,
    unfold,
)
from vdm.nets.network import Layered, check_heads
from vdm.parameters import Role, matrices_of_loops
from vdm.runtime import devices


class Layer(nn.Module):
    """Attention, then a two-layer network; each is normed, shifted, scaled and gated."""

    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, layer, embedding, keys):
        h = devices.by_batch(h)
        width = h.shape[-1]
        # Six matrices, not one that is six times as wide: Muon orthogonalises each separately, at a quarter
        # of the cost.
        modulation = nn.DenseGeneral((6, width), kernel_init=ZEROS, name="modulation")(embedding)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation[:, None, i] for i in range(6))

        def norm(h, shift, scale):
            normed = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)(h)
            return (normed * (1.0 + scale) + shift).astype(self.dtype)

        def gated(gate, out):
            return ((1.0 + gate) * out).astype(self.dtype)

        keys = layer_keys(keys, layer)
        out = Attention(self.heads, self.dtype)(norm(h, shift_a, scale_a))
        h += gated(gate_a, dropout(out, self.dropout, layer_keys(keys, 0)))
        # One row per token: a product of two matrices runs at full speed, one over three axes does not.
        out = norm(h, shift_m, scale_m).reshape(-1, width)
        out = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(out))
        out = nn.Dense(width, dtype=self.dtype, kernel_init=ZEROS)(out).reshape(h.shape)
        h += gated(gate_m, dropout(out, self.dropout, layer_keys(keys, 1)))
        return h, None


class Transformer(Layered):
    """A small diffusion transformer (Peebles & Xie 2023), with dropout of each layer's two residual branches.

    Attributes:
      heads: number of attention heads.
      patch: side of a token's square of pixels; a divisor of height and width.
    """

    heads: int = 1
    patch: int = 1

    def check(self) -> None:
        super().check()
        check_heads(self.heads, self.width)
        height, width, _ = self.shape
        accept("patch", self.patch >= 1, "1 or more")
        accept(
            "patch",
            height % self.patch == 0 and width % self.patch == 0,
            f"a divisor of the images' height {height} and width {width}",
        )

    def roles(self, params: PyTree) -> PyTree[Role]:
        return matrices_of_loops(params, "layers")

    @nn.compact
    def __call__(self, z, time, condition=None, keys=None):
        dtype = jnp.dtype(self.dtype)
        batch, height, width, _ = z.shape
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        embedding = Embedding(self.width)(time, condition)

        h = fold(fourier_features(z, self.frequencies), side)
        h = nn.Dense(self.width, name="patch_in")(h.reshape(batch, rows * columns, -1))
        h += self.param("position", nn.initializers.normal(1.0), h.shape[1:])

        in_axes = (0, nn.broadcast, nn.broadcast)
        layers = scan(Layer, self.depth, self.remat, self.unroll, in_axes)
        layers = layers(self.heads, self.dropout, dtype, name="layers")
        h, _ = layers(h.astype(dtype), jnp.arange(self.depth), embedding, keys)

        h = nn.LayerNorm(dtype=jnp.float32)(h)
        h = nn.Dense(side * side * self.out_channels, kernel_init=ZEROS, name="patch_out")(h)
        return unfold(h.reshape(batch, rows, columns, -1), side)
