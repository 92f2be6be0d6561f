"""The estimator "depth": the ELBO of a model as a chain of T steps, for T in config.eval.depths and T → ∞."""

from collections.abc import Sequence
import dataclasses
from typing import ClassVar

from ml_collections import ConfigDict

from vdm.contract import Ability
from vdm.errors import require
from vdm.evaluation.elbo import elbo_row
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.table import Row, order_line, smallest_step
from vdm.run import Run


def depths(config: ConfigDict) -> list[int]:
    """config.eval.depths, increasing.

    Raises:
      UserError: the field is not a list of numbers of steps.
    """
    text = config.eval.depths
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    require(
        min(found) >= 1,
        f"config.eval.depths is {text!r}; accepted: numbers of steps, such as '1,10,100'.",
    )
    return sorted(set(found))


def depth_row(config: ConfigDict, run: Run, timesteps: int, done: Sequence[Row]) -> Row:
    """The ELBO of a chain of `timesteps` steps, or for T → ∞ if 0; taken from `done` if it is there."""
    for row in done:
        if row.depth == timesteps:
            return row
    return print_row(elbo_row(config, run, run.model.at_depth(timesteps))[0])


@dataclasses.dataclass(frozen=True)
class Depth(Estimator):
    """The ELBO at each T of config.eval.depths."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.DENOISER})

    def check_config(self, config: ConfigDict) -> None:
        depths(config)

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        series = [depth_row(config, run, timesteps, done) for timesteps in [*depths(config), 0]]
        pair = smallest_step(series)
        checks = [order_line("The ELBO falls with T", *pair)] if pair else []
        return Result([], series, checks)
