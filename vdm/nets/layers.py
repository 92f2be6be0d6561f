"""Building blocks of the networks: embeddings, Fourier features, dropout, attention.

They are independent of diffusion: a network maps images z [batch, height, width, channels] to images, given
`time` [batch] in about [0, 1], a `condition` [batch, k] or None, and, with dropout, `keys` [batch], one
random key for each example.

The `dtype` of a network is the type of its matrix products and activations. Parameters, embeddings, Fourier
features, the sums in norms, and the output are always float32.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
from typing import Any

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vdm.arrays import Image
from vdm.runtime import devices, randomness

ZEROS = nn.initializers.zeros

Heads = Float[Array, "batch tokens heads width"]
Keys = Key[Array, "batch"] | None


def sinusoids(time: Float[Array, "batch"], width: int) -> Float[Array, "batch width"]:
    """Sine and cosine of `time` at width/2 frequencies."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - 1))
    angles = 1000.0 * time[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_features(
    z: Float[Array, "batch height width channels"], frequencies: Sequence[float]
) -> Float[Array, "batch height width more"]:
    """z with sin and cos of 2π f z appended as channels for each f (VDM app. C.3).

    f counts cycles per unit of z. At half the number of levels in [−1, 1] one cycle spans one level, so that
    these features locate a value between two levels.
    """
    angles = [2.0 * jnp.pi * f * z for f in frequencies]
    return jnp.concatenate([z, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1)


@jax.custom_vjp
def swish(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """x · sigmoid(x), computed as ½x (1 + tanh ½x), up to the rounding of x.

    Its gradient recomputes the tanh. Autodiff would keep the sigmoid, and on a CPU writing and reading it
    takes longer.
    """
    half = 0.5 * x
    return half + half * jnp.tanh(half)


def _of_swish(x, dy):
    half = 0.5 * jax.lax.optimization_barrier(x)  # otherwise XLA keeps the tanh of the forward pass
    tanh = jnp.tanh(half)
    return (0.5 * dy * (1.0 + tanh) * (1.0 + half * (1.0 - tanh)),)


swish.defvjp(lambda x: (swish(x), x), _of_swish)


class Embedding(nn.Module):
    """`time` and `condition` as one vector (VDM app. B)."""

    width: int

    @nn.compact
    def __call__(
        self, time: Float[Array, "batch"], condition: Float[Array, "batch size"] | None
    ) -> Float[Array, "batch 4*width"]:
        parts = [sinusoids(time, self.width)]
        if condition is not None:
            parts.append(condition)
        h = nn.silu(nn.Dense(4 * self.width)(jnp.concatenate(parts, axis=-1)))
        return nn.silu(nn.Dense(4 * self.width)(h))


def dropout(h: Float[Array, "batch *any"], rate: float, keys: Keys) -> Float[Array, "batch *any"]:
    """Zeroes a share `rate` of each example, drawn with its key; returns h without keys.

    Each value gets 16 random bits instead of 32: half the cost, and a rate that is exact to 2^-16.
    """
    keep = kept(h.shape, rate, keys)
    return h if keep is None else dropped(h, keep, rate)


def kept(shape: tuple[int, ...], rate: float, keys: Keys) -> Bool[Array, "batch *any"] | None:
    """The mask of the values that dropout keeps; None to keep all."""
    if keys is None or rate == 0:
        return None
    size = math.prod(shape[1:])

    def keep(key):
        words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
        return (bits >= _threshold(rate)).reshape(shape[1:])

    return checkpoint_name(jax.vmap(keep)(keys), PRODUCT)


def dropped(h: Array, keep: Array, rate: float) -> Array:
    """h where `keep` is True, divided by the share that is kept."""
    return jnp.where(keep, h * (1.0 / (1.0 - _threshold(rate) / 2**16)), 0.0)


def _threshold(rate):
    return round(rate * 2**16)


def layer_keys(keys: Keys, layer: int | Array) -> Keys:
    """Keys for the layer with the index `layer`; None stays None."""
    if keys is None:
        return None
    return randomness.fold_in(keys, jnp.broadcast_to(layer, keys.shape))


class Attention(nn.Module):
    """Self-attention among the tokens of h [batch, tokens, width]; its last layer is initialised to 0.

    The attention weights, [batch, heads, tokens, tokens], are recomputed in the backward pass, except on a
    CPU if they are small.
    """

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        batch, tokens, width = h.shape
        flat = h.reshape(-1, width)
        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(flat)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, -1)
        fast = _attention(width // self.heads, self.dtype)
        out = fast(*(qkv[:, :, i] for i in range(3))).reshape(-1, width)
        out = checkpoint_name(out, PRODUCT)
        out = nn.Dense(width, dtype=self.dtype, kernel_init=ZEROS, name="out")(out)
        return out.reshape(h.shape)


def _attention(width, dtype):
    """The fastest implementation on this platform, for heads of this width."""
    platform = devices.platform()
    if platform == "cpu":
        return attend_on_cpu
    if platform == "gpu" and dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128:  # accepted by cuDNN
        return functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return jax.checkpoint(jax.nn.dot_product_attention)


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Softmax attention of [..., tokens, width], divided by the softmax's sum at the end. `mask`,
    [queries, keys], is True where a query attends to a key."""
    scores = jnp.matmul(q, jnp.swapaxes(k, -1, -2), preferred_element_type=jnp.float32)
    scores /= math.sqrt(q.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights.astype(v.dtype) @ v / total).astype(v.dtype)


def attend_on_cpu(
    query: Heads, key: Heads, value: Heads, one: Callable[[Array, Array, Array], Array] = attend
) -> Heads:
    """jax.nn.dot_product_attention, in an order that is twice as fast on a CPU: calls `one` for few images at
    a time."""
    by_head = [jnp.swapaxes(part, 1, 2) for part in (query, key, value)]
    tokens, heads = query.shape[1:3]
    images = max(1, 2**20 // (heads * tokens**2))
    if images >= query.shape[0]:
        out = one(*by_head)
    else:
        mapped = jax.checkpoint(lambda qkv: one(*qkv))
        out = jax.lax.map(mapped, tuple(by_head), batch_size=images)
    return jnp.swapaxes(out, 1, 2)


def product_of_parts(
    product: Callable[[Array, Array], Array],
    parts: Sequence[Array],
    kernel: Array,
    bias: Array,
    dtype: jnp.dtype,
) -> Array:
    """product(h, kernel) + bias, where h is the concatenation of `parts` along the channels. h is never
    built: the result is the sum of each part's product with its share of the kernel."""
    ends = list(itertools.accumulate(part.shape[-1] for part in parts))[:-1]
    kernels = jnp.split(kernel.astype(dtype), ends, axis=-2)
    whole = sum(product(part.astype(dtype), share) for part, share in zip(parts, kernels))
    return checkpoint_name(whole, PRODUCT) + bias.astype(dtype)


# The name, for jax.checkpoint, of values that are expensive to recompute: matrix products, sums over pixels,
# random bits.
PRODUCT = "product"


def remat(layer: type[nn.Module], kept: str, in_loop: bool = True) -> type[nn.Module]:
    """The module class `layer`, whose calls keep for the backward pass, depending on `kept`:

    none: all that autodiff keeps, except in norms and attention, which always recompute. dots: the matrix
    products, the sums over pixels and the random bits; the rest is recomputed. block: only the layer's input
    (a U-Net then has only first derivatives).
    """
    if kept == "none":
        return layer
    policies = jax.checkpoint_policies
    dots = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(PRODUCT)
    )
    policy = dots if kept == "dots" else None
    return nn.remat(layer, prevent_cse=not in_loop, policy=policy)


def scan(
    layer: type[nn.Module], length: int, kept: str, unroll: bool, in_axes: Any, **options: Any
) -> type[nn.Module]:
    """The module class of `length` equal layers in sequence, with stacked parameters.

    Args:
      layer: a module class, whose call maps (h, *inputs) to (h, output).
      kept: as in `remat`, for a loop.
      unroll: whether the layers are compiled one by one, and not as a loop; the function is the same, and XLA
        then decides what to keep.
      in_axes: for each input, 0 if it is stacked, too, or nn.broadcast.
      **options: further options of nn.scan.
    """
    return nn.scan(
        layer if unroll else remat(layer, kept),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
        unroll=length if unroll else 1,
        check_constancy_invariants=False,  # the check would trace each layer again
        **options,
    )


def fold(image: Image, side: int) -> Float[Array, "batch rows columns more"]:
    """Turns squares of side × side pixels into channels."""
    batch, height, width, channels = image.shape
    image = image.reshape(batch, height // side, side, width // side, side, channels)
    return image.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)


def unfold(folded: Float[Array, "batch rows columns more"], side: int) -> Image:
    """The inverse of `fold`."""
    batch, rows, columns, _ = folded.shape
    image = folded.reshape(batch, rows, columns, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(batch, rows * side, columns * side, -1)
