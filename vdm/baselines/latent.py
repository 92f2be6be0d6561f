"""The latent VDM (the lecture's title): a VAE whose prior is a VDM, both trained at once by one bound.

An encoder takes a picture to a point μ(x) in a space of few numbers, and the chain of a VDM runs there, with
μ(x) where the VDM has x; a learned decoder takes its least noisy point back to a picture:

  q(z_t|x) = N(α_t μ(x), σ_t² I),    p(x, z_0 … z_1) = p(z_1) … p(z_s|z_t) … p(x|z_0).

z_0 is the latent of the VAE. Its q(z_0|x) has one variance, σ_0², for all numbers, which is no restriction, as each
number of μ(x) is scaled at will; and for all pictures, which is one. The bound is the VDM's (VDM eq. 11; lecture (21)), term by
term, but for p(x|z_0); nothing is stopped, so q(z|x), p(z) and p(x|z) are trained jointly on it.

Told the label c, the chain is p(z|c). With p(c) uniform over the classes, p(x) ≥ p(x, c) = p(c) p(x|c), so that
what the label costs, log classes, is a term of its own, and the sum still bounds −log p(x).
"""

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm.diffusion import encoder as encoder_lib, model as diffusion_lib
from vdm.runtime import randomness
from vdm.baselines import vae as vae_lib
from vdm.errors import one_of, require
from vdm.nets import residual
from vdm.nets.layers import layer_keys


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
    """A VDM of what an encoder makes of pictures; keeps the contract of model.Model.

    Attributes:
      encoder: x as a vector to μ(x), [batch, latent].
      decoder: z_0 to two numbers for each value of x, as those of vae.VAE.
      vdm: the prior, of "pictures" [1, 1, latent].
      shape: height, width and channels of a picture.
      vocab_size: integer levels of each value.
    """

    encoder: nn.Module
    decoder: nn.Module
    vdm: diffusion_lib.Diffusion
    shape: tuple[int, int, int]
    vocab_size: int

    @property
    def times(self):
        """How diffusion times are drawn."""
        return self.vdm.times

    def init(self, key, batch):
        """{"schedule": …, "net": …, "encoder": …, "decoder": …}: fresh parameters."""
        encoder, decoder = jax.random.split(jax.random.fold_in(key, 0))
        return self.vdm.init(key, batch) | {
            "encoder": self.encoder.init(encoder, jnp.zeros((1, math.prod(self.shape)))),
            "decoder": self.decoder.init(decoder, jnp.zeros((1, math.prod(self.vdm.shape)))),
        }

    def encode(self, params, levels, keys=None):
        """μ(x): integer levels [batch, height, width, channels] to [batch, 1, 1, latent]."""
        x = encoder_lib.scale(levels, self.vocab_size).reshape(levels.shape[0], -1)
        return self.encoder.apply(params["encoder"], x, layer_keys(keys, 0)).reshape(-1, *self.vdm.shape)

    def decode(self, params, z_0, keys=None):
        """p(x|z_0), for decoder.py, as `vae.VAE.decode` gives it."""
        output = self.decoder.apply(params["decoder"], z_0.reshape(z_0.shape[0], -1), layer_keys(keys, 1))
        return vae_lib.levels_of(output, self.shape)

    def loss(self, params, rng, batch, train):
        """reconstruction, prior and diffusion by one draw each, and label where it is told, nats [batch]."""
        return self.draw(params, rng, batch, train).terms

    def draw(self, params, rng, batch, train=False, cdf=None):
        """The diffusion_lib.Draw behind `loss`, as diffusion_lib.Diffusion.draw gives it."""
        keys = rng.keys(randomness.DROPOUT) if train else None
        mean = self.encode(params, batch["image"], keys)
        draw = self.vdm.draw_matching(params, rng, mean, batch, train, cdf)
        z_0 = encoder_lib.diffuse(
            mean, self.vdm.gamma(params, jnp.zeros(())), rng.normal(randomness.RECONSTRUCTION, self.vdm.shape)
        )
        log_p = vae_lib.log_likelihood(batch["image"], self.decode(params, z_0, keys), self.vocab_size)
        terms = {"reconstruction": -log_p, **draw.terms}
        if self.vdm.condition == "label":
            terms["label"] = jnp.full(log_p.shape, math.log(self.vdm.classes))
        return draw._replace(terms=terms)

    def sample(self, params, rng, batch):
        """Samples, uint8 [batch, height, width, channels], under the labels of `batch` where they are told:
        z_0 of the chain, and x of p(x|z_0)."""
        z_0 = self.vdm.sample_z_0(params, rng, batch)
        return vae_lib.draw_x(rng.keys(randomness.DECODE), self.decode(params, z_0), self.vocab_size)


def build(config, spec):
    """The LatentDiffusion that `config` (config.model of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    require(config.latent >= 1, f"config.model.latent is {config.latent}; accepted: 1 or more.")
    one_of("config.model.net.name", config.net.name, ("mlp",))  # latents are vectors
    require(
        config.parameterisation != "levels",
        "config.model.parameterisation is 'levels', but latents have no levels; accepted: 'eps', 'x', 'v'.",
    )
    return LatentDiffusion(
        encoder=residual.build(config.net, config.latent),
        decoder=residual.build(config.net, 2 * math.prod(spec.shape)),
        vdm=diffusion_lib.build(config, dataclasses.replace(spec, shape=(1, 1, config.latent))),
        shape=tuple(spec.shape),
        vocab_size=spec.vocab_size,
    )
