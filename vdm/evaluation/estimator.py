"""What an estimator of the likelihood is: what it needs, what it checks, and the rows that it gives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from vdm.contract import Ability
from vdm.evaluation.profile import Profile
from vdm.evaluation.table import Row
from vdm.reporting.text import fixed
from vdm.run import Run


class Result(NamedTuple):
    """What an estimator gives.

    Attributes:
      rows: lines of the table. One that is there already, the very same Row, is not repeated.
      series: over the depth T, or over the number of samples K; () for none.
      checks: lines on whether the numbers agree as they must.
      profile: of the ELBO in continuous time; None where no time is drawn.
    """

    rows: Sequence[Row]
    series: Sequence[Row] = ()
    checks: Sequence[str] = ()
    profile: Profile | None = None


class Estimator(NamedTuple):
    """One estimator.

    Attributes:
      needs: what the model must be able to do.
      check: (config) → None; raises UserError where a field of its own in config.eval is not accepted.
      measure: (config, run, done) → Result; `done` are all rows so far, the model's own ELBO first.
    """

    needs: frozenset[Ability]
    check: Callable[[ConfigDict], None]
    measure: Callable[[ConfigDict, Run, Sequence[Row]], Result]


def print_row(row: Row) -> Row:
    """Prints a row as soon as it is known, on the first host, and returns it."""
    if jax.process_index() == 0:
        mean, se = row.estimate.mean["bpd"], row.estimate.se["bpd"]
        print(f"{row.name}: {mean:.4f} ± {fixed(se)}, {row.seconds:.0f} s", flush=True)
    return row
