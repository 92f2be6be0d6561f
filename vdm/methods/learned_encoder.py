"""An encoder's mean x_t, a function of x and the noise level: x itself in a VDM, and learned in DiffEnc
(Nielsen et al. 2024).

  q(z_t|x) = N(α_t x_t, σ_t² I),  with x_0 = x.

q(z_s|z_t, x) has the variance of a VDM and the marginals above, so that its mean is that of a VDM with y in
place of x (process.posterior):

  y = x_t − (x_t − x_s)/(1 − e^{γ_s − γ_t}), and as s → t  y = x_t − dx_t/dγ.

p(z_s|z_t) is that of a VDM. So the denoiser predicts y, which corresponds to the noise

  (z_t − α_t y)/σ_t = ε + α_t/σ_t (x_t − y),

and the three terms of the ELBO, chains, importance weights and samples are those of a VDM with this noise in
place of ε.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm import component, nets
from vdm.arrays import Image
from vdm.component import Component, accept
from vdm.contract import Ability, Params
from vdm.data.dataset import Spec
from vdm.diffusion import process
from vdm.diffusion.model import Diffusion
from vdm.diffusion.schedule import Schedule
from vdm.errors import require
from vdm.nets import Network
from vdm.parameters import Role

# Networks embed their time by sines of up to 1,000 radians between 0 and 1: too steep for x_t, whose slope in
# γ enters the ELBO.
TIME_SCALE = 0.01

Gamma = Float[Array, "batch"]


NEEDS_X = frozenset({Ability.DENOISER, Ability.CODE, Ability.PREDICTS_NOISE})  # abilities that need x_t = x


@dataclasses.dataclass(frozen=True)
class Encoder(Component):
    """x_t, a function of x and γ. A subclass defines `x_t`, which must be x at γ_0.

    Attributes:
      lacks: abilities that a Diffusion with this encoder lacks.
    """

    lacks: ClassVar[frozenset[Ability]] = frozenset({*NEEDS_X, Ability.FLOW})

    def init(self, key: Array, x: Image) -> Params:
        """Initial parameters; None if the encoder has no parameters."""
        return None

    def roles(self, params: Params) -> PyTree[Role]:
        """The role of each parameter for the optimiser."""
        raise NotImplementedError

    def x_t(self, params: Params, x: Image, gamma: Gamma, gamma_0: Float[Array, ""]) -> Image:
        """x_t at γ."""
        raise NotImplementedError

    def target(
        self, params: Params, x: Image, eps: Image, gamma: Array, gamma_s: Array | None, gamma_0: Array
    ) -> tuple[Image, Image]:
        """x_t, and the noise that the denoiser must predict: ε + α/σ (x_t − y).

        Args:
          gamma: γ_t, one for all examples or one per example.
          gamma_s: γ_s of a chain's step from t to s; None in continuous time.
        """
        gamma = jnp.broadcast_to(gamma, x.shape[:1])
        if gamma_s is None:
            x_t, moves = with_slope_in_reverse(lambda gamma: self.x_t(params, x, gamma, gamma_0), gamma)
        else:
            gamma_s = jnp.broadcast_to(gamma_s, x.shape[:1])
            x_t = self.x_t(params, x, gamma, gamma_0)
            share = process.over_pixels(-jnp.expm1(gamma_s - gamma))
            moves = (x_t - self.x_t(params, x, gamma_s, gamma_0)) / share
        return x_t, eps + process.over_pixels(jnp.exp(-0.5 * gamma)) * moves

    def read(self, eps_hat: Image, z_t: Image, gamma: Array) -> Image:
        """The prediction of the noise that corresponds to y, from the network's ε̂."""
        return eps_hat

    def of_flow(self, eps_hat: Image, z_t: Image, gamma: Array) -> Image:
        """ε̂ of the probability-flow ODE, from the prediction of the noise that corresponds to y.

        z_t = α x_t + σ ε has the velocity dz_t/dγ = ½ σ (ε_f − σ z_t) with ε_f = ε + 2 α/σ dx_t/dγ. This
        needs both E[y|z_t] and E[ε|z_t], but the denoiser predicts only the first.
        """
        raise NotImplementedError

    @classmethod
    def build(cls, section: Any, spec: Spec, schedule: Schedule) -> "Encoder":
        """The encoder that config.model.encoder describes."""
        return component.build("encoder", section, "config.model.encoder")


@dataclasses.dataclass(frozen=True)
class Scaled(Encoder):
    """x_t = α_t²/α_0² x: x fades with the noise, without parameters (DiffEnc's encoder that is not trained).

    dx_t/dγ = −σ² x_t, so that y = (1 + σ²) x_t, and one prediction gives both.
    """

    lacks: ClassVar[frozenset[Ability]] = NEEDS_X

    def x_t(self, params, x, gamma, gamma_0):
        return process.over_pixels(jnp.exp(_log_faded(gamma, gamma_0))) * x

    def read(self, eps_hat, z_t, gamma):
        """(1 + σ²) ε̂ − σ z_t, as ε̂ is the noise that corresponds to x_t."""
        return (1.0 + jax.nn.sigmoid(gamma)) * eps_hat - process.sigma(gamma) * z_t

    def of_flow(self, eps_hat, z_t, gamma):
        """2 ε̂_y − ε̂, as ε̂_y = ε̂ + α/σ dx̂_t/dγ."""
        eps = (eps_hat + process.sigma(gamma) * z_t) / (1.0 + jax.nn.sigmoid(gamma))
        return 2.0 * eps_hat - eps


@dataclasses.dataclass(frozen=True)
class Learned(Encoder):
    """x_t = x + (1 − α_t²/α_0²) r(x, γ) with a network r that is initialised to zero, so that training starts
    from a VDM.

    In DiffEnc x_t is α_t² x + σ_t² (r + x), which is the same up to α_0² ≈ 1, and starts from Scaled.
    Only E[y|z_t] is known, and not E[x_t|z_t], so there is no probability-flow ODE.

    Attributes:
      net: the network r, without dropout: its field `dropout` is not used.
      ends: the initial γ_0 and γ_1, for which the time in the input of r is 0 and TIME_SCALE.
    """

    net: Network
    ends: tuple[float, float]

    sections = {"net": "network"}

    def init(self, key, x):
        return self.net.init(key, x, jnp.zeros(len(x)))

    def roles(self, params):
        return self.net.roles(params)

    def x_t(self, params, x, gamma, gamma_0):
        low, high = self.ends
        moved = self.net.predict(params, x, TIME_SCALE * (gamma - low) / (high - low))
        return x - process.over_pixels(jnp.expm1(_log_faded(gamma, gamma_0))) * moved

    @classmethod
    def build(cls, section, spec, schedule):
        net = nets.build(section.net, spec.shape, spec.vocab_size, spec.shape[2], "config.model.encoder.net")
        return cls(net, (schedule.gamma_min, schedule.gamma_max))


@dataclasses.dataclass(frozen=True)
class DiffEnc(Diffusion):
    """A VDM with the x_t of `encoder` (DiffEnc: Nielsen et al. 2024)."""

    encoder: Encoder = Scaled()

    sections = Diffusion.sections | {"encoder": "encoder"}

    def target(self, params, x, eps, gamma, gamma_s):
        """x_t, and the noise that corresponds to y."""
        gamma_0 = self.gamma(params, jnp.zeros(()))
        return self.encoder.target(params.get("x_t"), x, eps, gamma, gamma_s, gamma_0)

    def eps_hat(self, params, z_t, gamma, condition, dropout_keys=None):
        """The prediction of the noise that corresponds to y."""
        eps_hat = super().eps_hat(params, z_t, gamma, condition, dropout_keys)
        return self.encoder.read(eps_hat, z_t, process.over_pixels(gamma))

    def noise_of_flow(self, eps_hat, z_t, gamma):
        return self.encoder.of_flow(eps_hat, z_t, gamma)

    @property
    def flow_kinds(self):
        """Only "normal", as uniform noise would not start on the path of q(z_t|x)."""
        return ("normal",)

    def init(self, key, batch):
        """The parameters of a VDM, and "x_t" if the encoder has parameters."""
        moved = self.encoder.init(jax.random.fold_in(key, 3), jnp.zeros((1, *self.shape)))
        return super().init(key, batch) | ({} if moved is None else {"x_t": moved})

    def roles(self, params):
        own = {"x_t": self.encoder.roles(params["x_t"])} if "x_t" in params else {}
        return super().roles(params) | own

    @property
    def abilities(self):
        return super().abilities - self.encoder.lacks

    def check(self) -> None:
        super().check()
        field = "config.model.name = 'diffusion'"
        accept(
            "parameterisation.name",
            not self.parameterisation.of_levels,
            f"'eps', 'x', 'v'; other parameterisations need {field}",
        )
        flows = not self.sampler.ode or Ability.FLOW not in self.encoder.lacks
        accept("sampler.name", flows, f"'ancestral', as this encoder has no ODE; other samplers need {field}")
        require(
            not self.schedule.per_value,
            f"config.model.schedule.name gives each value a separate γ, which needs {field}.",
        )

    @classmethod
    def assemble(cls, section, spec, **fields):
        encoders = component.find("encoder", section.encoder.name, "config.model.encoder.name")
        made = super().assemble(section, spec, **fields)
        return dataclasses.replace(made, encoder=encoders.build(section.encoder, spec, made.schedule))


def with_slope_in_reverse(function: Callable[[Gamma], Image], gamma: Gamma) -> tuple[Image, Image]:
    """The value of a function of each example's γ, and its derivative, by reverse mode twice, as networks
    have custom gradients without forward mode."""
    value, pull = jax.vjp(function, gamma)
    _, push = jax.vjp(pull, jnp.zeros_like(value))
    (slope,) = push((jnp.ones_like(gamma),))
    return value, slope


def _log_faded(gamma, gamma_0):
    """log α_t²/α_0²."""
    return jax.nn.log_sigmoid(-gamma) - jax.nn.log_sigmoid(-gamma_0)
