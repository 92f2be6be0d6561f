"""The variational autoencoder (Kingma & Welling 2014; lecture (10)–(16)): one latent for each image."""

import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

from vdm import component, gaussian
from vdm.arrays import Image
from vdm.component import accept
from vdm.contract import Ability, Draw, Latents, Model, Params
from vdm.data.dataset import Spec
from vdm.diffusion import decoder as decoder_lib, process
from vdm.nets import residual
from vdm.nets.layers import layer_keys
from vdm.runtime import randomness

# p(x|z) in the form (z_0, γ_0) of decoder.py: a distribution over the levels of each value, by a Gaussian of
# variance e^γ_0 around z_0/α_0.
Discretised = tuple[Image, Image]

# The assumed smallest standard deviation of a latent with learned distributions, far below that of N(0, I).
# The true one is not known before the latent is drawn.
DEVIATION = 1.0 / 16.0


@dataclasses.dataclass(frozen=True)
class VAE(Model):
    """A VAE: p(x) = ∫ p(z) p(x|z) dz with p(z) = N(0, I) (lecture (2), (14)).

    Attributes:
      encoder: network from x as a vector to mean and log variance of q(z|x), [batch, 2 · latent] (lecture
        (13)).
      decoder: network from z to two numbers for each value of x, [batch, values · 2].
      shape: height, width and channels of an image.
      vocab_size: number of levels of a value.
      latent: dimension of z.
    """

    encoder: nn.Module
    decoder: nn.Module
    shape: tuple[int, int, int]
    vocab_size: int
    latent: int = 16

    sections = {"net": "vector network"}

    def check(self) -> None:
        accept("latent", self.latent >= 1, "1 or more")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({Ability.LOG_WEIGHT, Ability.CODE})

    def init(self, key, batch):
        """{"encoder": …, "decoder": …}: initial parameters."""
        keys = jax.random.split(key)
        return {
            "encoder": self.encoder.init(keys[0], jnp.zeros((1, math.prod(self.shape)))),
            "decoder": self.decoder.init(keys[1], jnp.zeros((1, self.latent))),
        }

    def encode(
        self, params: Params, levels: Int[Array, "batch height width channels"], keys: Array | None = None
    ) -> gaussian.Gaussian:
        """q(z|x), whose mean and log variance have the shape [batch, latent]."""
        x = process.scale(levels, self.vocab_size).reshape(levels.shape[0], -1)
        output = self.encoder.apply(params["encoder"], x, layer_keys(keys, 0))
        return gaussian.Gaussian(*jnp.split(output, 2, axis=-1))

    def decode(
        self, params: Params, z: Float[Array, "batch latent"], keys: Array | None = None
    ) -> Discretised:
        """p(x|z)."""
        return discretised_of(self.decoder.apply(params["decoder"], z, layer_keys(keys, 1)), self.shape)

    def draw(self, params, rng, batch, train=False, times=None) -> Draw:
        """The terms reconstruction, from one draw of z, and prior, which is exact (lecture (12), (15))."""
        keys = rng.keys(randomness.DROPOUT) if train else None
        q = self.encode(params, batch["image"], keys)
        z = gaussian.draw(q, rng.normal(randomness.LATENT, (self.latent,)))
        p_x = self.decode(params, z, keys)
        return Draw(
            {
                "reconstruction": -log_likelihood(batch["image"], p_x, self.vocab_size),
                "prior": gaussian.kl(q, gaussian.STANDARD),
            }
        )

    def log_weight(self, params, rng, batch):
        q = self.encode(params, batch["image"])
        z = gaussian.draw(q, gaussian.noise(rng.keys(randomness.LATENT), (self.latent,)))
        log_p = log_likelihood(batch["image"], self.decode(params, z), self.vocab_size)
        return log_p + gaussian.log_prob(gaussian.STANDARD, z) - gaussian.log_prob(q, z)

    def sample_and_log_weight(self, params, rng, batch):
        z = rng.normal(randomness.LATENT, (self.latent,))
        p_x = self.decode(params, z)
        x = sample_x(rng.keys(randomness.DECODE), p_x, self.vocab_size)
        log_p = log_likelihood(x, p_x, self.vocab_size) + gaussian.log_prob(gaussian.STANDARD, z)
        return x, log_p - gaussian.log_prob(self.encode(params, x), z)

    def latents(self, timesteps) -> Latents:
        """The single latent z."""

        def no_other(*args):
            raise NotImplementedError

        return Latents(
            1,
            (self.latent,),
            q_1=lambda params, batch: self.encode(params, batch["image"]),
            q=no_other,
            p=no_other,
            prior=lambda params: gaussian.STANDARD,
            logits=lambda params, z: decoder_lib.logits(*self.decode(params, z), self.vocab_size),
            deviations=lambda params: np.full(1, DEVIATION),
        )

    def sample(self, params, rng, batch):
        """Samples: z from the prior, and x from p(x|z)."""
        z = rng.normal(randomness.LATENT, (self.latent,))
        return sample_x(rng.keys(randomness.DECODE), self.decode(params, z), self.vocab_size)

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "VAE":
        """The VAE that config.model describes.

        Raises:
          UserError: a field has a value that is not accepted.
        """
        made = of_size(section.net, spec, section.latent)
        component.check(made, section, "config.model")
        return made


def of_size(net: Any, spec: Spec, latent: int) -> VAE:
    """A VAE whose z has `latent` dimensions, with the networks that config.model.net describes."""
    return VAE(
        encoder=residual.build(net, 2 * latent),
        decoder=residual.build(net, 2 * math.prod(spec.shape)),
        shape=spec.shape,
        vocab_size=spec.vocab_size,
        latent=latent,
    )


def discretised_of(output: Float[Array, "batch outputs"], shape: tuple[int, int, int]) -> Discretised:
    """p(x|z) from a decoder's output, two numbers for each value of `shape`."""
    mean, gamma_0 = jnp.moveaxis(output.reshape(-1, *shape, 2), -1, 0)
    return mean * process.alpha(gamma_0), gamma_0


def log_likelihood(
    levels: Int[Array, "batch *shape"], p_x: Discretised, vocab_size: int
) -> Float[Array, "batch"]:
    """log p(x|z), in nats."""
    each = decoder_lib.log_prob(levels.astype(jnp.int32), *p_x, vocab_size)
    return jnp.sum(each, axis=tuple(range(1, each.ndim)))


def sample_x(keys: Array, p_x: Discretised, vocab_size: int) -> UInt8[Array, "batch *shape"]:
    """A sample of p(x|z), with a key for each example."""
    draw = jax.vmap(lambda key, z_0, gamma_0: decoder_lib.sample(key, z_0, gamma_0, vocab_size))
    return draw(keys, *p_x).astype(jnp.uint8)
