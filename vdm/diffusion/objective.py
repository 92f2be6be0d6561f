"""What training minimises, made of one draw of the ELBO. Evaluation never sees it.

An objective is a function of a contract.Draw: name to nats per example, whose sum is minimised. A new one is
a class that derives from Objective.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm import component
from vdm.component import Component, Registry, accept, choose
from vdm.contract import Ability, Draw, Model, Terms
from vdm.diffusion import variance
from vdm.errors import require


@dataclasses.dataclass(frozen=True)
class Objective(Component):
    """What is minimised.

    Attributes:
      needs: what the model must be able to do.
      apart: whether the gradient of the schedule's interior is kept apart (Model.draw).
      second: whether the error of the denoiser's derivative is drawn.
      is_elbo: whether its value is the negative ELBO, whatever its gradient.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset()
    apart: ClassVar[bool] = False
    second: ClassVar[bool] = False
    is_elbo: ClassVar[bool] = False

    def __call__(self, draw: Draw) -> Terms:
        """Each term that is minimised, nats per example."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
    """The negative ELBO itself, or the exact negative log-likelihood."""

    is_elbo: ClassVar[bool] = True

    def __call__(self, draw: Draw) -> Terms:
        return draw.terms


@dataclasses.dataclass(frozen=True)
class LeastVariance(Objective):
    """The negative ELBO; but the schedule's interior, which changes no mean of it, minimises the variance of
    the diffusion term (VDM app. I.2)."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.INTERIOR})
    apart: ClassVar[bool] = True
    is_elbo: ClassVar[bool] = True

    def __call__(self, draw: Draw) -> Terms:
        return draw.terms | {"diffusion": variance.leave(draw.terms["diffusion"], draw.slot)}


WEIGHTINGS = ("sigmoid", "edm_monotone", "edm", "flow_matching", "soft_truncation")


@dataclasses.dataclass(frozen=True)
class Weighted(Objective):
    """The diffusion term times w(λ), λ = −γ the log SNR; the other terms as they are.

    Where w does not fall in t (all but edm) this is the ELBO of pictures with noise added, averaged over how
    much (Kingma & Gao 2023, sec. 3).

      sigmoid        w = sigmoid(shift − λ)
      edm            w ∝ N(λ; 2.4, 2.4²) (e^−λ + 0.5²), at most 1 (Karras et al. 2022)
      edm_monotone   the same, but 1 for all λ below where it is 1
      flow_matching  w = e^{−λ/2}
      soft_truncation  w = P(s ≤ σ²) of an s with a density in proportion to 1/s between 1e-5 and 1: the mean
                     over s of the ELBO from where the variance of the noise is s (Soft Truncation: Kim et al.
                     2022, theorem 1; they draw one s for each batch)

    Attributes:
      weighting: one of these.
      shift: of sigmoid.
    """

    weighting: str = "sigmoid"
    shift: float = 2.0

    # What is not the ELBO cannot say where the levels of noise should end.
    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.TIME, Ability.ONE_GAMMA, Ability.FIXED_ENDS})

    def check(self) -> None:
        choose("weighting", self.weighting, WEIGHTINGS)
        accept("shift", math.isfinite(self.shift), "a number")

    def __call__(self, draw: Draw) -> Terms:
        assert draw.gamma is not None  # Ability.TIME
        return draw.terms | {"diffusion": self.weight(draw.gamma) * draw.terms["diffusion"]}

    def weight(self, gamma: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """w at γ = −λ."""
        if self.weighting == "sigmoid":
            return jax.nn.sigmoid(self.shift + gamma)
        if self.weighting == "flow_matching":
            return jnp.exp(0.5 * gamma)
        if self.weighting == "soft_truncation":
            return jnp.clip(1.0 - jax.nn.log_sigmoid(gamma) / math.log(_SMALLEST), 0.0, 1.0)
        if self.weighting == "edm_monotone":
            gamma = jnp.minimum(gamma, -_edm_peak())
        return _edm(-gamma) / _edm(_edm_peak())


_SMALLEST = 1e-5
_EDM_MEAN, _EDM_SD, _EDM_DATA = 2.4, 2.4, 0.5


def _edm(log_snr):
    """EDM's weighting, but for its constant."""
    normal = jnp.exp(-0.5 * jnp.square((log_snr - _EDM_MEAN) / _EDM_SD))
    return normal * (jnp.exp(-log_snr) + _EDM_DATA**2)


def _edm_peak():
    """The log SNR where _edm is largest: the root of its logarithm's derivative, by Newton's method."""
    log_snr = 0.0
    for _ in range(20):
        share = math.exp(-log_snr) / (math.exp(-log_snr) + _EDM_DATA**2)
        slope = (_EDM_MEAN - log_snr) / _EDM_SD**2 - share
        log_snr -= slope / (-1.0 / _EDM_SD**2 + share * (1.0 - share))
    return log_snr


@dataclasses.dataclass(frozen=True)
class SecondOrder(Objective):
    """The negative ELBO, and the error of the denoiser's derivative: fine-tuning for the likelihood of the
    probability-flow ODE (i-DODE: Zheng et al. 2023, sec. 4).

    The ELBO is their first-order flow matching under the weight of maximum likelihood:
    γ' ‖ε̂ − ε‖² = γ' α² ‖v̂ − v‖², where v is dz/dγ divided by its size, α σ/2.

    Attributes:
      coefficient: of the second-order term.
    """

    coefficient: float = 0.1

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.SECOND_ORDER, Ability.FIXED_ENDS})
    second: ClassVar[bool] = True

    def check(self) -> None:
        accept("coefficient", 0 < self.coefficient < math.inf, "a number above 0")

    def __call__(self, draw: Draw) -> Terms:
        assert draw.second is not None  # `second`
        return draw.terms | {"second_order": self.coefficient * draw.second}


OBJECTIVES = Registry(
    Objective,
    {"elbo": ELBO, "weighted": Weighted, "least_variance": LeastVariance, "second_order": SecondOrder},
)


def build(section: Any, model: Model) -> Objective:
    """The objective that `config.objective` describes.

    Raises:
      UserError: a field has a value that is not accepted, or the model lacks an ability that it needs.
    """
    made = component.build(OBJECTIVES, section, "config.objective")
    lacking = [ability.value for ability in Ability if ability in made.needs - model.abilities]
    require(
        not lacking,
        f"config.objective.name is {section.name!r}, which needs {' and '.join(lacking)}. "
        "This model has not: set config.objective.name to 'elbo', or change config.model, such as "
        "config.model.schedule.name to 'fixed_linear' for ends that are not learned.",
    )
    return made
