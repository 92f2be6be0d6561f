"""The Variational Diffusion Model (VDM: Kingma et al. 2021).

`Diffusion.bound` is the ELBO: VDM eq. 11, equation (21) of the lecture (docs/derivation.md). Its formulas are
here and in schedule.py, process.py, decoder.py and denoiser.py. A method of another paper is a subclass of
Diffusion or of one of its components (vdm/methods/, examples/clipped.py).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8
import numpy as np

from vdm import component, gaussian, nets
from vdm.arrays import Image
from vdm.component import accept
from vdm.contract import Ability, Batch, Denoising, Draw, DrawTimes, Flow, Latents, Model, Params, Random
from vdm.data import dataset
from vdm.data.dataset import Spec, Split
from vdm.diffusion import (
    condition as condition_lib,
    decoder,
    denoiser,
    dequantisation,
    importance_weights,
    process,
    verify,
)
from vdm.diffusion.denoiser import Eps, Parameterisation
from vdm.diffusion.sampler import Ancestral, Sampler
from vdm.diffusion.schedule import Schedule
from vdm.diffusion.times import Stratified, Times
from vdm.gaussian import Gaussian, total
from vdm.nets import Network
from vdm.parameters import Role
from vdm.runtime import randomness

Condition = Float[Array, "batch size"] | None
LogLikelihood = Callable[[Image], Float[Array, "batch"]]


@dataclasses.dataclass(frozen=True)
class Diffusion(Model):
    """A variational diffusion model (VDM).

    Attributes:
      schedule: γ(t).
      net: the network inside the denoiser.
      shape: height, width and channels of an image.
      vocab_size: number of levels of a value.
      classes: number of labels.
      parameterisation: what the network predicts.
      times: how training draws diffusion times.
      sampler: how samples are drawn.
      condition: what the network is conditioned on in addition to γ: none, label or augmented.
      drop_label: share of the training images whose label is withheld, so that the denoiser also works
        without labels (Ho & Salimans 2022).
      guidance: w ≥ 0; sampling uses (1 + w) ε̂(z, label) − w ε̂(z) (Ho & Salimans 2022, eq. 6), which needs
        drop_label.
      timesteps: T, the depth of the chain; 0 for continuous time.
      sample_steps: number of sampler steps if T is 0.
    """

    schedule: Schedule
    net: Network
    shape: tuple[int, int, int]
    vocab_size: int
    classes: int
    parameterisation: Parameterisation = Eps()
    times: Times = Stratified()  # type: ignore[assignment]  # a property in other models
    sampler: Sampler = Ancestral()
    condition: str = "none"
    drop_label: float = 0.0
    guidance: float = 0.0
    timesteps: int = 0
    sample_steps: int = 250

    sections = {
        "schedule": "schedule",
        "net": "network",
        "parameterisation": "parameterisation",
        "times": "times",
        "sampler": "sampler",
    }

    # ---- the ELBO ----------------------------------------------------------------

    def draw(self, params, rng, batch, train=False, times=None) -> Draw:
        """The ELBO's terms of images, with p(x|z_0) from decoder.py."""
        x, levels = process.scale(batch["image"], self.vocab_size), batch["image"].astype(jnp.int32)
        fixed = not self.schedule.learned_ends
        reach = decoder.reach(self.schedule.gamma_min, self.vocab_size) if fixed else None

        def log_p(eps_0, gamma_0):
            offset = jnp.exp(0.5 * gamma_0) * eps_0  # z_0/α_0 − x = σ_0/α_0 ε_0
            each = decoder.log_prob_at(levels, offset, gamma_0, self.vocab_size, reach)
            return jnp.sum(each, axis=(1, 2, 3))

        return self.bound(params, rng, batch, x, log_p, train, times)

    def bound(
        self,
        params: Params,
        rng: Random,
        batch: Batch,
        x: Image,
        log_p: Callable[[Image, Array], Array],
        train: bool = False,
        times: DrawTimes | None = None,
    ) -> Draw:
        """−log p(x) ≤ reconstruction + prior + diffusion (VDM eq. 11; lecture (21)), nats per image.
        Each term is an unbiased estimate from one draw, so that the expected sum is the bound.

        Args:
          batch: only its condition is used; x and log_p contain the images.
          x: the images, scaled to [−1, 1]; a latent model passes its latents instead.
          log_p: (ε_0, γ_0) → log p(x|z_0), with z_0 = α_0 x + σ_0 ε_0.
          train: whether dropout is on and labels are withheld.
          times: (rng) → (t, 1/q(t)), with t in [0, 1) drawn from the density q. By default q is uniform.
        """
        condition = self.condition_of(batch)
        if train and self.drop_label:
            keep = condition_lib.keeps_label(rng.keys(randomness.LABEL), self.drop_label)
            without = self.unconditional(condition)
            assert condition is not None and without is not None  # there is a label (`check`)
            condition = jnp.where(keep, condition, without)
        # The draws: noise from N(0, I), with separate keys for each use, and a time t from the density q. The
        # time determines γ_t (and γ_s in a chain) and the weight w. γ_0 and γ_1 do not depend on the
        # condition.
        eps_0 = rng.normal(randomness.RECONSTRUCTION, self.shape)
        eps = rng.normal(randomness.NOISE, self.shape)
        t, one_over_q = times(rng) if times else (rng.uniform(randomness.TIME), jnp.ones(()))
        given = self.schedule_given(condition)
        gamma_s, gamma_t, weight = self.schedule.at(params["schedule"], t, self.timesteps, *given)
        gamma_1, gamma_0 = self.gamma(params, jnp.ones(())), self.gamma(params, jnp.zeros(()))

        # Reconstruction: E [−log p(x|z_0)], z_0 = α_0 x + σ_0 ε_0.
        reconstruction = -log_p(eps_0, gamma_0)

        # Prior matching: KL(q(z_1|x) ‖ p(z_1)), p(z_1) = N(0, I).
        signal, _ = self.target(params, x, eps, gamma_1, None)
        prior = process.kl_to_standard(signal, gamma_1)

        # Denoising matching: E ½ w(t) ‖ε − ε̂(z_t)‖² over t and ε, z_t = α_t x + σ_t ε. In continuous time w
        # is γ'(t) (VDM eq. 17). In a chain of T steps it is T (e^{γ_t − γ_s} − 1), and the mean over t is the
        # sum over all steps of KL(q(z_s|z_t, x) ‖ p(z_s|z_t)) (VDM eq. 13, 14).
        signal, target = self.target(params, x, eps, gamma_t, gamma_s)  # x and ε in a VDM
        z_t = process.diffuse(signal, process.over_pixels(gamma_t), eps)
        keys = rng.keys(randomness.DROPOUT) if train else None
        predict = lambda z: self.eps_hat(params, z, gamma_t, condition, keys)
        eps_hat = predict(z_t)
        square = process.over_pixels(weight) * jnp.square(target - eps_hat)
        diffusion = 0.5 * jnp.sum(square, axis=(1, 2, 3)) * one_over_q

        one_over_q = jnp.broadcast_to(one_over_q, t.shape)
        return Draw(
            {"reconstruction": reconstruction, "prior": prior, "diffusion": diffusion},
            Denoising(t, one_over_q, gamma_t, weight, x, eps, z_t, target, eps_hat, predict, rng),
        )

    def gamma(self, params: Params, t: Float[Array, "*times"], condition: Condition = None) -> Array:
        """γ(t), of shape [..., height, width, channels] if γ differs between values."""
        return self.schedule.apply(params["schedule"], t, *self.schedule_given(condition))

    def eps_hat(
        self,
        params: Params,
        z_t: Image,
        gamma: Array,
        condition: Condition,
        dropout_keys: Array | None = None,
    ) -> Image:
        """ε̂(z_t, γ), with one γ per image or one per value.

        The network's input is (γ − γ_min)/(γ_max − γ_min), with the configured gamma_min and gamma_max, even
        if γ(0) and γ(1) are learned; if γ differs between values, with the mean γ of the image.
        """
        low, high = self.schedule.gamma_min, self.schedule.gamma_max
        time = (process.of_image(gamma) - low) / (high - low)
        net = lambda given: self.net.predict(params["net"], given, time, condition, dropout_keys)
        gamma = process.over_pixels(gamma)
        return self.parameterisation.eps_hat(net, z_t, gamma, params, self.vocab_size)

    def target(
        self, params: Params, x: Image, eps: Image, gamma: Array, gamma_s: Array | None
    ) -> tuple[Image, Image]:
        """(signal, target): q(z_t|x) = N(α_t signal, σ_t² I), and ε̂ is trained to predict the target. In a
        VDM these are x and ε; a model that encodes x changes both.

        Args:
          gamma: γ_t, one for all images or one per image.
          gamma_s: γ_s of a chain's step from t to s; None in continuous time.
        """
        return x, eps

    def condition_of(self, batch: Batch) -> Condition:
        return condition_lib.of_batch(self.condition, batch, self.classes)

    def schedule_given(self, condition: Condition) -> tuple[Array, ...]:
        """The arguments of γ besides t; () in a VDM."""
        return ()

    # ---- samples -----------------------------------------------------------------

    def sample(self, params, rng, batch) -> UInt8[Array, "batch height width channels"]:
        return self.decode(params, rng, self.sample_z_0(params, rng, batch))

    def decode(self, params: Params, rng: Random, z_0: Image) -> UInt8[Array, "batch height width channels"]:
        """A draw of p(x|z_0)."""
        gamma_0 = self.gamma(params, jnp.zeros(()))
        draw = jax.vmap(lambda key, z: decoder.sample(key, z, gamma_0, self.vocab_size))
        return draw(rng.keys(randomness.DECODE), z_0).astype(jnp.uint8)

    def sample_z_0(self, params: Params, rng: Random, batch: Batch) -> Image:
        """A draw of z_0 by the sampler, along the chain or its ODE."""
        condition = self.condition_of(batch)

        def predict_x(z_t, gamma):
            gamma_of_each = importance_weights.of_each(gamma, z_t)
            eps_hat = lambda condition: self.eps_hat(params, z_t, gamma_of_each, condition)
            eps = denoiser.guided(eps_hat, condition, self.unconditional(condition), self.guidance)
            if self.sampler.ode:
                eps = self.noise_of_flow(eps, z_t, gamma)
            return denoiser.x_from_eps(eps, z_t, gamma)

        gammas = self.gammas(params, self.timesteps or self.sample_steps, condition)
        z_1 = rng.normal(randomness.LATENT, self.shape)
        return self.sampler.sample(predict_x, gammas, z_1, rng.keys(randomness.NOISE))

    def x_hat(self, params: Params, rng: Random, batch: Batch, t: Float[Array, ""]) -> Image:
        x, condition = process.scale(batch["image"], self.vocab_size), self.condition_of(batch)
        gamma = self.gamma(params, jnp.broadcast_to(t, x.shape[:1]), condition)
        z_t = process.diffuse(x, process.over_pixels(gamma), rng.normal(randomness.NOISE, self.shape))
        eps_hat = self.eps_hat(params, z_t, gamma, condition)
        return denoiser.x_from_eps(eps_hat, z_t, process.over_pixels(gamma))

    def gammas(self, params: Params, steps: int, condition: Condition) -> Array:
        """γ at times 0, 1/steps, …, 1."""
        return self.gamma(params, jnp.linspace(0.0, 1.0, steps + 1), condition)

    def unconditional(self, condition: Condition) -> Condition:
        """The condition without the label."""
        return None if condition is None else jnp.zeros_like(condition)

    # ---- importance weights ------------------------------------------------------

    def log_weight(self, params, rng, batch) -> Float[Array, "batch"]:
        """The log weight of one path of the chain of T steps."""
        x, gamma_0 = process.scale(batch["image"], self.vocab_size), self.gamma(params, jnp.zeros(()))
        log_likelihood = decoder.log_likelihood(batch["image"], gamma_0, self.vocab_size)
        return self.log_weight_of(params, rng, batch, x, log_likelihood)

    def log_weight_of(
        self, params: Params, rng: Random, batch: Batch, x: Image, log_likelihood: LogLikelihood
    ) -> Float[Array, "batch"]:
        """The log weight of one path for any x, with log p(x|z_0) as a function of z_0."""
        condition = self.condition_of(batch)
        return importance_weights.log_weight(
            lambda z, gamma: self.eps_hat(params, z, gamma, condition),
            x,
            log_likelihood,
            self.gammas(params, self.timesteps, condition),
            rng.keys(randomness.NOISE),
            lambda *args: self.target(params, *args),
        )

    def sample_and_log_weight(self, params, rng, batch):
        """Draws samples by the chain of T steps without guidance, not by the model's sampler."""
        gamma_0 = self.gamma(params, jnp.zeros(()))

        def decode(z_0):
            image = self.decode(params, rng, z_0)
            log_p = decoder.log_likelihood(image, gamma_0, self.vocab_size)(z_0)
            return image, process.scale(image, self.vocab_size), log_p

        return self.sample_and_log_weight_of(params, rng, batch, decode)

    def sample_and_log_weight_of(
        self, params: Params, rng: Random, batch: Batch, decode: Callable[[Image], tuple[Any, Image, Array]]
    ) -> tuple[Any, Float[Array, "batch"]]:
        """`sample_and_log_weight` for any p(x|z_0); `decode` is as in importance_weights.of_sample."""
        condition = self.condition_of(batch)
        return importance_weights.of_sample(
            lambda z, gamma: self.eps_hat(params, z, gamma, condition),
            decode,
            self.gammas(params, self.timesteps, condition),
            rng.normal(randomness.LATENT, self.shape),
            rng.keys(randomness.NOISE),
            lambda *args: self.target(params, *args),
        )

    # ---- the probability-flow ODE ------------------------------------------------

    @property
    def flow_kinds(self):
        """The kinds of dequantisation. If γ differs between values, uniform noise would not start on the path
        of q(z_t|x)."""
        return ("normal",) if self.schedule.per_value else dequantisation.KINDS

    def flow(self, params, rng, batch, kind) -> Flow:
        """The flow from a random point z in the cells of the levels; its nats are −log q(z)."""
        condition = self.condition_of(batch)
        gamma_0 = self.gammas(params, 1, condition)[0]
        keys = rng.keys(randomness.DECODE)
        start = dequantisation.dequantise(kind, keys, batch["image"], gamma_0, self.vocab_size)
        z, gamma_0, nats = start
        return self.flow_from(params, condition, z, gamma_0, nats)

    def flow_of_latents(
        self, params: Params, rng: Random, batch: Batch, x: Image, log_likelihood: LogLikelihood
    ) -> Flow:
        """The flow from z_0 = α x + σ ε, drawn from q(z_0|x); its nats are log p(x|z_0) − log q(z_0|x).

        Args:
          x: the latents that represent the images.
          log_likelihood: z_0 → log p(x|z_0), in nats.
        """
        condition = self.condition_of(batch)
        gamma_0 = self.gammas(params, 1, condition)[0]
        eps = gaussian.noise(rng.keys(randomness.DECODE), self.shape)
        z_0 = process.diffuse(x, gamma_0, eps)
        log_sigma = jnp.broadcast_to(jnp.log(process.sigma(gamma_0)), eps.shape)
        log_q = gaussian.log_prob(gaussian.STANDARD, eps) - total(log_sigma)
        return self.flow_from(params, condition, z_0, gamma_0, log_likelihood(z_0) - log_q)

    def flow_from(self, params: Params, condition: Condition, z: Image, gamma_0: Array, nats: Array) -> Flow:
        """The flow of the ODE from z at γ_0, with the given nats."""

        def eps_hat(z, gamma, condition):
            eps = self.eps_hat(params, z, gamma, condition)
            return self.noise_of_flow(eps, z, process.over_pixels(gamma))

        if not self.schedule.per_value:
            gamma_1 = self.gammas(params, 1, condition)[1]
            return Flow(z, (gamma_0, gamma_1), eps_hat, condition, None, nats)
        times = (jnp.zeros(()), jnp.ones(()))
        return Flow(z, times, eps_hat, condition, lambda t, given: self.gamma(params, t, given), nats)

    def noise_of_flow(self, eps_hat: Image, z_t: Image, gamma: Array) -> Image:
        """The noise in the velocity of the ODE: ε̂ itself, as ε̂ predicts ε."""
        return eps_hat

    # ---- the latents of the chain ------------------------------------------------

    def latents(
        self,
        timesteps: int,
        mean: Callable[[Params, Batch], Array] | None = None,
        logits: Callable[[Params, Array], Array] | None = None,
    ) -> Latents:
        """z_1 … z_{T+1} in the lecture's notation: z_1 is at γ(0), and the last at γ(1).

        Args:
          mean: (params, batch) → what represents x in the chain; by default x itself.
          logits: (params, z_1) → the logits of p(x|z_1); by default those of the decoder.
        """

        def gamma(params, t):
            return self.gamma(params, jnp.asarray((t - 1) / timesteps))

        def of_batch(params, batch):
            return process.scale(batch["image"], self.vocab_size) if mean is None else mean(params, batch)

        def p(params, t, z, batch, keys=None):
            gamma_t = gamma(params, t)
            of_each = importance_weights.of_each(gamma_t, z)
            eps_hat = self.eps_hat(params, z, of_each, self.condition_of(batch), keys)
            x_hat = denoiser.x_from_eps(eps_hat, z, gamma_t)
            return _gaussian(process.posterior(z, x_hat, gamma(params, t - 1), gamma(params, t)))

        return Latents(
            timesteps + 1,
            self.shape,
            q_1=lambda params, batch: _gaussian(process.marginal(of_batch(params, batch), gamma(params, 1))),
            q=lambda params, t, z: _gaussian(process.transition(z, gamma(params, t - 1), gamma(params, t))),
            p=p,
            prior=lambda params: gaussian.STANDARD,
            logits=logits or (lambda params, z: decoder.logits(z, gamma(params, 1), self.vocab_size)),
            deviations=lambda params: _deviations(gamma(params, jnp.arange(1, timesteps + 2))),
        )

    # ---- parameters, checks, construction ----------------------------------------

    def init(self, key: Array, batch: Batch) -> Params:
        """{"schedule": …, "net": …}, and the parameters of the parameterisation."""
        keys = jax.random.split(key)
        condition = self.condition_of({name: value[:1] for name, value in batch.items()})
        params: dict[str, Any] = self.parameterisation.init(self.shape)
        params["schedule"] = self.schedule.init(keys[0], jnp.zeros(1), *self.schedule_given(condition))

        def net(given):
            params["net"] = self.net.init(keys[1], given, jnp.zeros(1), condition)
            return jnp.zeros((*given.shape[:-1], self.net.out_channels))

        # The parameterisation determines the network's input.
        self.parameterisation.eps_hat(
            net, jnp.zeros((1, *self.shape)), jnp.zeros((1, 1, 1, 1)), params, self.vocab_size
        )
        return params

    def fit(self, split: Split) -> Params:
        return self.parameterisation.fit(split, self.shape, self.vocab_size)

    def roles(self, params: Params) -> PyTree[Role]:
        schedule, net = self.schedule.roles(params["schedule"]), self.net.roles(params["net"])
        return self.parameterisation.roles(params) | {"schedule": schedule, "net": net}

    def check(self) -> None:
        condition_lib.check(self.condition, self.classes)
        accept(
            "parameterisation.name",
            not (self.schedule.per_value and self.parameterisation.one_gamma),
            "one that accepts a γ for each value, which the schedule gives, such as 'eps', 'x', 'v'",
        )
        accept("timesteps", self.timesteps >= 0, "0 (continuous time) or more")
        accept("sample_steps", self.sample_steps >= 1, "1 or more")
        accept("drop_label", 0 <= self.drop_label < 1, "at least 0 and below 1")
        accept(
            "drop_label", not self.drop_label or self.condition == "label", "0, unless condition = 'label'"
        )
        accept("guidance", self.guidance >= 0, "0 (none) or more")
        accept("guidance", not self.guidance or self.drop_label, "0, unless drop_label > 0 in training")

    def verify(self, params: Params) -> None:
        verify.schedule(self.schedule, params["schedule"])
        # Only custom components are checked here; tests cover the built-in ones.
        if component.is_own(self.times):
            verify.times(self.times)
        if component.is_own(self.sampler):
            verify.sampler(self.sampler)
        if component.is_own(self.parameterisation):
            verify.parameterisation(self.parameterisation, params, self.shape, self.vocab_size)
        own = [part for part in (self, self.net, self.parameterisation) if component.is_own(part)]
        if own:
            condition = self.condition_of(self.example(3))
            predict = lambda params, z, gamma: self.eps_hat(params, z, gamma, condition)
            verify.images_apart(" or ".join(type(part).__name__ for part in own), predict, params, self.shape)

    def example(self, count: int) -> Batch:
        """A batch of `count` blank images, with all that a condition may consist of."""
        blank = dataset.blank(Spec(self.shape, self.vocab_size, self.classes))
        return {name: np.repeat(values, count, axis=0) for name, values in blank.items()}

    @property
    def abilities(self) -> frozenset[Ability]:
        further = {
            Ability.ONE_GAMMA: not self.schedule.per_value,
            Ability.PREDICTS_NOISE: not self.schedule.per_value,
            Ability.FIXED_ENDS: not self.schedule.learned_ends,
            Ability.INTERIOR: self.timesteps == 0 and self.schedule.learned_interior,
        }
        always = (Ability.TIME, Ability.DENOISER, Ability.LOG_WEIGHT, Ability.FLOW, Ability.CODE)
        return frozenset({*always, *(one for one, holds in further.items() if holds)})

    @property
    def given_label(self) -> bool:
        return self.condition == "label"

    @property
    def heavy(self) -> bool:
        return self.net.heavy

    @property
    def depth(self) -> int:
        return self.timesteps

    def at_depth(self, timesteps: int) -> "Diffusion":
        return dataclasses.replace(self, timesteps=timesteps)

    def with_schedule(self, change: Callable[[Schedule], Any]) -> "Diffusion":
        return dataclasses.replace(self, schedule=change(self.schedule))

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "Diffusion":
        made = cls.assemble(section, spec, **{field: section[field] for field in component.fields(cls)})
        component.check(made, section, "config.model")
        return made

    @classmethod
    def assemble(cls, section: Any, spec: Spec, **fields: Any) -> "Diffusion":
        """A Diffusion with the components that a section of the config describes, and the given fields.

        Raises:
          UserError: a field of a component has a value that is not accepted.
        """

        def part(name, **given):
            return component.build(Diffusion.sections[name], section[name], f"config.model.{name}", **given)

        schedule, parameterisation = part("schedule", shape=spec.shape), part("parameterisation")
        outputs = parameterisation.outputs(spec.shape[2], spec.vocab_size)
        net = nets.build(section.net, spec.shape, spec.vocab_size, outputs)
        more = {name: part(name) for name in ("times", "sampler") if name in section} | fields
        of_data = (spec.shape, spec.vocab_size, spec.classes)
        return cls(schedule, net, *of_data, parameterisation=parameterisation, **more)


def _gaussian(moments):
    mean, variance = moments
    return Gaussian(mean, jnp.log(variance))


def _deviations(gamma: Float[Array, "T *any"]) -> Float[np.ndarray, "T *any"]:
    """The smallest standard deviation of each z_t under q and p.

    This is the smaller of σ_t (1 − e^{γ_t − γ_{t+1}})^½, that of p(z_t|z_{t+1}), and
    σ_t (1 − e^{γ_{t−1} − γ_t})^½, that of q(z_t|z_{t−1}).
    """
    share = jnp.sqrt(-jnp.expm1(gamma[:-1] - gamma[1:]))
    sigma = process.sigma(gamma)
    below, above = (sigma[part] * share for part in (slice(1, None), slice(None, -1)))
    found = sigma.at[1:].min(below).at[:-1].min(above)
    return np.asarray(found, np.float64)
