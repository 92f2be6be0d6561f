"""The Variational Diffusion Model: schedule, encoder, denoiser and decoder as one generative model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt8

from vdm import component, nets
from vdm.component import accept, choose
from vdm.contract import Ability, Batch, Draw, Latents, Model, Params, Random
from vdm.data.dataset import Spec, Split
from vdm.diffusion import (
    chain,
    condition as condition_lib,
    context as context_lib,
    decoder,
    denoiser,
    elbo,
    encoder,
    flow,
    learned_encoder,
    matching,
    path,
    sampler,
    stationary,
    times,
)
from vdm.diffusion.learned_encoder import ENCODERS, Encoder, Identity
from vdm.diffusion.schedule import SCHEDULES, Schedule
from vdm.nets import NETWORKS, Network
from vdm.parameters import Role, alike
from vdm.runtime import randomness

Picture = Float[Array, "batch height width channels"]


@dataclasses.dataclass(frozen=True)
class Diffusion(Model):
    """A VDM.

    Attributes:
      schedule: γ(t).
      net: the network inside the denoiser.
      shape: height, width and channels of a picture.
      vocab_size: levels of a value.
      classes: how many labels there are.
      parameterisation: what the network predicts: eps, x, v, levels or gaussian (denoiser.eps_hat).
      condition: what it is conditioned on in addition to γ: none, label or augmented.
      drop_label: share of the training pictures whose label is withheld, so that the denoiser can do without
        (Ho & Salimans 2022).
      guidance: w ≥ 0; samples go by (1 + w) ε̂(z, label) − w ε̂(z) (their eq. 6). Needs drop_label.
      timesteps: T, the depth of the chain; 0 for continuous time.
      times: how diffusion times are drawn: stratified over the global batch; iid; or importance, stratified
        and more of them where the loss varies more, as measured over about the last hundred steps.
      sampler: how samples are drawn: ancestral; or dpm2m, which needs about 20 steps, or ddim.
      sample_steps: its steps where T is 0.
      encoder: x_t, in whose place a VDM has x: identity, scaled or learned.
    """

    schedule: Schedule
    net: Network
    shape: tuple[int, int, int]
    vocab_size: int
    classes: int
    parameterisation: str = "eps"
    condition: str = "none"
    drop_label: float = 0.0
    guidance: float = 0.0
    timesteps: int = 0
    times: str = "stratified"
    sampler: str = "ancestral"
    sample_steps: int = 250
    encoder: Encoder = Identity()

    sections = {"schedule": SCHEDULES, "net": NETWORKS, "encoder": ENCODERS}

    def check(self) -> None:
        choose("parameterisation", self.parameterisation, denoiser.accepted(not self.schedule.per_value))
        condition_lib.check(self.condition, self.classes)
        choose("times", self.times, times.TIMES)
        choose("sampler", self.sampler, sampler.SAMPLERS)
        accept("timesteps", self.timesteps >= 0, "0 (continuous time) or more")
        accept("sample_steps", self.sample_steps >= 1, "1 or more")
        accept("drop_label", 0 <= self.drop_label < 1, "0 up to, but not, 1")
        accept(
            "drop_label", not self.drop_label or self.condition == "label", "0, unless condition = 'label'"
        )
        accept("guidance", self.guidance >= 0, "0 (none) or more")
        learned_encoder.check(self.encoder, self.parameterisation, self.sampler, self.schedule)
        accept("guidance", not self.guidance or self.drop_label, "0, unless drop_label > 0 in training")

    @property
    def abilities(self) -> frozenset[Ability]:
        further = {
            Ability.IMPORTANCE_TIMES: self.times == "importance",
            Ability.ONE_GAMMA: not self.schedule.per_value,
            Ability.CODE: not self.schedule.context_size,
            Ability.FIXED_ENDS: not self.schedule.learned_ends,
            Ability.INTERIOR: self.timesteps == 0 and self.schedule.learned_interior,
            Ability.SECOND_ORDER: not self.schedule.per_value,
        }
        always = (Ability.TIME, Ability.DENOISER, Ability.LOG_WEIGHT, Ability.FLOW)
        return frozenset({*always, *(one for one, holds in further.items() if holds)}) - self.encoder.lacks

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

    @property
    def context(self) -> context_lib.Encoder | None:
        """q(c|x) of the context that schedule and denoiser take; None for nothing."""
        return context_lib.Encoder(self.schedule.context_size) if self.schedule.context_size else None

    def init(self, key: Array, batch: Batch) -> Params:
        """{"schedule": …, "net": …}, and "context", "gaussian" and "x_t" where there are."""
        keys = jax.random.split(key)
        z = jnp.zeros((1, *self.shape))
        condition = self.condition_of({name: value[:1] for name, value in batch.items()})
        params: dict[str, Any] = {}
        contexts: tuple[Array, ...] = ()
        if self.context is not None:
            contexts = (jnp.zeros((1, self.schedule.context_size)),)
            params["context"] = self.context.init(jax.random.fold_in(key, 2), z)
        if self.parameterisation == "gaussian":
            params["gaussian"] = stationary.unit(self.shape)
            z, _ = stationary.start(params["gaussian"], z, jnp.zeros(1))
        moved = self.encoder.init(jax.random.fold_in(key, 3), z)
        params |= {} if moved is None else {"x_t": moved}
        return params | {
            "schedule": self.schedule.init(keys[0], jnp.zeros(1), *contexts),
            "net": self.net.init(keys[1], z, jnp.zeros(1), condition_lib.join(condition, *contexts)),
        }

    def fit(self, split: Split) -> Params:
        """The Gaussian of the pictures, where there is one."""
        gaussian = self.parameterisation == "gaussian"
        return {"gaussian": stationary.fit(split, self.shape, self.vocab_size)} if gaussian else {}

    def roles(self, params: Params) -> PyTree[Role]:
        others = {"context": Role(), "gaussian": Role(fixed=True)}
        more = {name: alike(params[name], role) for name, role in others.items() if name in params}
        if "x_t" in params:
            more["x_t"] = self.encoder.roles(params["x_t"])
        schedule = self.schedule.roles(params["schedule"])
        return more | {"schedule": schedule, "net": self.net.roles(params["net"])}

    def gamma(self, params: Params, t: Float[Array, "*times"], context: Array | None = None) -> Array:
        """γ(t); of a schedule for each value, [..., height, width, channels], which `context` [..., size]
        can shift between its end points."""
        return self.schedule.apply(params["schedule"], t, *(() if context is None else (context,)))

    def gammas(self, params: Params, steps: int, context: Array | None) -> Array:
        return self.gamma(params, times.grid(steps, context), context)

    def condition_of(self, batch: Batch) -> Float[Array, "batch size"] | None:
        return condition_lib.of_batch(self.condition, batch, self.classes)

    def eps_hat(
        self,
        params: Params,
        z_t: Picture,
        gamma: Array,
        condition: Float[Array, "batch size"] | None,
        dropout_keys: Array | None = None,
        context: Float[Array, "batch size"] | None = None,
    ) -> Picture:
        """ε̂(z_t, γ), with a γ for each picture or for each value.

        The network sees γ as 0 and 1 where the schedule starts and ends: constants, so that what it computes
        depends on t only through γ. Of a γ for each value it sees the mean; context and t give the others.
        """
        low, high = self.schedule.gamma_min, self.schedule.gamma_max
        time = (encoder.of_picture(gamma) - low) / (high - low)
        given, known = z_t, None
        if "gaussian" in params:
            given, known = stationary.start(params["gaussian"], z_t, gamma)
        output = self.net.apply(
            params["net"], given, time, condition_lib.join(condition, context), dropout_keys
        )
        gamma = encoder.over_pixels(gamma)
        eps = denoiser.eps_hat(output, z_t, gamma, self.parameterisation, self.vocab_size, known)
        return self.encoder.read(eps, z_t, gamma)

    def target(
        self, params: Params, x: Picture, eps: Picture, gamma: Array, gamma_s: Array | None = None
    ) -> tuple[Picture, Picture]:
        """x_t, and the noise that ε̂ is to predict (learned_encoder.Encoder.target)."""
        own = params.get("x_t")
        return self.encoder.target(own, x, eps, gamma, gamma_s, self.gamma(params, jnp.zeros(())))

    def x_hat(self, params: Params, rng: Random, batch: Batch, t: Float[Array, ""]) -> Picture:
        x = encoder.scale(batch["image"], self.vocab_size)
        context, _ = context_lib.draw(self.context, params, rng, x)
        gamma = self.gamma(params, jnp.broadcast_to(t, x.shape[:1]), context)
        z_t = encoder.diffuse(x, encoder.over_pixels(gamma), rng.normal(randomness.NOISE, self.shape))
        eps_hat = self.eps_hat(params, z_t, gamma, self.condition_of(batch), context=context)
        return denoiser.x_from_eps(eps_hat, z_t, encoder.over_pixels(gamma))

    def draw(self, params, rng, batch, train=False, cdf=None, apart=False, second=False) -> Draw:
        """reconstruction, prior and diffusion (VDM eq. 11), and context where there is one."""
        x = encoder.scale(batch["image"], self.vocab_size)
        draw = matching.draw(self, params, rng, x, batch, train, cdf, apart, second)
        eps_0 = rng.normal(randomness.RECONSTRUCTION, self.shape)
        levels, gamma_0 = batch["image"].astype(jnp.int32), self.gamma(params, jnp.zeros(()))
        reconstruction = elbo.reconstruction(levels, eps_0, gamma_0, self.vocab_size)
        return draw._replace(terms={"reconstruction": reconstruction, **draw.terms})

    def latents(self, timesteps) -> Latents:
        return chain.Linear(self, timesteps + 1).latents()

    def log_weight(self, params: Params, rng: Random, batch: Batch) -> Float[Array, "batch"]:
        """Of one path of the chain of T steps (VDM eq. 13, 14), and its context."""
        x, gamma_0 = encoder.scale(batch["image"], self.vocab_size), self.gamma(params, jnp.zeros(()))
        log_likelihood = decoder.log_likelihood(batch["image"], gamma_0, self.vocab_size)
        return path.of_model(self, params, rng, batch, x, log_likelihood)

    @property
    def flow_kinds(self):
        return flow.kinds(self)

    def flow(self, params, rng, batch, kind):
        return flow.of_images(self, params, rng, batch, kind)

    def sample(self, params, rng, batch) -> UInt8[Array, "batch height width channels"]:
        z_0, gamma_0 = self.sample_z_0(params, rng, batch), self.gamma(params, jnp.zeros(()))
        decode = jax.vmap(lambda key, z: decoder.sample(key, z, gamma_0, self.vocab_size))
        return decode(rng.keys(randomness.DECODE), z_0).astype(jnp.uint8)

    def sample_z_0(self, params: Params, rng: Random, batch: Batch) -> Picture:
        """z_0 of the chain from noise down, or of its ODE."""
        return sampler.of_model(self, params, rng, batch)

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "Diffusion":
        made = assemble(section, spec, **{field: section[field] for field in component.fields(cls)})
        component.check(made, section, "config.model")
        return made


def assemble(section: Any, spec: Spec, **fields: Any) -> Diffusion:
    """The Diffusion with the schedule and the network of a section of the config, and these fields.

    Raises:
      UserError: a field of the schedule or the network has a value that is not accepted.
    """
    schedule = component.build(SCHEDULES, section.schedule, "config.model.schedule", shape=spec.shape)
    outputs = denoiser.outputs(fields["parameterisation"], spec.shape[2], spec.vocab_size)
    net = nets.build(section.net, spec.shape, spec.vocab_size, outputs)
    encoder = learned_encoder.build(section.encoder, spec, schedule) if "encoder" in section else Identity()
    return Diffusion(schedule, net, spec.shape, spec.vocab_size, spec.classes, encoder=encoder, **fields)
