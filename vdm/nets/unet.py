"""The paper's U-Net, which never changes resolution (VDM app. B).

It has `depth` residual blocks on the way down, two in the middle and `depth + 1` on the way up. Each block on
the way up also gets the input, or the output, of a block on the way down. The blocks of one direction are
equal, so they are one scanned block with stacked parameters: compile time does not grow with depth. Only on a
GPU they are compiled one by one (Network.unrolled_on).
"""

import functools
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vdm.component import choose
from vdm.errors import UserError
from vdm.nets.conv import Conv, Filters, convolve_on_cpu
from vdm.nets.group_norm import Affine, GroupNorm, NormedConv, convolve_normed, normalise_on_cpu, over_images
from vdm.nets.layers import (
    ZEROS,
    Attention,
    Embedding,
    dropped,
    fourier_features,
    kept,
    layer_keys,
    product_of_parts,
    remat,
    scan,
)
from vdm.nets.network import Layered, check_heads
from vdm.parameters import Role, by_path
from vdm.runtime import devices


class Block(nn.Module):
    """A residual branch of norm, swish and convolution, twice; the embedding is added in between.

    Its input is the concatenation of all `parts` along the channels. `shift` is the projected embedding, if
    it was already computed.
    """

    width: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, parts, embedding, shift, keys):
        inputs = sum(part.shape[-1] for part in parts)
        norm_0 = Affine(name="GroupNorm_0")(inputs)
        conv_0 = Filters(self.width, name="Conv_0")(inputs)
        if shift is None:
            shift = nn.Dense(self.width, use_bias=False, kernel_init=ZEROS)(embedding)
        norm_1 = Affine(name="GroupNorm_1")(self.width)
        conv_1 = Filters(self.width, ZEROS, name="Conv_1")(self.width)
        mix = None
        if len(parts) > 1:
            kernel = self.param("shortcut", nn.initializers.lecun_normal(), (inputs, self.width))
            mix = kernel, self.param("shortcut_bias", ZEROS, (self.width,))
        keep = kept((*parts[0].shape[:-1], self.width), self.dropout, keys)
        run = self.on_cpu if devices.platform() == "cpu" else self.on_accelerator
        return run(parts, norm_0, conv_0, shift, norm_1, conv_1, mix, keep)

    @nn.nowrap
    def on_cpu(self, parts, norm_0, conv_0, shift, norm_1, conv_1, mix, keep):
        normed = normalise_on_cpu(nn.silu, parts, *norm_0)
        h = product_of_parts(convolve_on_cpu, normed, *conv_0, self.dtype)
        h += shift[:, None, None, :].astype(self.dtype)
        (h,) = normalise_on_cpu(nn.silu, [h], *norm_1)
        if keep is not None:
            h = dropped(h, keep, self.dropout)
        h = product_of_parts(convolve_on_cpu, [h], *conv_1, self.dtype)
        if mix is None:
            return h + parts[0]
        # One row per pixel: a product of two matrices runs at full speed, one over four axes does not.
        rows = [part.reshape(-1, part.shape[-1]) for part in parts]
        return h + product_of_parts(jnp.matmul, rows, *mix, self.dtype).reshape(h.shape)

    @nn.nowrap
    def on_accelerator(self, parts, norm_0, conv_0, shift, norm_1, conv_1, mix, keep):
        """Computes the block in few kernels, which store little for the gradient."""
        vectors = *norm_0, conv_0[1], *norm_1, conv_1[1] + (0.0 if mix is None else mix[1])
        scale_0, bias_0, added_0, scale_1, bias_1, added_1 = over_images(len(shift), *vectors)
        narrow = functools.partial(jax.tree.map, lambda value: value.astype(self.dtype))
        first = NormedConv(
            scale_0, bias_0, narrow(conv_0[0]), shortcut=None if mix is None else narrow(mix[0])
        )
        second = NormedConv(scale_1, bias_1, narrow(conv_1[0]), added=added_1)
        h, residual = convolve_normed(0.0, narrow(tuple(parts)), None, first, None)
        h, _ = convolve_normed(self.dropout, (h,), added_0 + shift, second, keep)
        return h + residual


class AttentionBlock(nn.Module):
    """Attention over all pixels, as a residual branch."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h):
        batch, height, width, channels = h.shape
        normed = GroupNorm()(h)
        tokens = normed.reshape(batch, height * width, channels)
        return h + Attention(self.heads, self.dtype)(tokens).reshape(h.shape)


class Layer(nn.Module):
    """One iteration of the scan: a block, with attention after it if attention is everywhere.

    On the way down it also returns its input, which a block on the way up receives. If that input is already
    `known`, h contributes only its gradient.
    """

    width: int
    dropout: float
    heads: int
    attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h, skip, known, layer, shift, embedding, keys):
        h = given = devices.by_batch(h if known is None else with_gradient_of(known, h))
        parts = (h,) if skip is None else (h, skip)
        h = Block(self.width, self.dropout, self.dtype)(parts, embedding, shift, layer_keys(keys, layer))
        if self.attention:
            h = AttentionBlock(self.heads, self.dtype)(h)
        return h, given if skip is None else None


@jax.custom_vjp
def with_gradient_of(value, h):
    """`value`, with its gradient passed to h; only for first derivatives, as a second derivative would lack
    the part of `value`."""
    del h
    return value


@jax.custom_jvp
def once(value, *sources):
    """`value`, which can be differentiated neither directly nor with respect to `sources`.

    Raises:
      UserError: the result is differentiated.
    """
    del sources
    return value


@once.defjvp
def _(primals, tangents):
    raise UserError(
        "config.model.net.remat is 'block', which has only first derivatives; accepted for second ones: "
        "'none', 'dots'."
    )


# A second derivative goes through the value, which is constant there, or through the gradient.
with_gradient_of.defvjp(lambda value, h: (once(value, h), None), lambda _, gradient: (None, once(gradient)))


MIDDLE = ("middle_0", "middle_attention", "middle_1")


class UNet(Layered):
    """The paper's U-Net of one resolution (VDM app. B), with dropout of each block's inner activations.

    Attributes:
      attention: where attention is applied: middle, or everywhere.
      heads: number of attention heads.
    """

    attention: str = "middle"
    heads: int = 1

    heavy: ClassVar[bool] = True
    unrolled_on: ClassVar[str] = "gpu"

    def check(self) -> None:
        super().check()
        choose("attention", self.attention, ("middle", "everywhere"))
        check_heads(self.heads, self.width)

    def roles(self, params: PyTree) -> PyTree[Role]:
        """The kernels of the blocks' convolutions and dense layers are matrices: a convolution sums over
        rows, columns and channels."""

        def role_of(names, value):
            if names[-1] not in ("kernel", "shortcut") or not set(names) & {
                "down",
                "up",
                "up_first",
                *MIDDLE,
            }:
                return Role()
            first = 1 if set(names) & {"down", "up"} else 0  # the axis of layers in a loop
            last = value.ndim - 1
            return Role(matrix=(tuple(range(first, last)), (last,)))

        return by_path(params, role_of)

    @nn.compact
    def __call__(self, z, time, condition=None, keys=None):
        dtype = jnp.dtype(self.dtype)
        embedding = Embedding(self.width)(time, condition)
        h = Conv(self.width, name="conv_in")(fourier_features(z, self.frequencies))
        h = h.astype(dtype)

        everywhere = self.attention == "everywhere"
        layer_args = (self.width, self.dropout, self.heads, everywhere, dtype)
        in_axes = (0, 0, 0, 0, nn.broadcast, nn.broadcast)
        numbers = jnp.arange(self.depth)

        # In a loop a block keeps only its input; of blocks compiled one by one, XLA would keep more.
        unroll = self.unroll and self.remat != "block"
        kept_of_one = "none" if unroll else self.remat

        def layers(name, **options):
            made = scan(Layer, self.depth, self.remat, unroll, in_axes, **options)
            return made(*layer_args, name=name)

        def shifts(name):
            """The shifts of all blocks of a direction, in one matrix product instead of one per block."""
            if not unroll or self.is_initializing():
                return None
            kernels = self.variables["params"][name]["Block_0"]["Dense_0"]["kernel"]
            return jnp.einsum("be,lef->lbf", embedding, kernels)

        def block(name, h, layer):
            made = remat(Block, kept_of_one, in_loop=False)(self.width, self.dropout, dtype, name=name)
            return made((h,), embedding, None, layer_keys(keys, layer))

        middle = self.depth
        down = layers("down")
        last, skips = down(h, None, None, numbers, shifts("down"), embedding, keys)
        if self.remat == "block" and not self.is_initializing():
            # The loop would keep each block's input twice, as a skip and for the backward pass. So the loop
            # is run again with the skips as known inputs: of this second run only the backward pass is
            # computed, and of the first run only the forward pass.
            known = jax.lax.stop_gradient((last, skips))
            again = down(h, None, known[1], numbers, None, embedding, keys)
            last, skips = map(with_gradient_of, known, again)
        h = last
        h = block("middle_0", h, middle)
        h = AttentionBlock(self.heads, dtype, name="middle_attention")(h)
        h = block("middle_1", h, middle + 1)
        first = remat(Layer, kept_of_one, in_loop=False)(*layer_args, name="up_first")
        h, _ = first(h, last, None, middle + 2, None, embedding, keys)
        h, _ = layers("up", reverse=True)(h, skips, None, middle + 3 + numbers, shifts("up"), embedding, keys)

        h = GroupNorm(nn.silu)(h.astype(jnp.float32))
        return Conv(self.out_channels, kernel_init=ZEROS, name="conv_out")(h)
