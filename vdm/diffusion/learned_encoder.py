"""The encoder's mean x_t, a function of x and of the noise: x itself in a VDM, and learned in DiffEnc
(Nielsen et al. 2024).

  q(z_t|x) = N(α_t x_t, σ_t² I),  with x_0 = x.

q(z_s|z_t, x) keeps the variance that it has in a VDM and these marginals, so that its mean is that of a VDM
with y in place of x (encoder.posterior):

  y = x_t − (x_t − x_s)/(1 − e^{γ_s − γ_t}), and as s → t  y = x_t − dx_t/dγ.

p(z_s|z_t) is as in a VDM. So its denoiser predicts y, which is in terms of noise

  (z_t − α_t y)/σ_t = ε + α_t/σ_t (x_t − y),

and the three terms of the ELBO, chains, importance weights and samples are those of a VDM with this for ε.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm import component, nets
from vdm.component import Component, Registry, accept
from vdm.contract import Ability, Params
from vdm.data.dataset import Spec
from vdm.diffusion import encoder
from vdm.diffusion.schedule import Schedule
from vdm.errors import require
from vdm.nets import NETWORKS, Network
from vdm.parameters import Role

# Networks have sines of their time, of up to 1,000 radians between 0 and 1: too steep for x_t, whose slope
# counts.
SLOW = 0.01

Picture = Float[Array, "batch height width channels"]
Gamma = Float[Array, "batch"]


NEEDS_X = frozenset({Ability.DENOISER, Ability.CODE, Ability.SECOND_ORDER})  # for x_t


@dataclasses.dataclass(frozen=True)
class Encoder(Component):
    """x_t. One of one's own derives from it, and defines `x_t`; x_t at γ_0 must be x.

    Attributes:
      lacks: what a Diffusion with it cannot do; nothing, only where x_t is x.
    """

    lacks: ClassVar[frozenset[Ability]] = frozenset({*NEEDS_X, Ability.FLOW})

    def init(self, key: Array, x: Picture) -> Params:
        """Fresh parameters; None where it has none."""
        return None

    def roles(self, params: Params) -> PyTree[Role]:
        """What each parameter is to the optimiser."""
        raise NotImplementedError

    def x_t(self, params: Params, x: Picture, gamma: Gamma, gamma_0: Float[Array, ""]) -> Picture:
        """x_t at γ."""
        raise NotImplementedError

    def target(
        self, params: Params, x: Picture, eps: Picture, gamma: Array, gamma_s: Array | None, gamma_0: Array
    ) -> tuple[Picture, Picture]:
        """x_t, and the noise that the denoiser is to predict: ε + α/σ (x_t − y).

        Args:
          gamma: one for all, or for each example.
          gamma_s: of the step of a chain that goes from s to t; None in continuous time.
        """
        gamma = jnp.broadcast_to(gamma, x.shape[:1])
        if gamma_s is None:
            x_t, moves = with_slope(lambda gamma: self.x_t(params, x, gamma, gamma_0), gamma)
        else:
            gamma_s = jnp.broadcast_to(gamma_s, x.shape[:1])
            x_t = self.x_t(params, x, gamma, gamma_0)
            share = encoder.over_pixels(-jnp.expm1(gamma_s - gamma))
            moves = (x_t - self.x_t(params, x, gamma_s, gamma_0)) / share
        return x_t, eps + encoder.over_pixels(jnp.exp(-0.5 * gamma)) * moves

    def read(self, eps_hat: Picture, z_t: Picture, gamma: Array) -> Picture:
        """The prediction of the noise of y, from the network's ε̂."""
        return eps_hat

    def of_flow(self, eps_hat: Picture, z_t: Picture, gamma: Array) -> Picture:
        """What the probability-flow ODE takes for ε̂, from the prediction of the noise of y.

        z_t = α x_t + σ ε moves by dz_t/dγ = ½ σ (ε_f − σ z_t) with ε_f = ε + 2 α/σ dx_t/dγ. Of y and ε, the
        denoiser knows one.
        """
        raise NotImplementedError

    @classmethod
    def build(cls, section: Any, spec: Spec, schedule: Schedule) -> "Encoder":
        """The encoder that config.model.encoder describes."""
        return component.build(ENCODERS, section, "config.model.encoder")


@dataclasses.dataclass(frozen=True)
class Identity(Encoder):
    """x_t = x: a VDM."""

    lacks: ClassVar[frozenset[Ability]] = frozenset()

    def x_t(self, params, x, gamma, gamma_0):
        return x

    def target(self, params, x, eps, gamma, gamma_s, gamma_0):
        return x, eps

    def of_flow(self, eps_hat, z_t, gamma):
        return eps_hat


@dataclasses.dataclass(frozen=True)
class Scaled(Encoder):
    """x_t = α_t²/α_0² x: x fades as noise comes, by no parameters (the encoder of DiffEnc that is not
    trained).

    dx_t/dγ = −σ² x_t, so that y = (1 + σ²) x_t, and one prediction gives both.
    """

    lacks: ClassVar[frozenset[Ability]] = NEEDS_X

    def x_t(self, params, x, gamma, gamma_0):
        return encoder.over_pixels(jnp.exp(_log_faded(gamma, gamma_0))) * x

    def read(self, eps_hat, z_t, gamma):
        """ε̂ is of x_t: (1 + σ²) ε̂ − σ z_t is that of y."""
        return (1.0 + jax.nn.sigmoid(gamma)) * eps_hat - encoder.sigma(gamma) * z_t

    def of_flow(self, eps_hat, z_t, gamma):
        """2 ε̂_y − ε̂, as ε̂_y = ε̂ + α/σ dx̂_t/dγ."""
        eps = (eps_hat + encoder.sigma(gamma) * z_t) / (1.0 + jax.nn.sigmoid(gamma))
        return 2.0 * eps_hat - eps


@dataclasses.dataclass(frozen=True)
class Learned(Encoder):
    """x_t = x + (1 − α_t²/α_0²) r(x, γ), r a network that starts at zero: so training starts at a VDM.

    In DiffEnc x_t is α_t² x + σ_t² (r + x), which is this but for α_0² of nearly 1; it starts at Scaled.
    E[x_t|z_t] is not known beside E[y|z_t], so there is no probability-flow ODE.

    Attributes:
      net: r.
      ends: γ_0 and γ_1 as they are before training: between which r's time goes.
    """

    net: Network
    ends: tuple[float, float]

    sections = {"net": NETWORKS}

    def init(self, key, x):
        return self.net.init(key, x, jnp.zeros(len(x)))

    def roles(self, params):
        return self.net.roles(params)

    def x_t(self, params, x, gamma, gamma_0):
        low, high = self.ends
        moved = self.net.apply(params, x, SLOW * (gamma - low) / (high - low))
        return x - encoder.over_pixels(jnp.expm1(_log_faded(gamma, gamma_0))) * moved

    @classmethod
    def build(cls, section, spec, schedule):
        net = nets.build(section.net, spec.shape, spec.vocab_size, spec.shape[2], "config.model.encoder.net")
        return cls(net, (schedule.gamma_min, schedule.gamma_max))


READ = ("eps", "x", "v")  # how the network can be read: the others know how z_t comes from x

ENCODERS = Registry(Encoder, {"identity": Identity, "scaled": Scaled, "learned": Learned})


def build(section: Any, spec: Spec, schedule: Schedule) -> Encoder:
    """The encoder that config.model.encoder describes.

    Raises:
      UserError: it is unknown, or a field has a value that is not accepted.
    """
    return ENCODERS.find(section.name, "config.model.encoder.name").build(section, spec, schedule)


def check(made: Encoder, parameterisation: str, sampler: str, schedule: Schedule) -> None:
    """Raises Refused where the encoder does not go with one of these fields of its model, or UserError where
    it does not go with the schedule."""
    if not made.lacks:
        return
    field = "config.model.encoder.name = 'identity'"
    accept("parameterisation", parameterisation in READ, f"'eps', 'x', 'v'; another needs {field}")
    flows = sampler == "ancestral" or Ability.FLOW not in made.lacks
    accept("sampler", flows, f"'ancestral', as this encoder has no ODE; another needs {field}")
    require(
        not schedule.per_value,
        f"config.model.schedule.name gives each value a γ of its own, which needs {field}.",
    )


def with_slope(function: Callable[[Gamma], Picture], gamma: Gamma) -> tuple[Picture, Picture]:
    """A function of each example's γ, and its derivative, in reverse mode twice: networks have gradients of
    their own, which know no forward mode."""
    value, pull = jax.vjp(function, gamma)
    _, push = jax.vjp(pull, jnp.zeros_like(value))
    (slope,) = push((jnp.ones_like(gamma),))
    return value, slope


def _log_faded(gamma, gamma_0):
    """log α_t²/α_0²."""
    return jax.nn.log_sigmoid(-gamma) - jax.nn.log_sigmoid(-gamma_0)
