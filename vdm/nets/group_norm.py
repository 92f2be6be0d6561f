"""Group normalisation (Wu & He 2018), in one form for CPUs and one for accelerators.

Images [batch, height, width, channels] are brought to mean 0 and variance 1 over the pixels and channels of
each group, then scaled and shifted by channel: activation(h · a + b). Sums are first taken by channel, so
that only [batch, channels] is split into groups. The backward pass recomputes intermediate values, which is
cheaper than storing them.

There are 32 groups as in the paper, or fewer if a group would have less than 4 channels: with 1 channel per
group, the norm would remove the embedding, which is constant over each channel.
"""

from collections.abc import Callable
import functools
import itertools
import math
from typing import NamedTuple

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vdm.arrays import Image
from vdm.nets.conv import Kernel, convolve_3x3
from vdm.nets.layers import PRODUCT, ZEROS, dropped
from vdm.runtime import devices

Activation = Callable[[Array], Array]
Vector = Float[Array, "*batch channels"]  # one for all images, or one for each


class Affine(nn.Module):
    """The parameters of a norm: scale and bias of each channel."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
        scale = self.param("scale", nn.initializers.ones, (channels,))
        return scale, self.param("bias", ZEROS, (channels,))


class GroupNorm(Affine):
    """Normalises images and applies `activation`."""

    activation: Activation = lambda h: h

    @nn.compact
    def __call__(self, h: Image) -> Image:
        scale, bias = super().__call__(h.shape[-1])
        if devices.platform() == "cpu":
            return normalise_on_cpu(self.activation, [h], scale, bias)[0]
        return normalise(self.activation, h, scale, bias)


def _groups(channels):
    return math.gcd(32, max(1, channels // 4))


def normalise_on_cpu(activation: Activation, parts: list[Image], scale: Vector, bias: Vector) -> list[Image]:
    """Normalises the concatenated channels of all `parts`; returns the result in the same parts."""
    sizes = [part.shape[-1] for part in parts]
    channels = sum(sizes)
    groups = _groups(channels)

    def by_group(power):
        by_channel = [jnp.mean(p.astype(jnp.float32) ** power, axis=(1, 2)) for p in parts]
        grouped = jnp.concatenate(by_channel, axis=-1).reshape(-1, groups, channels // groups)
        return jnp.repeat(grouped.mean(axis=-1), channels // groups, axis=-1)

    mean, square = checkpoint_name((by_group(1), by_group(2)), PRODUCT)
    a = scale * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + 1e-6)
    b = bias - mean * a

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def apply(h, a, b):
        return activation(h * a[:, None, None] + b[:, None, None]).astype(h.dtype)

    ends = list(itertools.accumulate(sizes))[:-1]
    return [apply(*of) for of in zip(parts, *(jnp.split(v, ends, axis=-1) for v in (a, b)))]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise(activation: Activation, h: Image, scale: Vector, bias: Vector) -> Image:
    """For accelerators: one pass over h for its sums and one to apply them, forward and backward."""
    return _normalise(activation, h, scale, bias)[0]


def _normalise(activation, h, scale, bias):
    moments = _moments(h)
    out = activation(_apply(h, *_affine(moments, None, scale, bias))).astype(h.dtype)
    return out, (h, moments, scale, bias)


def _of_normalise(activation, saved, dy):
    h, moments, scale, bias = saved
    dh, _, dscale, dbias = _gradients(activation, h, moments, None, scale, bias, dy)
    return dh.astype(h.dtype), dscale, dbias


normalise.defvjp(_normalise, _of_normalise)


def _moments(h):
    wide = h.astype(jnp.float32)
    return checkpoint_name((jnp.mean(wide, axis=(1, 2)), jnp.mean(jnp.square(wide), axis=(1, 2))), PRODUCT)


def _affine(moments, offset, scale, bias):
    """a and b of each image and channel, such that h · a + b is the normalised h + offset.

    A group's few channels are added one by one, as a sum along an axis would be a separate kernel.
    """
    mean, square = moments
    if offset is not None:
        mean, square = mean + offset, square + offset * (2.0 * mean + offset)

    def by_group(of_channels):
        grouped = of_channels.reshape(of_channels.shape[0], _groups(of_channels.shape[-1]), -1)
        size = grouped.shape[-1]
        return jnp.repeat(sum(grouped[..., k] for k in range(size)) / size, size, axis=-1)

    mean, square = map(by_group, (mean, square))
    a = scale * jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + 1e-6)
    return a, bias + a * (-mean if offset is None else offset - mean)


def _apply(h, a, b):
    return h.astype(jnp.float32) * a[:, None, None] + b[:, None, None]


def _gradients(activation, h, moments, offset, scale, bias, dy, others=()):
    """The gradients of h, in float32, and of the offset, scale and bias.

    Zero times the `others`, gradients of parameters, is added to the gradient of h, so that it waits for
    them: otherwise XLA would postpone the `others`, and keep their inputs in memory until then. XLA does not
    simplify 0 · x, as x may be infinite.
    """
    (a, b), of_affine = jax.vjp(_affine, moments, offset, scale, bias)
    _, of_activation = jax.vjp(activation, _apply(h, a, b))
    (du,), wide = of_activation(dy.astype(jnp.float32)), h.astype(jnp.float32)
    (dmean, dsquare), *rest = of_affine((jnp.sum(du * wide, axis=(1, 2)), jnp.sum(du, axis=(1, 2))))
    of_pixel = lambda by_channel: by_channel[:, None, None] / (h.shape[1] * h.shape[2])
    dh = du * a[:, None, None] + wide * of_pixel(2.0 * dsquare) + of_pixel(dmean)
    dh += sum(0.0 * other.ravel()[0].astype(jnp.float32) for other in others)
    return dh, *rest


class NormedConv(NamedTuple):
    """The arguments of `convolve_normed` besides images.

    Attributes:
      scale, bias: scale and bias of the norm, repeated for each image (`over_images`).
      kernel: kernel of the convolution, in the type of the computation.
      added: a vector to add after the convolution, the same for each image; None to add nothing.
      shortcut: a matrix from the input's channels to those of the result; None for the identity.
    """

    scale: Float[Array, "batch channels"]
    bias: Float[Array, "batch channels"]
    kernel: Kernel
    added: Float[Array, "batch features"] | None = None
    shortcut: Float[Array, "channels features"] | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve_normed(
    rate: float,
    parts: tuple[Image, ...],
    offset: Float[Array, "batch channels"] | None,
    params: NormedConv,
    keep: Bool[Array, "batch height width channels"] | None,
) -> tuple[Image, Image]:
    """For accelerators: applies norm, swish, dropout of a share `rate` and convolution to h + `offset`, where
    h is the concatenation of `parts` along the channels. Returns the result, and h · shortcut.

    Only the parts are kept for the backward pass. The offset is merged into the norm's a and b.
    """
    return _convolve_normed(rate, parts, offset, params, keep)[0]


def _convolve_normed(rate, parts, offset, params, keep):
    h = jnp.concatenate(parts, axis=-1)
    moments = _moments(h)
    out = convolve_3x3(_normed(rate, h, moments, offset, params, keep), params.kernel)
    out = checkpoint_name(out, PRODUCT)
    if params.added is not None:
        out += params.added[0].astype(out.dtype)
    mixed = h if params.shortcut is None else h @ params.shortcut
    return (out, mixed), (parts, moments, offset, params, keep)


def _normed(rate, h, moments, offset, params, keep):
    out = nn.silu(_apply(h, *_affine(moments, offset, params.scale, params.bias)))
    out = (out if keep is None else dropped(out, keep, rate)).astype(h.dtype)
    return jax.lax.optimization_barrier(out)  # otherwise a TPU recomputes it in each step of the convolution


def _of_convolve_normed(rate, saved, gradients):
    (parts, moments, offset, params, keep), (dy, d_mixed) = saved, gradients
    h = jnp.concatenate(jax.lax.optimization_barrier(parts), axis=-1)  # otherwise XLA keeps h
    _, of_convolution = jax.vjp(convolve_3x3, _normed(rate, h, moments, offset, params, keep), params.kernel)
    d_normed, d_kernel = of_convolution(dy)
    d_normed = jax.lax.optimization_barrier(d_normed)  # otherwise a TPU fuses it with the sums below
    d_kernel = jax.lax.optimization_barrier(d_kernel)  # or with the store into the stack of all blocks
    d_normed = d_normed if keep is None else dropped(d_normed, keep, rate)
    d_added = d_shortcut = None
    if params.added is not None:
        d_added = jnp.sum(dy.astype(jnp.float32), axis=(1, 2))
    if params.shortcut is not None:
        _, of_mix = jax.vjp(jnp.matmul, h, params.shortcut)
        d_mixed, d_shortcut = of_mix(d_mixed)
    others = [d for d in (d_kernel, d_added, d_shortcut) if d is not None]
    dh, d_offset, dscale, dbias = _gradients(
        nn.silu, h, moments, offset, params.scale, params.bias, d_normed, others
    )
    dh = (dh + d_mixed.astype(jnp.float32)).astype(h.dtype)
    ends = list(itertools.accumulate(part.shape[-1] for part in parts))[:-1]
    # Computes all gradients at once; otherwise XLA computes a skip's gradient much later, where it is used.
    d_parts = jax.lax.optimization_barrier(tuple(jnp.split(dh, ends, axis=-1)))
    return d_parts, d_offset, NormedConv(dscale, dbias, d_kernel, d_added, d_shortcut), None


convolve_normed.defvjp(_convolve_normed, _of_convolve_normed)


def over_images(batch: int, *vectors: Float[Array, "channels"]) -> list[Float[Array, "batch channels"]]:
    """Repeats each vector for each image. On accelerators, the gradients of all vectors are then summed over
    the images at once."""
    ends = list(itertools.accumulate(vector.shape[0] for vector in vectors))[:-1]
    row = jnp.concatenate(vectors)
    return jnp.split(jnp.broadcast_to(row, (batch, *row.shape)), ends, axis=-1)
