"""A PixelCNN: causal convolutions over an image (van den Oord et al. 2016; Salimans et al. 2017).

There are two stacks of features. `above` depends on the rows above a pixel: its convolutions are shifted
down, so that no tap needs a mask. `before` depends on the rows above and on the pixels to the left. A value
depends on `before` at its pixel and on the earlier channels of its pixel. The cost per image is proportional
to the number of values, whereas that of a causal transformer grows with its square.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm.arrays import Image
from vdm.component import accept
from vdm.nets.causal import Causal, scaled
from vdm.nets.conv import Conv
from vdm.nets.layers import ZEROS, Keys, dropout, layer_keys, swish
from vdm.nets.network import check_layers
from vdm.parameters import Role, by_path
from vdm.runtime import devices

LOG_DEVIATION = (-7.0, 2.0)  # of the normal distribution over the levels, in units of x; −1 at the start


def down(image: Image, rows: int) -> Image:
    """The image, shifted down; zeros enter at the top."""
    return jnp.pad(image, ((0, 0), (rows, 0), (0, 0), (0, 0)))[:, : image.shape[1]]


def of_rows_before(conv: Conv, image: Image, rows: int) -> Image:
    """The 3 × 3 convolution, shifted down by so many rows: with two rows, a pixel depends on the three rows
    above; with one, also on its own."""
    padded = jnp.pad(image, ((0, 0), (rows, 0), (0, 0), (0, 0)))
    return conv(padded)[:, : image.shape[1]]


def right(image: Image, columns: int) -> Image:
    """The image, shifted to the right; zeros enter at the left."""
    return jnp.pad(image, ((0, 0), (0, 0), (columns, 0), (0, 0)))[:, :, : image.shape[2]]


class Block(nn.Module):
    """A residual branch of each stack; the second reads the first."""

    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, above, before, keys):
        above, before = devices.by_batch(above), devices.by_batch(before)
        width = above.shape[-1]
        out = swish(of_rows_before(Conv(width, dtype=self.dtype), swish(above), 1))
        out = dropout(out, self.dropout, layer_keys(keys, 0)).astype(self.dtype)
        above = above + of_rows_before(Conv(width, dtype=self.dtype, kernel_init=ZEROS), out, 1)
        own = swish(before)
        given = jnp.concatenate([own, right(own, 1), right(own, 2), swish(above)], axis=-1)
        out = swish(nn.Dense(width, dtype=self.dtype, name="mix")(given))
        out = dropout(out, self.dropout, layer_keys(keys, 1)).astype(self.dtype)
        return above, before + nn.Dense(width, dtype=self.dtype, kernel_init=ZEROS, name="out")(out)


class PixelCNN(Causal):
    """Causal convolutions over an image, with dropout of each layer's two residual branches.

    The distribution of a value is a discretised normal distribution times a learned factor for each level.

    Attributes:
      depth: number of layers, each of which adds four rows and two columns to those that a value depends on.
      width: number of channels of a layer.
      dropout: share of a layer's activations that is dropped.
      dtype: type of the convolutions: float32 or bfloat16. Parameters are float32.
    """

    depth: int = 4
    width: int = 64
    dropout: float = 0.1
    dtype: str = "float32"

    def check(self) -> None:
        check_layers(self.depth, self.width, self.dropout, self.dtype)
        accept("width", self.width >= 2, "2 or more")

    def roles(self, params: PyTree) -> PyTree[Role]:
        def role_of(names, value):
            axes = tuple(range(value.ndim))
            inside = names[-1] == "kernel" and any(name.startswith("blocks_") for name in names)
            return Role(matrix=(axes[:-1], axes[-1:]) if inside else None)

        return by_path(params, role_of)

    def setup(self):
        dtype, channels = jnp.dtype(self.dtype), self.shape[2]
        self.first_above = Conv(self.width, dtype=dtype)
        self.first_before = nn.Dense(self.width, dtype=dtype)
        self.told = nn.Dense(self.width)  # embeds the condition
        self.blocks = [Block(self.dropout, dtype) for _ in range(self.depth)]
        self.hidden = [nn.Dense(self.width) for _ in range(channels)]
        self.normal = [nn.Dense(2, kernel_init=ZEROS) for _ in range(channels)]
        self.factor = [nn.Dense(self.vocab_size, kernel_init=ZEROS) for _ in range(channels)]

    def __call__(self, levels, condition=None, keys=None):
        levels = levels.reshape(-1, *self.shape)
        x = scaled(levels, self.vocab_size)
        near = jnp.concatenate([right(x, 1), down(x, 1)], axis=-1)
        logits = self._logits(self._features(x, condition, keys), x, near)
        return logits.reshape(-1, self.tokens, self.vocab_size)

    def nothing(self, batch: int) -> tuple[Array, Array]:
        """No level, and no features of a pixel, before the first `step`."""
        return jnp.zeros((batch, *self.shape), jnp.int32), jnp.zeros((batch, self.width))

    def step(self, level, kept, at, condition=None):
        """The features of a pixel are computed at its first channel, from the rows that they depend on."""
        levels, features = kept
        height, width, channels = self.shape
        last = jnp.maximum(at - 1, 0)
        place = last // (width * channels), last // channels % width, last % channels
        levels = levels.at[:, *place].set(jnp.where(at == 0, levels[:, 0, 0, 0], level))
        row, column, channel = at // (width * channels), at // channels % width, at % channels
        x = scaled(levels, self.vocab_size)
        rows = min(height, 4 + 4 * self.depth)

        def anew(self):
            first = jnp.clip(row - rows + 1, 0, height - rows)
            part = jax.lax.dynamic_slice_in_dim(x, first, rows, axis=1)
            return self._features(part, condition)[:, row - first, column]

        features = nn.cond(channel == 0, anew, lambda _: features, self)
        at_pixel = lambda image: image[:, row, column]
        near = at_pixel(jnp.concatenate([right(x, 1), down(x, 1)], axis=-1))
        logits = self._logits(features, at_pixel(x), near)
        return logits[:, channel], (levels, features)

    def _features(
        self, x: Float[Array, "batch rows columns channels"], condition, keys: Keys = None
    ) -> Float[Array, "batch rows columns width"]:
        """The features of each pixel, from the pixels before it."""
        # The ones distinguish values that do not exist from the level 0.
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        above = of_rows_before(self.first_above, x, 2)
        before = self.first_before(jnp.concatenate([right(x, 1), right(x, 2), above], axis=-1))
        if condition is not None:
            told = self.told(condition)[:, None, None].astype(above.dtype)
            above, before = above + told, before + told
        for number, block in enumerate(self.blocks):
            above, before = block(above, before, layer_keys(keys, number))
        return swish(before.astype(jnp.float32))

    def _logits(
        self, features: Float[Array, "*any width"], x: Float[Array, "*any channels"], near: Array
    ) -> Float[Array, "*any channels vocab_size"]:
        """The logits of the values of pixels.

        Args:
          x: the values; each depends on those of earlier channels.
          near: the values of the pixels to the left and above.
        """
        grid = scaled(jnp.arange(self.vocab_size), self.vocab_size)
        found = []
        for channel in range(self.shape[2]):
            given = jnp.concatenate([features, near, x[..., :channel]], axis=-1)
            hidden = swish(self.hidden[channel](given))
            both = self.normal[channel](jnp.concatenate([hidden, near, x[..., :channel]], axis=-1))
            mean, log_deviation = both[..., :1], jnp.clip(both[..., 1:] - 1.0, *LOG_DEVIATION)
            square = jnp.square((grid - mean) * jnp.exp(-log_deviation))
            found.append(self.factor[channel](hidden) - 0.5 * square)
        return jnp.stack(found, axis=-2)
