"""The estimator "elbo": the model's own ELBO, or its exact likelihood."""

from collections.abc import Sequence
import dataclasses
import time

import jax
from ml_collections import ConfigDict

from vdm.contract import Ability, Model
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.evaluator import make_evaluator
from vdm.evaluation.profile import Profile
from vdm.evaluation.table import Row
from vdm.reporting.text import estimate_table
from vdm.run import Run

OWN = "the model"  # whose likelihood is bounded, where the model is no chain of any depth


def elbo_name(timesteps: int) -> str:
    """What the ELBO of a chain of so many steps is called; 0 for T → ∞."""
    return f"ELBO, T = {timesteps}" if timesteps else "ELBO, T → ∞"


def chain_name(timesteps: int) -> str:
    """Whose likelihood the ELBO at this depth bounds; 0 for T → ∞."""
    return f"the chain of {timesteps} steps" if timesteps else "the chain of ∞ steps"


def elbo_row(config: ConfigDict, run: Run, model: Model) -> tuple[Row, Profile | None]:
    """The ELBO of a model with the parameters of the run, and its Profile where it draws a time."""
    start = time.monotonic()
    if model.depth is None:
        name, bounds = "exact" if Ability.EXACT in model.abilities else "ELBO", OWN
    else:
        name, bounds = elbo_name(model.depth), chain_name(model.depth)
    evaluate = make_evaluator(model, config, run.data)
    estimate, profile = evaluate(run.state.ema, config.eval.passes, True, config.eval.target_se, name)
    return Row(name, bounds, estimate, estimate.passes, time.monotonic() - start), profile


@dataclasses.dataclass(frozen=True)
class ELBO(Estimator):
    """The model's own ELBO; and that for T → ∞, where it is a chain."""

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        row, profile = elbo_row(config, run, run.model)
        if jax.process_index() == 0:
            print(estimate_table(row.estimate), flush=True)
        if not run.model.depth:
            return Result([row], profile=profile)
        # The profile is to be that of continuous time.
        continuous, profile = elbo_row(config, run, run.model.at_depth(0))
        return Result([row, print_row(continuous)], profile=profile)
