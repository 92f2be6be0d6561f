"""The estimators of the likelihood by name, and which of them a model can do."""

from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from vdm.contract import Ability, Model
from vdm.errors import one_of, require
from vdm.evaluation.chain_rows import CHAIN
from vdm.evaluation.codec_rows import CODEC
from vdm.evaluation.depth_rows import DEPTH
from vdm.evaluation.elbo_rows import ELBO
from vdm.evaluation.estimator import Estimator
from vdm.evaluation.ode_rows import ODE
from vdm.evaluation.profile import Profile
from vdm.evaluation.table import Row
from vdm.run import Run

# In the order in which they are measured. The ELBO always is.
ESTIMATORS: dict[str, Estimator] = {
    "elbo": ELBO,
    "depth": DEPTH,
    "chain": CHAIN,
    "ode": ODE,
    "codec": CODEC,
}


class Measured(NamedTuple):
    """What the estimators gave, together (estimator.Result).

    Attributes:
      rows: of the table, the model's own ELBO first.
      series: by the estimator's name.
    """

    rows: list[Row]
    series: dict[str, list[Row]]
    checks: list[str]
    profile: Profile | None


def check(config: ConfigDict) -> None:
    """Raises UserError where config.eval names an unknown estimator, or has a number that is not accepted."""
    for name in _named(config):
        one_of("config.eval.estimators", name, (*ESTIMATORS, "all"))
    for estimator in ESTIMATORS.values():
        estimator.check(config)


def choose(config: ConfigDict, model: Model) -> list[str]:
    """The estimators that config.eval names, the ELBO first; of "all", those that the model can do.

    Raises:
      UserError: one is named that the model cannot do.
    """
    possible = [name for name, estimator in ESTIMATORS.items() if estimator.needs <= model.abilities]
    named = _named(config)
    for name in named:
        needs = ESTIMATORS[name].needs if name != "all" else frozenset()
        missing = [ability.value for ability in Ability if ability in needs - model.abilities]
        require(
            not missing,
            f"config.eval.estimators has {name!r}, which needs {' and '.join(missing)}; accepted for this "
            f"model, {config.model.name!r}: {', '.join(map(repr, possible))}, 'all'.",
        )
    return [name for name in possible if name in named or "all" in named or name == "elbo"]


def measure(config: ConfigDict, run: Run, chosen: Sequence[str]) -> Measured:
    """Runs the chosen estimators, one after the other, and prints what each gives."""
    found = Measured([], {}, [], None)
    for name in chosen:
        done = [*found.rows, *(row for rows in found.series.values() for row in rows)]
        result = ESTIMATORS[name].measure(config, run, done)
        found.rows.extend([row for row in result.rows if not any(row is other for other in found.rows)])
        if result.series:
            found.series[name] = list(result.series)
        found.checks.extend(result.checks)
        found = found._replace(profile=result.profile or found.profile)
    return found


def _named(config: ConfigDict) -> list[str]:
    return [name for name in config.eval.estimators.split(",") if name]
