"""A 3 × 3 convolution, with gradients in forms that are fast on CPUs, too."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.arrays import Image
from vdm.nets.layers import product_of_parts
from vdm.runtime import devices

Kernel = Float[Array, "3 3 inputs outputs"]

LAYOUT = ("NHWC", "HWIO", "NHWC")


class Filters(nn.Module):
    """The parameters of a convolution: its kernel and its bias.

    Attributes:
      features: number of channels of the result.
    """

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, channels: int) -> tuple[Kernel, Float[Array, "features"]]:
        kernel = self.param("kernel", self.kernel_init, (3, 3, channels, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Conv(Filters):
    """Maps images [batch, height, width, channels] to [batch, height, width, features], with zero padding.

    Attributes:
      dtype: type of the computation and of the result; parameters are float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: Image) -> Image:
        kernel, bias = super().__call__(h.shape[-1])
        convolve = convolve_on_cpu if devices.platform() == "cpu" else convolve_3x3
        return product_of_parts(convolve, [h], kernel, bias, self.dtype)


def convolve_3x3(h: Image, kernel: Kernel) -> Image:
    """The convolution of an image with zero padding."""
    return jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


@jax.custom_vjp
def convolve_on_cpu(h: Image, kernel: Kernel) -> Image:
    """`convolve_3x3`, in forms that XLA's CPU backend runs fast, also inside a loop.

    XLA's CPU backend has two libraries for convolutions, and both require operands in the layout LAYOUT; any
    other layout, such as that of the gradients, is a hundred times slower in a loop. For fewer than 96
    channels it selects the slower library, which uses a single core, unless the result is larger than h:
    hence the extra row, which is cut off.
    """
    taller = ((1, 2), (1, 1))
    out = jax.lax.conv_general_dilated(h, kernel, (1, 1), taller, dimension_numbers=LAYOUT)
    return out[:, :-1]


def _forward(h, kernel):
    return convolve_on_cpu(h, kernel), (h, kernel)


def _backward(saved, dy):
    """The gradient of h is a convolution with the layout of the forward one."""
    h, kernel = saved
    turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    # The barrier keeps XLA from merging the transposition into the convolution's layout.
    return convolve_on_cpu(dy, jax.lax.optimization_barrier(turned)), _of_kernel(h, dy)


def _of_kernel(h, dy):
    """The gradient of the kernel, as products of two matrices.

    dk[i, j] = Σ_{r, c} h[r + i − 1, c + j − 1]ᵀ dy[r, c], summed over images. The shifts of h along the
    columns by each j, and those of dy along the rows by each i, are concatenated as channels. One matrix
    product then gives all nine dk[i, j], and neither array is copied nine times. Few images are processed at
    a time, so that the copies stay in the cache.
    """
    batch, rows, columns, channels = h.shape
    features = dy.shape[-1]
    few = math.gcd(batch, max(1, 2048 // (rows * columns)))

    def add(total, part):
        h, dy = part
        wide = jnp.pad(h, ((0, 0), (0, 0), (1, 1), (0, 0)))
        wide = jnp.concatenate([wide[:, :, j : j + columns] for j in range(3)], axis=-1)
        tall = jnp.pad(dy, ((0, 0), (1, 1), (0, 0), (0, 0)))
        tall = jnp.concatenate([tall[:, 2 - i : 2 - i + rows] for i in range(3)], axis=-1)
        product = jnp.matmul(
            wide.reshape(-1, 3 * channels).T,
            tall.reshape(-1, 3 * features),
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    parts = jax.tree.map(lambda v: v.reshape(-1, few, *v.shape[1:]), (h, dy))
    total, _ = jax.lax.scan(add, jnp.zeros((3 * channels, 3 * features)), parts)
    total = total.reshape(3, channels, 3, features).transpose(2, 0, 1, 3)
    return total.astype(h.dtype)


convolve_on_cpu.defvjp(_forward, _backward)
