"""What training minimises, a function of one draw of the ELBO. Evaluation does not use it.

A new objective is a class that derives from Objective, as in examples/huber.py, or with trained parameters in
examples/log_variance.py.
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
    """What training minimises.

    Attributes:
      needs: the abilities that the model must have.
      is_elbo: whether its value is the negative ELBO, even if its gradient is not.
      timed: the names of its terms that depend on the diffusion time, for times that adapt to the loss.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset()
    is_elbo: ClassVar[bool] = False
    timed: ClassVar[tuple[str, ...]] = ("diffusion",)

    def __call__(self, params: Params, draw: Draw) -> Terms:
        """The terms of the loss, nats per example. The loss is the mean over the batch of their sum.

        Args:
          params: the parameters from `init`.
        """
        raise NotImplementedError

    def init(self, key: Array, batch: Batch) -> Params:
        """Initial values of its own parameters, which are trained with the model's; None if it has none."""
        return None

    def roles(self, params: Params) -> PyTree[Role]:
        """How the optimiser treats each of these parameters."""
        return alike(params, Role(decayed=False))

    def draw(self, model: Model, params: Params, rng: Random, batch: Batch, times: DrawTimes | None) -> Draw:
        """The draw that it is computed from, in training."""
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
