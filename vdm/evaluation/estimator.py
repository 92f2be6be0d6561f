"""Estimators of the likelihood: their interface, and how those of config.eval are selected and measured.

A custom estimator is a class that derives from Estimator, as in examples/certificate.py.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
from ml_collections import ConfigDict

from vdm import component
from vdm.component import OWN, REGISTRIES, Component
from vdm.config import estimator_section, own_estimators
from vdm.contract import Ability, Model, check_needs
from vdm.errors import one_of, require
from vdm.estimate import Estimate, require_possible
from vdm.evaluation.profile import Profile
from vdm.evaluation.table import Row
from vdm.reporting.text import fixed
from vdm.run import Run


class Result(NamedTuple):
    """The result of an estimator.

    Attributes:
      rows: rows of the table. An object that is already in the table is not repeated.
      series: rows over the depth T, or over the number of samples K; () without a series.
      checks: lines that state whether the numbers are consistent.
      profile: Profile of the ELBO in continuous time; None if no time is drawn.
    """

    rows: Sequence[Row]
    series: Sequence[Row] = ()
    checks: Sequence[str] = ()
    profile: Profile | None = None


@dataclasses.dataclass(frozen=True)
class Estimator(Component):
    """An estimator of a model's likelihood. Built-in estimators read fields of the whole config; the fields
    of a custom estimator are in config.eval.CLASS, with the class name in lower case.

    Attributes:
      needs: the abilities that the model must have.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset()

    def check_config(self, config: ConfigDict) -> None:
        """Raises UserError if a config field that the estimator reads has a value that is not accepted."""

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        """Measures the estimator's rows; `done` are all earlier rows, the model's ELBO first."""
        raise NotImplementedError


def print_row(row: Row) -> Row:
    """Prints a row as soon as it is known, on the first host, and returns it."""
    if jax.process_index() == 0:
        mean, se = row.estimate.mean["bpd"], row.estimate.se["bpd"]
        print(f"{row.name}: {mean:.4f} ± {fixed(se)}, {row.seconds:.0f} s", flush=True)
    return row


def find(config: ConfigDict) -> dict[str, Estimator]:
    """Every built-in estimator, in the order in which they are measured, and then the custom ones that
    config.eval.estimators names. The ELBO is the first.

    Raises:
      UserError: a name is unknown, or a field has a value that is not accepted.
    """
    for name in _named(config):
        if not OWN.fullmatch(name):
            one_of("config.eval.estimators", name, (*REGISTRIES["estimator"].builtin, "all"))
    found = {name: cls() for name, cls in REGISTRIES["estimator"].classes().items()}
    for name in own_estimators(config.eval.estimators):
        part = estimator_section(name)
        cls = component.find("estimator", name, "config.eval.estimators")
        section = config.eval.get(part, cls.config_fields())
        found[name] = cls(**{field: section[field] for field in cls.config_fields()})
        component.check(found[name], section, f"config.eval.{part}")
        check_needs(name, cls.needs)
    return found


class Measured(NamedTuple):
    """The joint results of the estimators (estimator.Result).

    Attributes:
      rows: rows of the table, the model's ELBO first.
      series: {name of the estimator: rows}.
    """

    rows: list[Row]
    series: dict[str, list[Row]]
    checks: list[str]
    profile: Profile | None


def check(config: ConfigDict) -> None:
    """Raises UserError if config.eval names an unknown estimator, or has a number that is not accepted."""
    for estimator in find(config).values():
        estimator.check_config(config)


def choose(config: ConfigDict, model: Model) -> list[str]:
    """The estimators that config.eval names, the ELBO first; for "all", those that the model supports.

    Raises:
      UserError: the model does not support one of them.
    """
    every = find(config)
    possible = [name for name, estimator in every.items() if estimator.needs <= model.abilities]
    named = _named(config)
    for name in named:
        needs = every[name].needs if name != "all" else frozenset()
        missing = [ability.value for ability in Ability if ability in needs - model.abilities]
        require(
            not missing,
            f"config.eval.estimators has {name!r}, which needs {' and '.join(missing)}; accepted for this "
            f"model, {config.model.name!r}: {', '.join(map(repr, possible))}, 'all'.",
        )
    return [name for name in possible if name in named or "all" in named or name == "elbo"]


def measure(config: ConfigDict, run: Run, chosen: Sequence[str]) -> Measured:
    """Runs the chosen estimators in turn, and prints their results."""
    found, every = Measured([], {}, [], None), find(config)
    for name in chosen:
        done = [*found.rows, *(row for rows in found.series.values() for row in rows)]
        with component.blamed(every[name], f"estimator {name}"):
            result = every[name].measure(config, run, done)
        if OWN.fullmatch(name):
            check_result(name, result, done)
        found.rows.extend([row for row in result.rows if not any(row is other for other in found.rows)])
        if result.series:
            found.series[name] = list(result.series)
        found.checks.extend(result.checks)
        found = found._replace(profile=result.profile or found.profile)
    return found


def check_result(name: str, result: Any, done: Sequence[Row] = ()) -> None:
    """Raises UserError if a custom estimator returns no Result, or an invalid row besides those `done`."""
    require(
        isinstance(result, Result)
        and isinstance(result.rows, Sequence)
        and all(isinstance(row, Row) for row in result.rows),
        f"estimator {name} gives a {type(result).__name__}"
        f"{f' of {type(result.rows).__name__}' if isinstance(result, Result) else ''}; accepted: a Result "
        "whose rows are a list of Row.",
    )
    require(result.rows or result.series or result.checks, f"estimator {name} gives no rows and no checks.")
    own = [row for row in result.rows if not any(row is earlier for earlier in done)]
    names = [row.name for row in (*done, *own)]
    for row in own:
        what = f"the row {row.name!r} of estimator {name}"
        require(
            names.count(row.name) == 1, f"{what} has the name of another row; accepted: a different name."
        )
        require(
            isinstance(row.estimate, Estimate),
            f"{what} has an estimate of {type(row.estimate).__name__}; accepted: an Estimate, such as the "
            "result of combine() in vdm/estimate.py.",
        )
        for term, values in row.estimate.values.items():
            require(
                values.shape == (row.estimate.images,),
                f"{what} has {term!r} of shape {list(values.shape)}; accepted: a number for each image, "
                f"[{row.estimate.images}].",
            )
        if not row.from_below:
            require_possible(row.estimate, what)


def _named(config: ConfigDict) -> list[str]:
    return [name for part in config.eval.estimators.split(",") if (name := part.strip())]
