"""The floating-point operations of a model, by formula; and this machine's rate in a large matrix product."""

from collections.abc import Callable
import time
from typing import Any

import jax

from vdm.data.dataset import Spec


def unet_flops(net: Any, spec: Spec, out_channels: int, condition_size: int) -> int:
    """Floating-point operations of one forward pass of a U-Net for one image: two for each multiply-add of
    its matrix products and convolutions. All others would add about a hundredth.

    Args:
      net: config.model.net.
      condition_size: the size of the network's condition, without γ.
    """
    height, width, channels = spec.shape
    pixels, wide = height * width, net.width

    def conv(into, out):
        return 9 * pixels * into * out

    def block(into):
        shortcut = pixels * into * wide if into != wide else 0
        return conv(into, wide) + conv(wide, wide) + 4 * wide * wide + shortcut

    # The layers for queries, keys, values and output, and two products over all pairs of pixels.
    attention = 4 * pixels * wide**2 + 2 * pixels**2 * wide
    blocks = (net.depth + 2) * block(wide) + (net.depth + 1) * block(2 * wide)
    attentions = 1 if net.attention == "middle" else 2 * net.depth + 2
    embedding = 4 * wide * (wide + condition_size) + (4 * wide) ** 2
    ends = conv(channels * (1 + 2 * net.fourier), wide) + conv(wide, out_channels)
    return 2 * (blocks + attentions * attention + embedding + ends)


def pyramid_flops(net: Any, spec: Spec, in_channels: int, out_channels: int) -> int:
    """Floating-point operations of one forward pass of a pyramid for one image, counted as in `unet_flops`.

    Args:
      net: config.model.net.
      in_channels: channels of the network's input, which the parameterisation computes from z_t.
    """
    height, width, _ = spec.shape
    pixels = [height * width // (net.patch * 2**scale) ** 2 for scale in range(net.scales)]
    count = [net.depth] + [net.coarse] * (net.scales - 1)
    count = [2 * blocks for blocks in count[:-1]] + count[-1:]  # down and up, except at the last resolution
    blocks = sum(n * (18 * area * net.width**2 + 8 * net.width**2) for n, area in zip(count, pixels))
    # Between resolutions, four pixels of the finer one map to one of the coarser one, and back.
    between = sum(8 * area * net.width**2 for area in pixels[1:])
    ends = pixels[0] * net.patch**2 * net.width * (in_channels + out_channels)
    return 2 * (blocks + between + ends + 20 * net.width**2)


def matmul_rate(dtype: str, seconds: float) -> Callable[[], float]:
    """Returns a function that multiplies square matrices on all devices of this host for about `seconds`, and
    returns the floating-point operations per second."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    times = 1 if jax.default_backend() == "cpu" else 20
    fill = jax.pmap(lambda key: jax.random.normal(key, (side, side), dtype) / side**0.5)
    a = fill(jax.random.split(jax.random.key(0), jax.local_device_count()))

    def power(a):
        return jax.lax.fori_loop(0, times, lambda _, b: a @ b, a)

    multiply = jax.pmap(power)
    jax.block_until_ready(multiply(a))

    def rate():
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            jax.block_until_ready(multiply(a))
            count += 1
        return count * times * len(a) * 2.0 * side**3 / passed

    return rate
