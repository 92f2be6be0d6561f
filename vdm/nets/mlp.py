"""A residual network over the values of an image as one vector, for 2-D points."""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import PyTree

from vdm.nets.layers import ZEROS, Embedding, dropout, fourier_features, layer_keys, scan
from vdm.nets.network import Layered
from vdm.parameters import Role, matrices_of_loops
from vdm.runtime import devices


class Layer(nn.Module):
    """A residual branch: norm, then swish and dense, twice; the embedding is added after the norm."""

    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, layer, embedding, keys):
        h = devices.by_batch(h)
        width = h.shape[-1]
        normed = nn.LayerNorm(dtype=jnp.float32)(h)
        out = nn.silu(normed + nn.Dense(width, name="embed")(embedding))
        out = nn.silu(nn.Dense(width, dtype=self.dtype, name="first")(out))
        out = dropout(out, self.dropout, layer_keys(keys, layer))
        return h + nn.Dense(width, dtype=self.dtype, kernel_init=ZEROS, name="second")(out), None


class MLP(Layered):
    """`depth` residual layers over all values of an image as one vector."""

    @nn.compact
    def __call__(self, z, time, condition=None, keys=None):
        dtype = jnp.dtype(self.dtype)
        batch, height, width, _ = z.shape
        embedding = Embedding(self.width)(time, condition)
        h = nn.Dense(self.width, name="in")(fourier_features(z, self.frequencies).reshape(batch, -1))
        in_axes = (0, nn.broadcast, nn.broadcast)
        layers = scan(Layer, self.depth, self.remat, self.unroll, in_axes)
        layers = layers(self.dropout, dtype, name="layers")
        h, _ = layers(h.astype(dtype), jnp.arange(self.depth), embedding, keys)
        h = nn.LayerNorm(dtype=jnp.float32)(h)
        h = nn.Dense(height * width * self.out_channels, kernel_init=ZEROS, name="out")(h)
        return h.reshape(batch, height, width, self.out_channels)

    def roles(self, params: PyTree) -> PyTree[Role]:
        return matrices_of_loops(params, "layers")
