"""The Variational Diffusion Model: schedule + encoder + denoiser + decoder as one model."""

import dataclasses
import math
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm import nets
from vdm.diffusion import condition, context as context_lib, decoder, denoiser, elbo, encoder, gaussian
from vdm.diffusion import sampler, schedule, times, variance
from vdm.runtime import randomness
from vdm.errors import one_of, require


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
      condition: what the denoiser is told beside γ, of condition.CONDITIONS.
      timesteps: T, the depth of the chain; 0 for continuous time.
      times: how diffusion times are drawn, of times.TIMES; "importance" needs `draw`'s cdf.
      gamma_range: the γ that the network sees as 0 and as 1; constants, so that what it
        computes depends on t only through γ.
      sampler: how samples are drawn, of sampler.SAMPLERS.
      sample_steps: its steps where T is 0.
      drop_label: share of the training pictures whose label is not told, so that the denoiser can do
        without (Ho & Salimans 2022).
      guidance: w ≥ 0; samples go by (1 + w) ε̂(z, label) − w ε̂(z) (their eq. 6).
      context: q(c|x) of what schedule and denoiser are told of the picture; None for nothing.
    """

    schedule: nn.Module
    net: nn.Module
    parameterisation: str
    shape: tuple[int, int, int]
    vocab_size: int
    classes: int
    condition: str
    timesteps: int
    times: str
    gamma_range: tuple[float, float]
    sampler: str
    sample_steps: int
    drop_label: float = 0.0
    guidance: float = 0.0
    context: context_lib.Encoder | None = None

    def init(self, key, batch):
        """{"schedule": …, "net": …, "context": …}: fresh parameters; the last, where there is one."""
        keys = jax.random.split(key)
        z = jnp.zeros((1, *self.shape))
        told = self.told({name: value[:1] for name, value in batch.items()})
        more = {}
        if self.context is None:
            schedule_args = ()
        else:
            schedule_args = (jnp.zeros((1, self.context.size)),)
            told = _beside(told, *schedule_args)
            more["context"] = self.context.init(jax.random.fold_in(key, 2), z)
        return {
            "schedule": self.schedule.init(keys[0], jnp.zeros(1), *schedule_args),
            "net": self.net.init(keys[1], z, jnp.zeros(1), told),
            **more,
        }

    def gamma(self, params, t, context=None):
        """γ at times t [...]: [...], or [..., height, width, channels] of a multivariate schedule,
        which `context` [..., k] can shift between its end points."""
        return self.schedule.apply(params["schedule"], t, *(() if context is None else (context,)))

    def told(self, batch):
        """What the denoiser is told beside γ and a context: [batch, k], or None."""
        return condition.told(self.condition, batch, self.classes)

    def draw_context(self, params, rng, x):
        """A draw of q(c|x) [batch, k] and its KL from the prior N(0, I), nats [batch]; or None, 0."""
        if self.context is None:
            return None, 0.0
        q = self.context.apply(params["context"], x)
        noise = rng.normal(randomness.CONTEXT, (self.context.size,))
        return gaussian.draw(q, noise), gaussian.kl(q, gaussian.STANDARD)

    def eps_hat(self, params, z_t, gamma, told, dropout_keys=None, context=None):
        """ε̂(z_t, γ): z_t [batch, height, width, channels], γ [batch] or like z_t, to the shape of
        z_t. Of a γ for each value the network is told the mean; `context` and t give the others."""
        low, high = self.gamma_range
        mean = gamma if gamma.ndim == 1 else jnp.mean(gamma, axis=(1, 2, 3))
        told = told if context is None else _beside(told, context)
        output = self.net.apply(params["net"], z_t, (mean - low) / (high - low), told, dropout_keys)
        return denoiser.eps_hat(
            output, z_t, over_pixels(gamma), self.parameterisation, self.vocab_size
        )

    def loss(self, params, rng, batch, train):
        """reconstruction, prior and diffusion (VDM eq. 11), and context where there is one, nats
        [batch], by one draw each."""
        return self.draw(params, rng, batch, train).terms

    def draw(self, params, rng, batch, train=False, cdf=None):
        """The Draw behind `loss`.

        Args:
          cdf: [k + 1], how times are distributed (times.warp); None for uniformly. It changes
            the variance of the diffusion term and not its mean.
        """
        x = encoder.scale(batch["image"], self.vocab_size)
        draw = self.draw_matching(params, rng, x, batch, train, cdf)
        eps_0 = rng.normal(randomness.RECONSTRUCTION, self.shape)
        levels, gamma_0 = batch["image"].astype(jnp.int32), self.gamma(params, jnp.zeros(()))
        reconstruction = elbo.reconstruction(levels, x, eps_0, gamma_0, self.vocab_size)
        return draw._replace(terms={"reconstruction": reconstruction, **draw.terms})

    def draw_matching(self, params, rng, x, batch, train, cdf):
        """The Draw of all terms but the reconstruction, of x [batch, height, width, channels]; of
        `batch`, only what the denoiser is told of it. Arguments are otherwise those of `draw`."""
        context, context_nats = self.draw_context(params, rng, x)
        t, weight = self._times(rng), jnp.ones(())
        if cdf is not None:
            t, weight = times.warp(t, cdf)
        # At finite depth the interior changes the ELBO itself, and is trained for it.
        least = self.timesteps == 0 and getattr(self.schedule, "min_variance", False)
        if not least:
            gamma_t, slope = self._at(params, t, context)
        else:
            of_ends, of_interior = (
                self._at(params | {"schedule": part}, t, context) for part in variance.split(params["schedule"])
            )
            entered, slot = variance.enter(of_interior)
            # The value of either, and the gradients of both.
            gamma_t, slope = (a + b - jax.lax.stop_gradient(b) for a, b in zip(of_ends, entered))

        eps = rng.normal(randomness.NOISE, self.shape)
        z_t = encoder.diffuse(x, over_pixels(gamma_t), eps)
        keys = rng.keys(randomness.DROPOUT) if train else None
        told = self.told(batch)
        if train and self.drop_label:
            told *= jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.drop_label, (1,)))(rng.keys(randomness.LABEL))
        eps_hat = self.eps_hat(params, z_t, gamma_t, told, keys, context)
        of_time = elbo.diffusion(eps, eps_hat, over_pixels(slope)) * weight
        if least:
            of_time = variance.leave(of_time, slot, math.prod(self.shape))
        terms = {"prior": elbo.prior(x, self.gamma(params, jnp.ones(()))), "diffusion": of_time}
        if self.context is not None:
            terms["context"] = context_nats
        # x − x̂ = (ε̂ − ε) σ/α, and elbo.diffusion with weight 2 is a sum of squares.
        error = elbo.diffusion(eps, eps_hat, over_pixels(2.0 * jnp.exp(gamma_t)))
        return Draw(terms, t, jnp.broadcast_to(weight, t.shape), error)

    def _times(self, rng):
        if self.times == "iid":
            u = jax.vmap(jax.random.uniform)(rng.keys(randomness.TIME))
        else:
            u = jax.random.uniform(rng.shared(randomness.TIME))
        return times.uniform(u, rng.strata(), self.times != "iid")

    def _at(self, params, t, context):
        """γ at the times t [batch], or of the steps of the chain that they fall into, and the weight
        of the squared error there."""
        if self.timesteps == 0:
            return schedule.with_slope(lambda t: self.gamma(params, t, context), t)
        step = jnp.minimum(jnp.floor(t * self.timesteps) + 1.0, self.timesteps)
        gamma_s, gamma_t = (
            self.gamma(params, (step - back) / self.timesteps, context) for back in (1.0, 0.0)
        )
        return gamma_t, elbo.step_weight(gamma_s, gamma_t, self.timesteps)

    def sample(self, params, rng, batch):
        """Samples, uint8 [batch, height, width, channels]."""
        z_0, gamma_0 = self.sample_z_0(params, rng, batch), self.gamma(params, jnp.zeros(()))
        draw = jax.vmap(lambda key, z: decoder.sample(key, z, gamma_0, self.vocab_size))
        return draw(rng.keys(randomness.DECODE), z_0).astype(jnp.uint8)

    def sample_z_0(self, params, rng, batch):
        """z_0 of the chain from noise down, [batch, height, width, channels]."""
        told = self.told(batch)
        steps = self.timesteps or self.sample_steps
        grid, context = jnp.linspace(0.0, 1.0, steps + 1), None
        if self.context is not None:  # of each picture, so that gammas are [steps + 1, batch, …]
            context = rng.normal(randomness.CONTEXT, (self.context.size,))
            grid = jnp.broadcast_to(grid[:, None], (steps + 1, context.shape[0]))
        gammas = self.gamma(params, grid, context)

        def predict_x(z_t, gamma):
            each = z_t.shape[:1] if gamma.ndim == 0 else z_t.shape
            eps_hat = lambda told: self.eps_hat(params, z_t, jnp.broadcast_to(gamma, each), told, context=context)  # noqa: E731
            eps = eps_hat(told)
            if self.guidance:
                eps += self.guidance * (eps - eps_hat(jnp.zeros_like(told)))
            return denoiser.x_from_eps(eps, z_t, gamma)

        z_1 = rng.normal(randomness.LATENT, self.shape)
        if self.sampler == "ancestral":
            return sampler.ancestral(predict_x, gammas, z_1, rng.keys(randomness.NOISE))
        return sampler.solve(predict_x, gammas, z_1, order=2 if self.sampler == "dpm2m" else 1)


def build(config, spec):
    """The Diffusion that `config` (config.model of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    one_of("config.model.schedule.name", config.schedule.name, schedule.SCHEDULES)
    one_of("config.model.parameterisation", config.parameterisation, denoiser.PARAMETERISATIONS)
    condition.check(config.condition, spec)
    one_of("config.model.sampler", config.sampler, sampler.SAMPLERS)
    one_of("config.model.times", config.times, times.TIMES)
    low, high = config.schedule.gamma_min, config.schedule.gamma_max
    require(
        low < high,
        f"config.model.schedule.gamma_min is {low} and gamma_max is {high}; "
        "gamma_min must be the smaller: γ = −log SNR grows from data to noise.",
    )
    for name in ("timesteps", "sample_steps"):
        least = 0 if name == "timesteps" else 1
        require(
            config[name] >= least,
            f"config.model.{name} is {config[name]}; accepted: {least} or more.",
        )
    require(0 <= config.drop_label < 1, f"config.model.drop_label is {config.drop_label}; accepted: 0 up to, but not, 1.")
    require(config.guidance >= 0, f"config.model.guidance is {config.guidance}; accepted: 0 (none) or more.")
    for name, needs, there in (
        ("drop_label", "config.model.condition = 'label'", config.condition == "label"),
        ("guidance", "config.model.drop_label > 0 in training", config.drop_label > 0),
    ):
        require(there or not config[name], f"config.model.{name} is {config[name]}, which needs {needs}; set it to 0.")
    made = schedule.SCHEDULES[config.schedule.name](config.schedule, tuple(spec.shape))
    size = config.schedule.context
    require(size >= 0, f"config.model.schedule.context is {size}; accepted: 0 (none) or more.")
    require(
        size == 0 or isinstance(made, schedule.Multivariate),
        f"config.model.schedule.context is {size}, but only the schedule 'multivariate' takes a "
        f"context, and config.model.schedule.name is {config.schedule.name!r}; set it to 0.",
    )
    outputs = denoiser.outputs(config.parameterisation, spec.shape[2], spec.vocab_size)
    return Diffusion(
        schedule=made,
        net=nets.build(config.net, spec, outputs),
        parameterisation=config.parameterisation,
        shape=tuple(spec.shape),
        vocab_size=spec.vocab_size,
        classes=spec.classes,
        condition=config.condition,
        timesteps=config.timesteps,
        times=config.times,
        gamma_range=(low, high),
        sampler=config.sampler,
        sample_steps=config.sample_steps,
        drop_label=config.drop_label,
        guidance=config.guidance,
        context=context_lib.Encoder(size) if size else None,
    )


def over_pixels(values):
    """[batch] to [batch, 1, 1, 1]; what has a value for each pixel, as it is."""
    return values[:, None, None, None] if values.ndim == 1 else values


def _beside(told, context):
    """Both side by side: [batch, k]."""
    return context if told is None else jnp.concatenate([told, context], axis=-1)
