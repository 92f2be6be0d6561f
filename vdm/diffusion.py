"""The Variational Diffusion Model: schedule + encoder + denoiser + decoder as one model."""

import dataclasses
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm import decoder, denoiser, elbo, encoder, rng as rng_lib, sampler, schedule
from vdm.errors import one_of, require
from vdm.nets import mlp, transformer, unet
from vdm.nets.layers import REMAT


class Draw(NamedTuple):
    """One draw of the ELBO for each image of a batch; all [batch].

    Attributes:
      terms: name of each term to nats; "diffusion" with the weight of its time.
      t: the time drawn for the diffusion term.
      weight: 1/q(t), q being the density that t was drawn from.
      error: ‖x − x̂(z_t)‖², x in [−1, 1].
    """

    terms: dict[str, jax.Array]
    t: jax.Array
    weight: jax.Array
    error: jax.Array


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A VDM; keeps the contract of model.Model.

    Attributes:
      schedule: γ(t), of schedule.py.
      net: the network inside the denoiser, of nets/.
      parameterisation: how its output is read, of denoiser.PARAMETERISATIONS.
      shape: height, width and channels of a picture.
      vocab_size: integer levels of each value.
      classes: how many labels there are, where the model is conditioned on them.
      condition: what the denoiser is told beside γ, of CONDITIONS.
      timesteps: T, the depth of the chain; 0 for continuous time.
      stratified: whether times are stratified over the global batch.
      gamma_range: the γ that the network sees as 0 and as 1; constants, so that what it
        computes depends on t only through γ.
      sampler: how samples are drawn, of sampler.SAMPLERS.
      sample_steps: its steps where T is 0.
    """

    schedule: nn.Module
    net: nn.Module
    parameterisation: str
    shape: tuple[int, int, int]
    vocab_size: int
    classes: int
    condition: str
    timesteps: int
    stratified: bool
    gamma_range: tuple[float, float]
    sampler: str
    sample_steps: int

    def init(self, key, batch):
        """{"schedule": …, "net": …}: fresh parameters."""
        keys = jax.random.split(key)
        z = jnp.zeros((1, *self.shape))
        one = {name: value[:1] for name, value in batch.items()}
        return {
            "schedule": self.schedule.init(keys[0], jnp.zeros(1)),
            "net": self.net.init(keys[1], z, jnp.zeros(1), self.told(one)),
        }

    def gamma(self, params, t):
        """γ at times t [...]: [...]."""
        return self.schedule.apply(params["schedule"], t)

    def told(self, batch):
        """What the denoiser is told beside γ: [batch, k], or None."""
        if self.condition == "label":
            return jax.nn.one_hot(batch["label"], self.classes)
        if self.condition == "augmented":
            return batch["augmented"][:, None]
        return None

    def eps_hat(self, params, z_t, gamma, told, dropout_keys=None):
        """ε̂(z_t, γ): z_t [batch, height, width, channels], γ [batch], to the shape of z_t."""
        low, high = self.gamma_range
        output = self.net.apply(
            params["net"], z_t, (gamma - low) / (high - low), told, dropout_keys
        )
        return denoiser.eps_hat(
            output, z_t, over_pixels(gamma), self.parameterisation, self.vocab_size
        )

    def loss(self, params, rng, batch, train):
        """reconstruction, prior and diffusion, nats [batch], by one draw each (VDM eq. 11)."""
        return self.draw(params, rng, batch, train).terms

    def draw(self, params, rng, batch, train=False, cdf=None):
        """The Draw behind `loss`.

        Args:
          cdf: [k + 1], how times are distributed (elbo.warp); None for uniformly. It changes
            the variance of the diffusion term and not its mean.
        """
        x = encoder.scale(batch["image"], self.vocab_size)
        ends = self.gamma(params, jnp.array([0.0, 1.0]))
        t, weight = self._times(rng), 1.0
        if cdf is not None:
            t, weight = elbo.warp(t, cdf)
        if self.timesteps == 0:
            gamma_t, slope = schedule.with_slope(lambda t: self.gamma(params, t), t)
        else:
            step = jnp.minimum(jnp.floor(t * self.timesteps) + 1.0, self.timesteps)
            gamma_s, gamma_t = (
                self.gamma(params, (step - back) / self.timesteps) for back in (1.0, 0.0)
            )
            slope = elbo.step_weight(gamma_s, gamma_t, self.timesteps)

        eps = rng.normal(rng_lib.NOISE, self.shape)
        z_t = encoder.diffuse(x, over_pixels(gamma_t), eps)
        keys = rng.keys(rng_lib.DROPOUT) if train else None
        eps_hat = self.eps_hat(params, z_t, gamma_t, self.told(batch), keys)
        eps_0 = rng.normal(rng_lib.RECONSTRUCTION, self.shape)
        terms = {
            "reconstruction": elbo.reconstruction(
                batch["image"].astype(jnp.int32), x, eps_0, ends[0], self.vocab_size
            ),
            "prior": elbo.prior(x, ends[1]),
            "diffusion": elbo.diffusion(eps, eps_hat, weight * slope),
        }
        # x − x̂ = (ε̂ − ε) σ/α, and elbo.diffusion with weight 2 is a sum of squares.
        error = elbo.diffusion(eps, eps_hat, 2.0 * jnp.exp(gamma_t))
        return Draw(terms, t, jnp.broadcast_to(weight, t.shape), error)

    def _times(self, rng):
        if self.stratified:
            u = jax.random.uniform(rng.shared(rng_lib.TIME))
        else:
            u = jax.vmap(jax.random.uniform)(rng.keys(rng_lib.TIME))
        return elbo.times(u, rng.strata(), self.stratified)

    def sample(self, params, rng, batch):
        """Samples, uint8 [batch, height, width, channels]."""
        told = self.told(batch)
        steps = self.timesteps or self.sample_steps
        gammas = self.gamma(params, jnp.linspace(0.0, 1.0, steps + 1))

        def predict_x(z_t, gamma):
            eps = self.eps_hat(params, z_t, jnp.broadcast_to(gamma, z_t.shape[:1]), told)
            return denoiser.x_from_eps(eps, z_t, gamma)

        z_1 = rng.normal(rng_lib.LATENT, self.shape)
        if self.sampler == "ancestral":
            z_0 = sampler.ancestral(predict_x, gammas, z_1, rng.keys(rng_lib.NOISE))
        else:
            z_0 = sampler.solve(predict_x, gammas, z_1, order=2 if self.sampler == "dpm2m" else 1)
        draw = jax.vmap(lambda key, z: decoder.sample(key, z, gammas[0], self.vocab_size))
        return draw(rng.keys(rng_lib.DECODE), z_0).astype(jnp.uint8)


CONDITIONS = ("none", "label", "augmented")


def build(config, spec):
    """The Diffusion that `config` (config.model of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    one_of("config.model.schedule.name", config.schedule.name, schedule.SCHEDULES)
    one_of("config.model.parameterisation", config.parameterisation, denoiser.PARAMETERISATIONS)
    one_of("config.model.condition", config.condition, CONDITIONS)
    one_of("config.model.sampler", config.sampler, sampler.SAMPLERS)
    low, high = config.schedule.gamma_min, config.schedule.gamma_max
    require(
        low < high,
        f"config.model.schedule.gamma_min is {low} and gamma_max is {high}; "
        "gamma_min must be the smaller: γ = −log SNR grows from data to noise.",
    )
    require(
        config.condition != "label" or spec.classes > 0,
        "config.model.condition is 'label', but the data set has no labels; "
        "accepted here: 'none', 'augmented'.",
    )
    for name in ("timesteps", "sample_steps"):
        least = 0 if name == "timesteps" else 1
        require(
            config[name] >= least,
            f"config.model.{name} is {config[name]}; accepted: {least} or more.",
        )
    return Diffusion(
        schedule=schedule.SCHEDULES[config.schedule.name](config.schedule),
        net=_net(config, spec),
        parameterisation=config.parameterisation,
        shape=tuple(spec.shape),
        vocab_size=spec.vocab_size,
        classes=spec.classes,
        condition=config.condition,
        timesteps=config.timesteps,
        stratified=config.stratified,
        gamma_range=(low, high),
        sampler=config.sampler,
        sample_steps=config.sample_steps,
    )


NETS = ("unet", "transformer", "mlp")


def _net(config, spec):
    net = config.net
    one_of("config.model.net.name", net.name, NETS)
    one_of("config.model.net.attention", net.attention, ("middle", "everywhere"))
    one_of("config.model.net.dtype", net.dtype, ("float32", "bfloat16"))
    one_of("config.model.net.remat", net.remat, REMAT)
    for name in ("depth", "width", "heads", "patch"):
        require(net[name] >= 1, f"config.model.net.{name} is {net[name]}; accepted: 1 or more.")
    require(net.fourier >= 0, f"config.model.net.fourier is {net.fourier}; accepted: 0 or more.")
    require(
        0 <= net.dropout < 1,
        f"config.model.net.dropout is {net.dropout}; accepted: 0 up to, but not, 1.",
    )
    require(
        net.width % (2 * net.heads) == 0,
        f"config.model.net.width is {net.width}; it must be a multiple of "
        f"2 · config.model.net.heads = {2 * net.heads}.",
    )
    height, width, channels = spec.shape
    common = dict(
        out_channels=denoiser.outputs(config.parameterisation, channels, spec.vocab_size),
        depth=net.depth,
        width=net.width,
        dropout=net.dropout,
        frequencies=tuple(spec.vocab_size / 2.0 / 2.0**n for n in range(net.fourier)),
        dtype=jnp.dtype(net.dtype),
        remat=net.remat,
        # XLA's CPU backend runs small products inside a loop at half the speed. The U-Net's are
        # large.
        unroll=jax.default_backend() == "cpu" and net.name != "unet",
    )
    if net.name == "mlp":
        return mlp.MLP(**common)
    if net.name == "unet":
        return unet.UNet(attention=net.attention, heads=net.heads, **common)
    require(
        height % net.patch == 0 and width % net.patch == 0,
        f"config.model.net.patch is {net.patch}; it must divide the pictures' "
        f"height {height} and width {width}.",
    )
    return transformer.Transformer(heads=net.heads, patch=net.patch, **common)


def over_pixels(values):
    """[batch] to [batch, 1, 1, 1]."""
    return values[:, None, None, None]
