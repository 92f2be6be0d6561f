"""The latent VDM (the lecture's title): a VAE whose prior is a VDM; both are trained jointly on one bound.

An encoder maps an image to a point μ(x) in a space of few dimensions, and the chain of a VDM runs there, with
μ(x) in place of x; a learned decoder maps its least noisy point back to an image:

  q(z_t|x) = N(α_t μ(x), σ_t² I),    p(x, z_0 … z_1) = p(z_1) … p(z_s|z_t) … p(x|z_0).

z_0 is the latent of the VAE. The variance σ_0² of q(z_0|x) is the same in all dimensions, which is no
restriction, as μ(x) can scale each of them. It is also the same for all images, which is a restriction. The
bound is that of the VDM (VDM eq. 11; lecture (21)), term by term, with the decoder's p(x|z_0). No gradient is
stopped: q(z|x), p(z) and p(x|z) are trained jointly on this bound.

Conditioned on the label c, the chain is p(z|c). With p(c) uniform over the classes,
p(x) ≥ p(x, c) = p(c) p(x|c). So the cost of the label, log classes, is a separate term, and the sum still
bounds −log p(x).
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from vdm import component
from vdm.baselines import vae as vae_lib
from vdm.component import accept
from vdm.contract import Ability, Batch, Draw, Flow, Latents, Model, Params
from vdm.data.dataset import Spec
from vdm.diffusion import decoder, process
from vdm.diffusion.model import Diffusion
from vdm.errors import require
from vdm.nets import residual
from vdm.nets.layers import layer_keys
from vdm.parameters import Role, alike
from vdm.runtime import randomness


@dataclasses.dataclass(frozen=True)
class LatentDiffusion(Model):
    """A latent VDM: an encoder maps images to codes, and a VDM models the codes.

    Its config fields are those of Diffusion, and `latent`.

    Attributes:
      encoder: network from x as a vector to μ(x), [batch, latent].
      decoder: network from z_0 to two numbers for each value of x, as in vae.VAE.
      vdm: the prior, a VDM of "images" of shape [1, 1, latent].
      shape: height, width and channels of an image.
      vocab_size: number of levels of a value.
      latent: dimension of μ(x).
    """

    encoder: nn.Module
    decoder: nn.Module
    vdm: Diffusion
    shape: tuple[int, int, int]
    vocab_size: int
    latent: int = 16

    prior: ClassVar[type[Diffusion]] = Diffusion  # the class of `vdm`
    sections = Diffusion.sections | {"net": "latent network"}

    @classmethod
    def config_fields(cls) -> dict[str, Any]:
        return component.fields(cls) | cls.prior.config_fields()

    def check(self) -> None:
        accept("latent", self.latent >= 1, "1 or more")

    @property
    def abilities(self) -> frozenset[Ability]:
        return self.vdm.abilities - {Ability.DENOISER}

    def init(self, key, batch):
        """{"schedule": …, "net": …, "encoder": …, "decoder": …}: initial parameters."""
        vdm, encoder, decoder = jax.random.split(key, 3)
        return self.vdm.init(vdm, batch) | {
            "encoder": self.encoder.init(encoder, jnp.zeros((1, math.prod(self.shape)))),
            "decoder": self.decoder.init(decoder, jnp.zeros((1, math.prod(self.vdm.shape)))),
        }

    def roles(self, params: Params) -> PyTree[Role]:
        coders = {name: alike(params[name], Role()) for name in ("encoder", "decoder")}
        return self.vdm.roles(params) | coders

    def encode(
        self, params: Params, levels: Int[Array, "batch height width channels"], keys: Array | None = None
    ) -> Float[Array, "batch 1 1 latent"]:
        """μ(x)."""
        x = process.scale(levels, self.vocab_size).reshape(levels.shape[0], -1)
        return self.encoder.apply(params["encoder"], x, layer_keys(keys, 0)).reshape(-1, *self.vdm.shape)

    def decode(
        self, params: Params, z_0: Float[Array, "batch 1 1 latent"], keys: Array | None = None
    ) -> vae_lib.Discretised:
        """p(x|z_0)."""
        output = self.decoder.apply(params["decoder"], z_0.reshape(z_0.shape[0], -1), layer_keys(keys, 1))
        return vae_lib.discretised_of(output, self.shape)

    def draw(self, params, rng, batch, train=False, times=None) -> Draw:
        """The terms reconstruction, prior and diffusion, from one draw each, and the term label if the prior
        is conditioned on the label."""
        keys = rng.keys(randomness.AUTOENCODER) if train else None  # DROPOUT is used by the prior
        mean = self.encode(params, batch["image"], keys)

        def log_p(eps_0, gamma_0):
            z_0 = process.diffuse(mean, gamma_0, eps_0)
            return vae_lib.log_likelihood(batch["image"], self.decode(params, z_0, keys), self.vocab_size)

        draw = self.vdm.bound(params, rng, batch, mean, log_p, train, times)
        if self.vdm.condition != "label":
            return draw
        label = jnp.full(len(mean), math.log(self.vdm.classes))
        return draw._replace(terms={**draw.terms, "label": label})

    @property
    def times(self):
        return self.vdm.times

    def verify(self, params):
        self.vdm.verify(params)

    @property
    def takes_label(self) -> bool:
        return self.vdm.takes_label

    @property
    def depth(self) -> int:
        return self.vdm.depth

    def at_depth(self, timesteps: int) -> "LatentDiffusion":
        return dataclasses.replace(self, vdm=self.vdm.at_depth(timesteps))

    def with_schedule(self, change) -> "LatentDiffusion":
        return dataclasses.replace(self, vdm=self.vdm.with_schedule(change))

    def log_weight(self, params, rng, batch) -> Float[Array, "batch"]:
        """The log weight of one path of the chain of latents."""
        mean, log_p = self.encode(params, batch["image"]), self.log_likelihood(params, batch)
        return self.vdm.log_weight_of(params, rng, batch, mean, log_p)

    def sample_and_log_weight(self, params, rng, batch):
        """The labels of the batch count as draws of p(label)."""

        def decode(z_0):
            image = vae_lib.sample_x(rng.keys(randomness.DECODE), self.decode(params, z_0), self.vocab_size)
            log_p = self.log_likelihood(params, {**batch, "image": image})(z_0)
            return image, self.encode(params, image), log_p

        return self.vdm.sample_and_log_weight_of(params, rng, batch, decode)

    @property
    def flow_kinds(self):
        return ("latent",)

    def flow(self, params, rng, batch, kind) -> Flow:
        """The ODE of z_0."""
        mean, log_p = self.encode(params, batch["image"]), self.log_likelihood(params, batch)
        return self.vdm.flow_of_latents(params, rng, batch, mean, log_p)

    def log_likelihood(self, params: Params, batch: Batch) -> Callable[[Array], Array]:
        """The function z_0 → log p(x|z_0), in nats; with labels, log p(x, label|z_0) for uniform p(label)."""
        label = math.log(self.vdm.classes) if self.vdm.condition == "label" else 0.0
        log_p = lambda z: vae_lib.log_likelihood(batch["image"], self.decode(params, z), self.vocab_size)
        return lambda z_0: log_p(z_0) - label

    def gamma(self, params: Params, t: Array, condition: Array | None = None) -> Array:
        return self.vdm.gamma(params, t, condition)

    def latents(self, timesteps) -> Latents:
        return self.vdm.latents(
            timesteps,
            mean=lambda params, batch: self.encode(params, batch["image"]),
            logits=lambda params, z: decoder.logits(*self.decode(params, z), self.vocab_size),
        )

    def sample(self, params, rng, batch):
        """Samples: z_0 from the chain, and x from p(x|z_0)."""
        z_0 = self.vdm.sample_z_0(params, rng, batch)
        return vae_lib.sample_x(rng.keys(randomness.DECODE), self.decode(params, z_0), self.vocab_size)

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "LatentDiffusion":
        """The LatentDiffusion that config.model describes.

        Raises:
          UserError: a field has a value that is not accepted.
        """
        vdm = cls.prior.build(section, dataclasses.replace(spec, shape=(1, 1, section.latent)))
        require(
            not vdm.parameterisation.of_levels,
            f"config.model.parameterisation.name is {section.parameterisation.name!r}; accepted for latents, "
            "which have no levels: 'eps', 'x', 'v'.",
        )
        made = cls(
            encoder=residual.build(section.net, section.latent),
            decoder=residual.build(section.net, 2 * math.prod(spec.shape)),
            vdm=vdm,
            shape=spec.shape,
            vocab_size=spec.vocab_size,
            latent=section.latent,
        )
        component.check(made, section, "config.model")
        return made
