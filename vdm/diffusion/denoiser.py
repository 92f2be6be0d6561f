"""The denoiser: a network, and how its output is read as a prediction of the noise ε (the parameterisation).

z = α x + σ ε and v = α ε − σ x (Salimans & Ho 2022), so each of ε̂, x̂ and v̂ determines the others. The ELBO
uses ε̂; the samplers use x̂.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm.arrays import Image
from vdm.component import Component
from vdm.data.dataset import Split
from vdm.diffusion import decoder, process
from vdm.parameters import Role

Params = Any
Gamma = Float[Array, "*#any"]  # broadcasts against an image
Net = Callable[[Float[Array, "batch height width inputs"]], Float[Array, "batch height width outputs"]]


@dataclasses.dataclass(frozen=True)
class Parameterisation(Component):
    """The input and the output of the network. A custom one defines `eps_hat` (see examples/edm.py).

    Attributes:
      of_levels: whether x may take only the vocab_size levels, so that z_t is a level with noise.
      one_gamma: whether γ must be the same for all values of an image.
    """

    of_levels: ClassVar[bool] = False
    one_gamma: ClassVar[bool] = False

    def outputs(self, channels: int, vocab_size: int) -> int:
        """Number of channels that the network must output for an image of `channels` channels."""
        return channels

    def eps_hat(self, net: Net, z_t: Image, gamma: Gamma, params: Params, vocab_size: int) -> Image:
        """ε̂(z_t, γ).

        Args:
          net: the network as a function of its input image; called once. The network's last layer is
            initialised to zero.
          gamma: one γ per image, or one per value.
          params: the model's parameters, including those of `init`.
        """
        raise NotImplementedError

    def init(self, shape: tuple[int, int, int]) -> dict[str, PyTree]:
        """Parameters of the parameterisation, with names that no other part of the model uses; {} by
        default."""
        return {}

    def fit(self, split: Split, shape: tuple[int, int, int], vocab_size: int) -> dict[str, PyTree]:
        """The parameters that are initialised in closed form from the training images; {} by default."""
        return {}

    def roles(self, params: Params) -> dict[str, PyTree[Role]]:
        """The role of each parameter of `init` for the optimiser."""
        return {}


@dataclasses.dataclass(frozen=True)
class Eps(Parameterisation):
    """ε̂ = z_t + output, as in the authors' code: if z_t is pure noise, an output of zero is correct."""

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        return z_t + net(z_t)


@dataclasses.dataclass(frozen=True)
class X(Parameterisation):
    """x̂ = output."""

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        return eps_from_x(net(z_t), z_t, gamma)


@dataclasses.dataclass(frozen=True)
class V(Parameterisation):
    """v̂ = output."""

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        return eps_from_v(net(z_t), z_t, gamma)


@dataclasses.dataclass(frozen=True)
class Categorical(Parameterisation):
    """The output is, for each value, the log-probability of each of its levels given the rest of the image.

    The product with the likelihood N(z_t; α x_v, σ²) of the value's z_t is its posterior, up to a factor, and
    x̂ is the mean of the posterior.
    """

    of_levels: ClassVar[bool] = True

    def outputs(self, channels, vocab_size):
        return channels * vocab_size

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        context = net(z_t).reshape(*z_t.shape, vocab_size)
        posterior = jax.nn.softmax(decoder.logits(z_t, gamma, vocab_size) + context, axis=-1)
        levels = process.scale(jnp.arange(vocab_size), vocab_size)
        # Full float32, as the error of x̂ is divided by σ.
        x_hat = jnp.matmul(posterior, levels, precision=jax.lax.Precision.HIGHEST)
        return eps_from_x(x_hat, z_t, gamma)


def x_from_eps(eps: Image, z_t: Image, gamma: Gamma) -> Image:
    """x̂ = (z_t − σ ε̂) / α."""
    return (z_t - process.sigma(gamma) * eps) / process.alpha(gamma)


def eps_from_x(x: Image, z_t: Image, gamma: Gamma) -> Image:
    """ε̂ = (z_t − α x̂) / σ."""
    return (z_t - process.alpha(gamma) * x) / process.sigma(gamma)


def eps_from_v(v: Image, z_t: Image, gamma: Gamma) -> Image:
    """ε̂ = σ z_t + α v̂."""
    return process.sigma(gamma) * z_t + process.alpha(gamma) * v


def guided(eps_hat: Callable[[Any], Image], condition: Any, without: Any, guidance: float) -> Image:
    """(1 + w) ε̂(condition) − w ε̂(without) (Ho & Salimans 2022, eq. 6)."""
    eps = eps_hat(condition)
    return eps + guidance * (eps - eps_hat(without)) if guidance else eps
