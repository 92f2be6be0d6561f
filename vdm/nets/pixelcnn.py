"""A PixelCNN: causal convolutions over an image (van den Oord et al. 2016; Salimans et al. 2017).

There are two stacks of features. `above` depends on the rows above a pixel: its convolutions are shifted
down, so that no tap needs a mask. `before` depends on `above`, and on the pixels to the left. The logits of a
value depend on `before` at its pixel, on the pixels to the left and above, and on the earlier channels of its
pixel.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from vdm.arrays import Image
from vdm.nets.causal import Causal, scaled
from vdm.nets.conv import Conv
from vdm.nets.layers import ZEROS, Keys, dropout, layer_keys, swish
from vdm.nets.network import check_layers
from vdm.parameters import Role, by_path
from vdm.runtime import devices

LOG_DEVIATION = (-7.0, 2.0)  # bounds of log s of the normal distribution over the levels, in units of x


def of_rows_above(conv: Conv, image: Image, rows: int) -> Image:
    """The 3 × 3 convolution, shifted down by so many rows: with one, it reads the own row and the two rows
    above; with two, the three rows above.

    Rows are added at the top before it. If the image were shifted, the last row would lack a tap.
    """
    padded = jnp.pad(image, ((0, 0), (rows, 0), (0, 0), (0, 0)))
    return conv(padded)[:, : image.shape[1]]


def right(image: Image, columns: int) -> Image:
    """The image, shifted to the right; zeros enter at the left."""
    return jnp.pad(image, ((0, 0), (0, 0), (columns, 0), (0, 0)))[:, :, : image.shape[2]]


def with_ones(x: Image) -> Image:
    """Adds a channel of ones, which distinguishes pixels that do not exist from gray ones."""
    return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)


class Above(nn.Module):
    """A residual branch of two convolutions of the rows above."""

    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, above: Image, keys: Keys) -> Image:
        above = devices.by_batch(above)
        width = above.shape[-1]
        out = swish(of_rows_above(Conv(width, dtype=self.dtype), swish(above), 1))
        out = dropout(out, self.dropout, keys)
        return above + of_rows_above(Conv(width, dtype=self.dtype, kernel_init=ZEROS), out, 1)


class Before(nn.Module):
    """A residual branch of a pixel, the two pixels to its left, and the rows above."""

    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, before: Image, above: Image, keys: Keys) -> Image:
        before = devices.by_batch(before)
        width = before.shape[-1]
        own = swish(before)
        given = jnp.concatenate([own, right(own, 1), right(own, 2), swish(above)], axis=-1)
        out = dropout(swish(nn.Dense(width, dtype=self.dtype, name="mix")(given)), self.dropout, keys)
        return before + nn.Dense(width, dtype=self.dtype, kernel_init=ZEROS, name="out")(out)


class PixelCNN(Causal):
    """Causal convolutions over an image, with dropout of each layer's two residual branches.

    The distribution of a value is a discretised normal distribution times a learned factor for each level.

    Attributes:
      depth: number of layers. Each extends what a value depends on by four rows and two columns.
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

    def roles(self, params: PyTree) -> PyTree[Role]:
        """Kernels of the layers are matrices; that of a convolution, from rows · columns · channels."""

        def role_of(names, value):
            axes = tuple(range(value.ndim))
            inside = names[-1] == "kernel" and any(name.startswith(("above_", "before_")) for name in names)
            return Role(matrix=(axes[:-1], axes[-1:]) if inside else None)

        return by_path(params, role_of)

    def setup(self):
        dtype, layers, channels = jnp.dtype(self.dtype), range(self.depth), range(self.shape[2])
        self.first_above = Conv(self.width, dtype=dtype)
        self.first_before = nn.Dense(self.width, dtype=dtype)
        self.told = nn.Dense(self.width)  # embeds the condition
        self.above = [Above(self.dropout, dtype) for _ in layers]
        self.before = [Before(self.dropout, dtype) for _ in layers]
        self.hidden = [nn.Dense(self.width) for _ in channels]
        self.normal = [nn.Dense(2, kernel_init=ZEROS) for _ in channels]
        self.factor = [nn.Dense(self.vocab_size, kernel_init=ZEROS) for _ in channels]

    def __call__(self, levels, condition=None, keys=None):
        x = scaled(levels.reshape(-1, *self.shape), self.vocab_size)
        over = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
        features = self._features(x, self._above(x, condition, keys), condition, keys)
        return self._logits(features, x, over).reshape(-1, self.tokens, self.vocab_size)

    def nothing(self, batch: int) -> tuple[Array, Array]:
        """No levels, and no features of the rows above."""
        levels = jnp.zeros((batch, *self.shape), jnp.int32)
        return levels, jnp.zeros((self.depth + 1, batch, 1, self.shape[1], self.width), self.dtype)

    def step(self, level, kept, at, condition=None):
        """The features `above` are computed at the first value of a row, and kept for the others."""
        levels, above = kept
        height, width, channels = self.shape
        levels = jnp.where(at == 0, levels, levels.at[:, *self._place(jnp.maximum(at - 1, 0))].set(level))
        row, column, channel = self._place(at)
        x = scaled(levels, self.vocab_size)

        def of_this_row(self):
            rows = min(height, 4 + 4 * self.depth)  # the row, and those on which its features depend
            first = jnp.maximum(row - rows + 1, 0)
            window = jax.lax.dynamic_slice_in_dim(x, first, rows, axis=1)
            found = self._above(window, condition)
            return jax.lax.dynamic_slice_in_dim(found, row - first, 1, axis=2)

        above = nn.cond(at % (width * channels) == 0, of_this_row, lambda _: above, self)
        padded = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))
        over, own = (jax.lax.dynamic_slice_in_dim(padded, row + i, 1, axis=1) for i in (0, 1))
        logits = self._logits(self._features(own, above, condition), own, over)
        return logits[:, 0, column, channel], (levels, above)

    def _place(self, at: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Row, column and channel of a value."""
        _, width, channels = self.shape
        return at // (width * channels), at // channels % width, at % channels

    def _above(
        self, x: Image, condition: Array | None, keys: Keys = None
    ) -> Float[Array, "layers_and_one batch height width features"]:
        """The features `above` before the first layer and after each."""
        found = [of_rows_above(self.first_above, with_ones(x), 2)]
        if condition is not None:
            found[0] += self.told(condition)[:, None, None].astype(found[0].dtype)
        for number, layer in enumerate(self.above):
            found.append(layer(found[-1], layer_keys(keys, 2 * number)))
        return jnp.stack(found)

    def _features(self, x: Image, above: Array, condition: Array | None, keys: Keys = None) -> Image:
        """The features `before` after the last layer, of whole rows."""
        given = with_ones(x)
        before = self.first_before(jnp.concatenate([right(given, 1), right(given, 2), above[0]], axis=-1))
        if condition is not None:
            before += self.told(condition)[:, None, None].astype(before.dtype)
        for number, layer in enumerate(self.before):
            before = layer(before, above[number + 1], layer_keys(keys, 2 * number + 1))
        return swish(before.astype(jnp.float32))

    def _logits(
        self, features: Image, x: Image, over: Image
    ) -> Float[Array, "batch height width channels vocab_size"]:
        """The logits of each value of whole rows x, given their features and the row over each."""
        grid = scaled(jnp.arange(self.vocab_size), self.vocab_size)
        near = jnp.concatenate([right(x, 1), over], axis=-1)
        found = []
        for channel in range(self.shape[2]):
            given = jnp.concatenate([near, x[..., :channel]], axis=-1)
            hidden = swish(self.hidden[channel](jnp.concatenate([features, given], axis=-1)))
            # The values nearby enter both, so that a linear prediction from them is learned at once.
            normal = self.normal[channel](jnp.concatenate([hidden, given], axis=-1))
            mean, log_deviation = normal[..., :1], jnp.clip(normal[..., 1:] - 1.0, *LOG_DEVIATION)
            square = jnp.square((grid - mean) * jnp.exp(-log_deviation))
            found.append(self.factor[channel](hidden) - 0.5 * square)
        return jnp.stack(found, axis=-2)
