"""The interface of a network from images to images, independent of diffusion."""

import inspect
from typing import ClassVar

from flax import linen as nn
import jax
from jaxtyping import Array, Float, PyTree

from vdm.component import Component, accept, choose
from vdm.errors import require
from vdm.parameters import Role, alike


class Network(nn.Module, Component):
    """A Flax module from images to images.

    Its arguments are

      z: float32 [batch, height, width, channels],
      time: [batch], in about [0, 1],
      condition: [batch, k], or None,
      keys: [batch], one random key for each example, if dropout is on; or None,

    and its result is float32 [batch, height, width, out_channels]. Instead of `keys` its call may have the
    argument `train`, for Flax's layers: nn.Dropout(0.1, deterministic=not train).

    Attributes:
      shape: height, width and channels of the images.
      vocab_size: number of levels of a value; the levels lie in [−1, 1].
      out_channels: number of channels of the result.
      unroll: whether equal layers are compiled one by one and not as a loop. A network without equal layers
        ignores it.
      unrolled_on: the platform on which layers are unrolled: "cpu", where XLA runs small matrix products at
        half the speed in a loop, or "gpu", which starts a kernel for each array that a loop stores for the
        gradient.
      heavy: whether the matrix products are so large that a training step takes seconds on a CPU.
    """

    shape: tuple[int, int, int]
    vocab_size: int
    out_channels: int
    unroll: bool

    heavy: ClassVar[bool] = False
    unrolled_on: ClassVar[str] = "cpu"

    def __call__(
        self,
        z: Float[Array, "batch height width channels"],
        time: Float[Array, "batch"],
        condition: Float[Array, "batch size"] | None = None,
        keys: Array | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        raise NotImplementedError

    @nn.nowrap
    def predict(
        self,
        params: PyTree,
        z: Float[Array, "batch height width channels"],
        time: Float[Array, "batch"],
        condition: Float[Array, "batch size"] | None = None,
        keys: Array | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """Calls the network with the given parameters, and with dropout if there are `keys`.

        Raises:
          UserError: the result has a wrong shape or type.
        """
        takes = inspect.signature(type(self).__call__).parameters

        # Image by image, so that each has separate dropout, which is the same on one device as on many.
        def one(key, *inputs):
            inputs = jax.tree.map(lambda value: value[None], inputs)
            return self.apply(params, *inputs, train=True, rngs={"dropout": key})[0]

        if "keys" in takes:
            found = self.apply(params, z, time, condition, keys)
        elif "train" in takes and keys is not None:
            found = jax.vmap(one)(keys, z, time, condition)
        else:
            found = self.apply(params, z, time, condition)
        wanted = (*z.shape[:-1], self.out_channels)
        require(
            found.shape == wanted and found.dtype == "float32",
            f"network {type(self).__name__} returns {found.dtype} {list(found.shape)} for an input of "
            f"{list(z.shape)}; accepted: float32 {list(wanted)}, as its out_channels is {self.out_channels}.",
        )
        return found

    def roles(self, params: PyTree) -> PyTree[Role]:
        """The role of each parameter for the optimiser; without matrices, Muon refuses the network."""
        return alike(params, Role())


class Layered(Network):
    """The common fields of the built-in networks.

    Attributes:
      depth: number of layers, or of blocks in one direction.
      width: number of channels of a layer.
      dropout: share of a layer's activations that is dropped.
      fourier: number of frequencies of Fourier features, each half of the one before (VDM app. C.3).
      highest: the highest frequency, in cycles per unit of z; 0 for V/2, the lattice of the V levels.
      dtype: type of the matrix products: float32 or bfloat16. Parameters are float32.
      remat: what a layer keeps for its gradient: none, dots or block (layers.remat).
    """

    depth: int = 4
    width: int = 64
    dropout: float = 0.1
    fourier: int = 2
    highest: float = 0.0
    dtype: str = "float32"
    remat: str = "dots"

    @property
    def frequencies(self) -> tuple[float, ...]:
        """The frequencies of the Fourier features, in cycles per unit of z."""
        highest = self.highest or self.vocab_size / 2.0
        return tuple(highest / 2.0**n for n in range(self.fourier))

    def check(self) -> None:
        check_layers(self.depth, self.width, self.dropout, self.dtype)
        choose("remat", self.remat, REMAT)
        accept("highest", self.highest >= 0, "0 (V/2) or more")
        accept("fourier", self.fourier >= 0, "0 or more")
        accept("width", self.width % 2 == 0 and self.width >= 4, "an even number, 4 or more")


REMAT = ("none", "dots", "block")


def check_layers(depth: int, width: int, dropout: float, dtype: str) -> None:
    """Raises Refused if one of these fields has a value that no network accepts."""
    accept("depth", depth >= 1, "1 or more")
    accept("width", width >= 1, "1 or more")
    accept("dropout", 0 <= dropout < 1, "at least 0 and below 1")
    choose("dtype", dtype, ("float32", "bfloat16"))


def check_heads(heads: int, width: int) -> None:
    """Raises Refused if attention of this width cannot have this number of heads."""
    accept("heads", heads >= 1, "1 or more")
    accept("width", width % (2 * heads) == 0, f"a multiple of 2 · heads = {2 * heads}")
