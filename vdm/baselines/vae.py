"""The variational autoencoder (Kingma & Welling 2014; lecture (10)–(16)): one latent for each picture."""

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm.diffusion import decoder as decoder_lib, encoder as encoder_lib, gaussian
from vdm.runtime import randomness
from vdm.errors import one_of, require
from vdm.nets import residual
from vdm.nets.layers import layer_keys


@dataclasses.dataclass(frozen=True)
class VAE:
    """p(x) = ∫ p(z) p(x|z) dz with p(z) = N(0, I) (lecture (2), (14)); keeps the contract of model.Model.

    Attributes:
      encoder: x as a vector to mean and log variance of q(z|x), [batch, 2 · latent] (lecture (13)).
      decoder: z to two numbers for each value of x, [batch, values · 2].
      latent: how many numbers z has.
      shape: height, width and channels of a picture.
      vocab_size: integer levels of each value.
    """

    encoder: nn.Module
    decoder: nn.Module
    latent: int
    shape: tuple[int, int, int]
    vocab_size: int

    def init(self, key, batch):
        """{"encoder": …, "decoder": …}: fresh parameters."""
        keys = jax.random.split(key)
        return {
            "encoder": self.encoder.init(keys[0], jnp.zeros((1, math.prod(self.shape)))),
            "decoder": self.decoder.init(keys[1], jnp.zeros((1, self.latent))),
        }

    def encode(self, params, levels, keys=None):
        """q(z|x): integer levels [batch, height, width, channels] to a Gaussian of [batch, latent]."""
        x = encoder_lib.scale(levels, self.vocab_size).reshape(levels.shape[0], -1)
        output = self.encoder.apply(params["encoder"], x, layer_keys(keys, 0))
        return gaussian.Gaussian(*jnp.split(output, 2, axis=-1))

    def decode(self, params, z, keys=None):
        """p(x|z) as the (z_0, γ_0) that decoder.py takes, each [batch, height, width, channels]: each value
        is one of its levels, by a Gaussian around z_0/α_0 of variance e^γ_0."""
        return levels_of(self.decoder.apply(params["decoder"], z, layer_keys(keys, 1)), self.shape)

    def loss(self, params, rng, batch, train):
        """reconstruction, by one draw of z, and prior matching, exact (lecture (12), (15)), nats [batch]."""
        keys = rng.keys(randomness.DROPOUT) if train else None
        q = self.encode(params, batch["image"], keys)
        z = gaussian.draw(q, rng.normal(randomness.LATENT, (self.latent,)))
        p_x = self.decode(params, z, keys)
        return {
            "reconstruction": -log_likelihood(batch["image"], p_x, self.vocab_size),
            "prior": gaussian.kl(q, gaussian.STANDARD),
        }

    def log_weight(self, params, rng, batch):
        """log p(x, z)/q(z|x) of one z drawn from q(z|x), nats [batch]. The mean of its exponential is p(x)."""
        q = self.encode(params, batch["image"])
        z = gaussian.draw(q, gaussian.noise(rng.keys(randomness.LATENT), (self.latent,)))
        log_p = log_likelihood(batch["image"], self.decode(params, z), self.vocab_size)
        return log_p + gaussian.log_prob(gaussian.STANDARD, z) - gaussian.log_prob(q, z)

    def sample(self, params, rng, batch):
        """Samples, uint8 [batch, height, width, channels]: z of the prior, and x of p(x|z)."""
        z = rng.normal(randomness.LATENT, (self.latent,))
        return draw_x(rng.keys(randomness.DECODE), self.decode(params, z), self.vocab_size)


def levels_of(output, shape):
    """p(x|z) as `VAE.decode` gives it, of a decoder's output [batch, values · 2], values those of `shape`."""
    mean, gamma_0 = jnp.moveaxis(output.reshape(-1, *shape, 2), -1, 0)
    return mean * encoder_lib.alpha(gamma_0), gamma_0


def log_likelihood(levels, p_x, vocab_size):
    """log p(x|z), nats [batch]: integer levels [batch, …], and p(x|z) as `VAE.decode` gives it."""
    each = decoder_lib.log_prob(levels.astype(jnp.int32), *p_x, vocab_size)
    return jnp.sum(each, axis=tuple(range(1, each.ndim)))


def draw_x(keys, p_x, vocab_size):
    """A draw of p(x|z), as `VAE.decode` gives it, by a key for each example: uint8 [batch, …]."""
    draw = jax.vmap(lambda key, z_0, gamma_0: decoder_lib.sample(key, z_0, gamma_0, vocab_size))
    return draw(keys, *p_x).astype(jnp.uint8)


def build(config, spec):
    """The VAE that `config` (config.model of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    return of_size(config, spec, config.latent)


def of_size(config, spec, latent):
    """The VAE that `config` describes, but with so many latent numbers."""
    require(latent >= 1, f"config.model.latent is {latent}; accepted: 1 or more.")
    one_of("config.model.condition", config.condition, ("none",))
    values = math.prod(spec.shape)
    return VAE(
        encoder=residual.build(config.net, 2 * latent),
        decoder=residual.build(config.net, 2 * values),
        latent=latent,
        shape=tuple(spec.shape),
        vocab_size=spec.vocab_size,
    )
