"""What an estimator of the likelihood is: what it needs, what it checks, and the rows that it gives.

A new one is a class that derives from Estimator; examples/certificate.py.
"""

from collections.abc import Sequence
import dataclasses
from typing import ClassVar, NamedTuple

import jax
from ml_collections import ConfigDict

from vdm.component import Component
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


@dataclasses.dataclass(frozen=True)
class Estimator(Component):
    """One estimator. Those built in read fields of the whole config; the fields of one of your own are in
    config.eval.CLASS, in lower case.

    Attributes:
      needs: what the model must be able to do.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset()

    def check_config(self, config: ConfigDict) -> None:
        """Raises UserError where a field of the config that it reads is not accepted."""

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        """Its rows; `done` are all rows so far, the model's own ELBO first."""
        raise NotImplementedError


def print_row(row: Row) -> Row:
    """Prints a row as soon as it is known, on the first host, and returns it."""
    if jax.process_index() == 0:
        mean, se = row.estimate.mean["bpd"], row.estimate.se["bpd"]
        print(f"{row.name}: {mean:.4f} ± {fixed(se)}, {row.seconds:.0f} s", flush=True)
    return row
