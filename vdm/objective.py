"""What training minimises, made of one draw of the ELBO. Evaluation never sees it.

A new objective is a class that derives from Objective; examples/huber.py, and examples/log_variance.py with
parameters of its own.
"""

import dataclasses
from typing import Any, ClassVar

from jaxtyping import Array, PyTree

from vdm import component
from vdm.component import Component
from vdm.contract import Ability, Batch, Draw, DrawTimes, Model, Params, Random, Terms, check_needs
from vdm.errors import require
from vdm.parameters import Role, alike


@dataclasses.dataclass(frozen=True)
class Objective(Component):
    """What is minimised.

    Attributes:
      needs: what the model must be able to do.
      is_elbo: whether what it minimises equals the negative ELBO; its gradient may be another.
      timed: those of its terms that were drawn at one time, for times that adapt to them.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset()
    is_elbo: ClassVar[bool] = False
    timed: ClassVar[tuple[str, ...]] = ("diffusion",)

    def __call__(self, params: Params, draw: Draw) -> Terms:
        """Each term that is minimised, nats per example: their sum's mean over the batch is the loss.

        Args:
          params: those of `init`.
        """
        raise NotImplementedError

    def init(self, key: Array, batch: Batch) -> Params:
        """Fresh parameters of its own, trained with those of the model and never part of it; None for
        none."""
        return None

    def roles(self, params: Params) -> PyTree[Role]:
        """What each of these is to the optimiser."""
        return alike(params, Role(decayed=False))

    def draw(self, model: Model, params: Params, rng: Random, batch: Batch, times: DrawTimes | None) -> Draw:
        """The draw that it is made of, in training."""
        return model.draw(params, rng, batch, True, times)


@dataclasses.dataclass(frozen=True)
class ELBO(Objective):
    """The negative ELBO itself, or the exact negative log-likelihood."""

    is_elbo: ClassVar[bool] = True

    def __call__(self, params, draw):
        return draw.terms


def build(section: Any, model: Model) -> Objective:
    """The objective that `config.objective` describes.

    Raises:
      UserError: a field has a value that is not accepted, or the model lacks an ability that it needs.
    """
    made = component.build("objective", section, "config.objective")
    check_needs(f"objective {section.name}", made.needs)
    lacking = [ability.value for ability in Ability if ability in made.needs - model.abilities]
    require(
        not lacking,
        f"config.objective.name is {section.name!r}, which needs {' and '.join(lacking)}. This model has "
        "not: set config.objective.name to 'elbo', or change config.model, such as "
        "config.model.schedule.name to 'fixed_linear' for ends that are not learned, or to 'learned_net' for "
        "what is learned between them (a schedule of your own says so by learned_interior and is_interior).",
    )
    return made
