"""Causal networks: logits of each value of an image that depend only on the values before it, in raster
order; and a causal transformer (Vaswani et al. 2017; for pixels, Chen et al. 2020).

The same module reads a whole image, or continues an image by one value with what it kept of earlier steps.
"""

import math

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from vdm.component import Component, choose
from vdm.nets.layers import PRODUCT, ZEROS, Heads, Keys, attend, attend_on_cpu, dropout, layer_keys, scan
from vdm.nets.network import REMAT, check_heads, check_layers
from vdm.parameters import Role, alike, matrices_of_loops
from vdm.runtime import devices


class Layer(nn.Module):
    """Attention of each token to itself and those before it, then a two-layer network; both are residual
    branches with a norm at their input."""

    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, layer, kept, at, keys):
        """Maps h [batch, tokens, width] to an array like h, and None.

        If the keys and values of the tokens before `at`, `kept` [2, batch, heads, tokens, width / heads], are
        given: maps h [batch, 1, width] of the token `at` to an array like h, and the token's key and value.
        """
        h = devices.by_batch(h)
        batch, tokens, width = h.shape
        keys = layer_keys(keys, layer)

        def normed(h):  # one row per token, as in nets/transformer.py
            return nn.LayerNorm(dtype=jnp.float32)(h).astype(self.dtype).reshape(-1, width)

        def plus(h, out, branch):
            return h + dropout(out.reshape(h.shape), self.dropout, layer_keys(keys, branch))

        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(normed(h))
        qkv = qkv.reshape(batch, tokens, 3, self.heads, -1)
        qkv = [qkv[:, :, i] for i in range(3)]
        if kept is None:
            on_cpu = devices.platform() == "cpu"
            out = attend_on_cpu(*qkv, attend_in_blocks) if on_cpu else jax.checkpoint(attend_before)(*qkv)
            out, own = checkpoint_name(out, PRODUCT), None
        else:
            out, own = attend_kept(*qkv, kept, at)
        out = nn.Dense(width, dtype=self.dtype, kernel_init=ZEROS, name="out")(out.reshape(-1, width))
        h = plus(h, out, 0)
        out = nn.gelu(nn.Dense(4 * width, dtype=self.dtype)(normed(h)))
        return plus(h, nn.Dense(width, dtype=self.dtype, kernel_init=ZEROS)(out), 1), own


def attend_before(query: Heads, key: Heads, value: Heads) -> Heads:
    """The attention of each token to itself and the tokens before it."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=True)


# The number of queries that are processed together on a CPU.
BLOCK = 128


def attend_in_blocks(q: Array, k: Array, v: Array) -> Array:
    """`attend_before` of [..., tokens, width], which skips the keys that come after a whole block of queries:
    three to five times as fast on a CPU."""
    parts = []
    for start in range(0, q.shape[-2], BLOCK):
        end = start + BLOCK
        queries, keys = q[..., start:end, :], k[..., :end, :]
        rows, columns = queries.shape[-2], keys.shape[-2]
        mask = jnp.tri(rows, columns, columns - rows, dtype=bool)  # the queries are those of the last keys
        parts.append(attend(queries, keys, v[..., :end, :], mask))
    return jnp.concatenate(parts, axis=-2)


def attend_kept(
    query: Heads,
    key: Heads,
    value: Heads,
    kept: Float[Array, "2 batch heads tokens width"],
    at: Int[Array, ""],
) -> tuple[Heads, Float[Array, "2 batch heads 1 width"]]:
    """The attention of the token `at` [batch, 1, heads, width] to itself and the `kept` tokens before it, and
    the token's key and value [2, batch, heads, 1, width].

    The new key and value are not written into `kept` before, as this would copy all of it.
    """
    query, key, value = (jnp.swapaxes(part, 1, 2) for part in (query, key, value))

    def scores(keys):
        products = jnp.matmul(query, jnp.swapaxes(keys, -1, -2), preferred_element_type=jnp.float32)
        return products / math.sqrt(query.shape[-1])

    keys, values = kept
    before = jnp.where(jnp.arange(keys.shape[-2]) < at, scores(keys), -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([before, scores(key)], axis=-1)).astype(value.dtype)
    out = weights[..., :-1] @ values + weights[..., -1:] * value
    return jnp.swapaxes(out, 1, 2), jnp.stack([key, value])


def scaled(levels: Int[Array, "*any"], vocab_size: int) -> Float[Array, "*any"]:
    """The levels as values in [−1, 1]."""
    return (2.0 * levels.astype(jnp.float32) + 1.0) / vocab_size - 1.0


class Causal(nn.Module, Component):
    """A causal network over the values of an image.

    Attributes:
      shape: height, width and channels of an image.
      vocab_size: number of levels of a value.
      unroll: whether equal layers are compiled one by one and not as a loop. A network without equal layers
        ignores it.
    """

    shape: tuple[int, int, int]
    vocab_size: int
    unroll: bool

    @property
    def tokens(self) -> int:
        """The number of values of an image."""
        return math.prod(self.shape)

    def roles(self, params: PyTree) -> PyTree[Role]:
        """The role of each parameter for the optimiser; without matrices, Muon refuses the network."""
        return alike(params, Role())

    def __call__(
        self,
        levels: Int[Array, "batch tokens"],
        condition: Float[Array, "batch size"] | None = None,
        keys: Keys = None,
    ) -> Float[Array, "batch tokens vocab_size"]:
        """The logits, with dropout if there are `keys`."""
        raise NotImplementedError

    def nothing(self, batch: int) -> PyTree:
        """What is kept before the first `step`."""
        raise NotImplementedError

    def step(
        self,
        level: Int[Array, "batch"],
        kept: PyTree,
        at: Int[Array, ""],
        condition: Float[Array, "batch size"] | None = None,
    ) -> tuple[Float[Array, "batch vocab_size"], PyTree]:
        """The logits of the value `at`, and what is kept for the next step.

        Args:
          level: level of the value before `at`; arbitrary if `at` is 0.
          kept: what the earlier steps kept.
        """
        raise NotImplementedError


class CausalTransformer(Causal):
    """A causal transformer over the values of an image, with dropout of each layer's two residual branches.
    The logits are initialised to zero.

    Attributes:
      depth: number of layers.
      width: number of channels of a layer.
      dropout: share of a layer's activations that is dropped.
      heads: number of attention heads.
      dtype: type of the matrix products: float32 or bfloat16. Parameters are float32.
      remat: what a layer keeps for its gradient: none, dots or block (layers.remat).
    """

    depth: int = 4
    width: int = 64
    dropout: float = 0.1
    heads: int = 1
    dtype: str = "float32"
    remat: str = "dots"

    def check(self) -> None:
        check_layers(self.depth, self.width, self.dropout, self.dtype)
        check_heads(self.heads, self.width)
        choose("remat", self.remat, REMAT)

    def roles(self, params: PyTree) -> PyTree[Role]:
        return matrices_of_loops(params, "layers")

    def setup(self):
        self.level = nn.Embed(self.vocab_size, self.width)
        self.value = nn.Dense(self.width)
        self.position = self.param("position", nn.initializers.normal(1.0), (self.tokens, self.width))
        self.told = nn.Dense(self.width)  # embeds the condition; checkpoints contain this name
        in_axes = (0, 0, nn.broadcast, nn.broadcast)
        layers = scan(Layer, self.depth, self.remat, self.unroll, in_axes)
        self.layers = layers(self.heads, self.dropout, jnp.dtype(self.dtype))
        self.norm = nn.LayerNorm(dtype=jnp.float32)
        self.logits = nn.Dense(self.vocab_size, kernel_init=ZEROS)

    def __call__(self, levels, condition=None, keys=None):
        before = jnp.pad(self._embed(levels[:, :-1]), ((0, 0), (1, 0), (0, 0)))
        return self._read(before + self.position, condition, keys=keys)[0]

    def nothing(self, batch: int) -> Float[Array, "depth 2 batch heads tokens width_of_head"]:
        """The empty keys and values before the first `step`."""
        shape = (self.depth, 2, batch, self.heads, self.tokens, self.width // self.heads)
        return jnp.zeros(shape, self.dtype)

    def step(self, level, kept, at, condition=None):
        """`kept` are the keys and values of the tokens before `at`."""
        before = jnp.where(at == 0, 0.0, self._embed(level))
        logits, own = self._read((before + self.position[at])[:, None], condition, kept, at)
        return logits[:, 0], jax.lax.dynamic_update_slice_in_dim(kept, own, at, axis=4)

    def _embed(self, levels):
        """Maps […] to […, width]: the sum of an embedding of the level and, so that near levels are similar,
        an embedding of its value in [−1, 1]."""
        return self.level(levels) + self.value(scaled(levels[..., None], self.vocab_size))

    def _read(self, h, condition, kept=None, at=None, keys=None):
        if condition is not None:
            h += self.told(condition)[:, None]
        h, own = self.layers(h.astype(self.dtype), jnp.arange(self.depth), kept, at, keys)
        return self.logits(self.norm(h)), own
