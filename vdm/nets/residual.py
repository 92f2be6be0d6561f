"""A residual network from vectors to vectors."""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.component import Component, check
from vdm.nets.layers import dropout, layer_keys
from vdm.nets.network import check_layers


class Residual(nn.Module, Component):
    """A residual network from vectors to vectors: from [batch, any] to float32 [batch, outputs].

    Dropout is on if its call has `keys` [batch].

    Attributes:
      outputs: size of the output.
      depth: number of residual layers, each of norm, dense, GELU and dense.
      width: number of units of a layer.
      dropout: share of a layer's activations that is dropped.
      dtype: type of the matrix products: float32 or bfloat16.
    """

    outputs: int
    depth: int = 2
    width: int = 256
    dropout: float = 0.1
    dtype: str = "float32"

    def check(self) -> None:
        check_layers(self.depth, self.width, self.dropout, self.dtype)

    @nn.compact
    def __call__(
        self, h: Float[Array, "batch inputs"], keys: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        dtype = jnp.dtype(self.dtype)
        h = nn.Dense(self.width, dtype=dtype, name="in")(h)
        for layer in range(self.depth):
            out = nn.LayerNorm(dtype=jnp.float32)(h).astype(dtype)
            out = nn.gelu(nn.Dense(self.width, dtype=dtype, name=f"first_{layer}")(out))
            out = dropout(out, self.dropout, layer_keys(keys, layer)).astype(dtype)
            h += nn.Dense(self.width, dtype=dtype, name=f"second_{layer}")(out)
        return nn.Dense(self.outputs, name="out")(nn.LayerNorm(dtype=jnp.float32)(h))


def build(section: Any, outputs: int) -> Residual:
    """The Residual that config.model.net describes, with `outputs` outputs. If the section is that of another
    network, its common fields are used.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    made = Residual(outputs, **{field: section[field] for field in Residual.config_fields()})
    check(made, section, "config.model.net")
    return made
