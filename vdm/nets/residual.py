"""A residual network from vectors to vectors."""

from flax import linen as nn
import jax.numpy as jnp

from vdm.errors import one_of, require
from vdm.nets.layers import dropout, layer_keys


class Residual(nn.Module):
    """[batch, any] to float32 [batch, outputs], given, when dropout is on, `keys` [batch].

    Attributes:
      outputs: how many numbers come out.
      depth, width: residual layers (norm, dense, GELU, dense), and their units.
      dropout: share of each layer's activations that is dropped.
      dtype: see nets/layers.py.
    """

    outputs: int
    depth: int
    width: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, keys=None):
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(h)
        for layer in range(self.depth):
            out = nn.LayerNorm(dtype=jnp.float32)(h).astype(self.dtype)
            out = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name=f"first_{layer}")(out))
            out = dropout(out, self.dropout, layer_keys(keys, layer)).astype(self.dtype)
            h += nn.Dense(self.width, dtype=self.dtype, name=f"second_{layer}")(out)
        return nn.Dense(self.outputs, name="out")(nn.LayerNorm(dtype=jnp.float32)(h))


def build(net, outputs):
    """The Residual of so many outputs that `net` (config.model.net of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    one_of("config.model.net.dtype", net.dtype, ("float32", "bfloat16"))
    for name in ("depth", "width"):
        require(net[name] >= 1, f"config.model.net.{name} is {net[name]}; accepted: 1 or more.")
    require(
        0 <= net.dropout < 1, f"config.model.net.dropout is {net.dropout}; accepted: 0 up to, but not, 1."
    )
    return Residual(outputs, net.depth, net.width, net.dropout, jnp.dtype(net.dtype))
