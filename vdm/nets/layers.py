"""What the networks share: embeddings, Fourier features, dropout, attention.

Nothing here knows of diffusion: a network maps images z [batch, height, width, channels]
to images, given `time` [batch] in about [0, 1], a `condition` [batch, k] or None, and,
when dropout is on, `keys` [batch], one random key for each example.

A network has a `dtype`, of its products and of what lies between its layers. Parameters,
embeddings, Fourier features, the sums in norms, and what comes out are float32 always.
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
    """z with sin and cos of 2π f z appended for each f (VDM app. C.3): more channels.

    f counts cycles per unit of z. At half the number of levels in [−1, 1] one cycle spans
    one level, so these features say where between two levels a value lies.
    """
    angles = [2.0 * jnp.pi * f * z for f in frequencies]
    return jnp.concatenate([z, *map(jnp.sin, angles), *map(jnp.cos, angles)], axis=-1)


@jax.custom_vjp
def swish(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """x · sigmoid(x), as ½x (1 + tanh ½x), to the rounding of x.

    Its gradient computes the tanh again. Autodiff would keep the sigmoid beside x, and to write it and read
    it again takes longer on a CPU.
    """
    half = 0.5 * x
    return half + half * jnp.tanh(half)


def _of_swish(x, dy):
    half = 0.5 * jax.lax.optimization_barrier(x)  # or XLA would keep the tanh of the forward pass
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
    """Zeroes a share `rate` of each example, drawn with its own key; h itself without keys.

    Each value is given 16 random bits, not the 32 of a uniform: half the cost, and a rate
    that is exact to 2^-16.
    """
    keep = kept(h.shape, rate, keys)
    return h if keep is None else dropped(h, keep, rate)


def kept(shape: tuple[int, ...], rate: float, keys: Keys) -> Bool[Array, "batch *any"] | None:
    """What dropout keeps of an array of this shape; None for all of it."""
    if keys is None or rate == 0:
        return None
    size = math.prod(shape[1:])

    def keep(key):
        words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size]
        return (bits >= _threshold(rate)).reshape(shape[1:])

    return checkpoint_name(jax.vmap(keep)(keys), PRODUCT)


def dropped(h: Array, keep: Array, rate: float) -> Array:
    """h where it is kept, larger by what is lost."""
    return jnp.where(keep, h * (1.0 / (1.0 - _threshold(rate) / 2**16)), 0.0)


def _threshold(rate):
    return round(rate * 2**16)


def layer_keys(keys: Keys, layer: int | Array) -> Keys:
    """Keys for the layer of that number; None stays None."""
    if keys is None:
        return None
    return randomness.fold_in(keys, jnp.broadcast_to(layer, keys.shape))


class Attention(nn.Module):
    """Self-attention among the tokens of h [batch, tokens, width]; its last layer starts at 0.

    How much each token looks at each other, [batch, heads, tokens, tokens], is computed again in
    the backward pass, not kept, but on a CPU where it is small.
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
    """The fastest here, for heads of this width."""
    platform = devices.platform()
    if platform == "cpu":
        return attend_on_cpu
    if platform == "gpu" and dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128:  # what cuDNN takes
        return functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return jax.checkpoint(jax.nn.dot_product_attention)


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Softmax attention, divided by the softmax's sum at the end: all [..., tokens, width]. `mask`,
    [queries, keys], says which key each query may look at."""
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
    """jax.nn.dot_product_attention, in an order that is twice as
    fast on a CPU: few images at a time, each by `one`."""
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
    """product(h, kernel) + bias, where h is all `parts` side by side as channels: but they are
    never put there, as it is the sum of each part's product with its share of the kernel."""
    ends = list(itertools.accumulate(part.shape[-1] for part in parts))[:-1]
    kernels = jnp.split(kernel.astype(dtype), ends, axis=-2)
    whole = sum(product(part.astype(dtype), share) for part, share in zip(parts, kernels))
    return checkpoint_name(whole, PRODUCT) + bias.astype(dtype)


# The name, for jax.checkpoint, of what costs much to compute again: a product, a sum over pixels,
# random bits.
PRODUCT = "product"


def remat(layer: type[nn.Module], kept: str, in_loop: bool = True) -> type[nn.Module]:
    """The module class `layer`, with this kept of each call of it for the backward pass:

    none: all that autodiff keeps, save in norms and attention, which never keep what they can
    compute again. dots: the products, the sums over pixels and the random bits, and the rest is
    computed again. block: nothing but its input (a U-Net then has first derivatives only).
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
    """The module class of `length` layers alike, one after another, with stacked parameters.

    Args:
      layer: a module class, whose call maps (h, *inputs) to (h, output).
      kept: as in `remat`, where they are a loop.
      unroll: whether they are compiled one by one, not as a loop; it is the same function. What
        is kept is left to XLA then.
      in_axes: of each input, 0 where it is stacked too, or nn.broadcast.
      **options: more of nn.scan.
    """
    return nn.scan(
        layer if unroll else remat(layer, kept),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
        unroll=length if unroll else 1,
        check_constancy_invariants=False,  # which would trace each layer once more
        **options,
    )


def fold(image: Image, side: int) -> Float[Array, "batch rows columns more"]:
    """Squares of side × side pixels as channels."""
    batch, height, width, channels = image.shape
    image = image.reshape(batch, height // side, side, width // side, side, channels)
    return image.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // side, width // side, -1)


def unfold(folded: Float[Array, "batch rows columns more"], side: int) -> Image:
    """The inverse of `fold`."""
    batch, rows, columns, _ = folded.shape
    image = folded.reshape(batch, rows, columns, side, side, -1).transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(batch, rows * side, columns * side, -1)
