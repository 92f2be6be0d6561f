"""--rerun: trains the config of another run again, and checks that all numbers are the same."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from ml_collections import ConfigDict

from vdm import provenance, train
from vdm.errors import Failed, require
from vdm.reporting.metrics import read_metrics

CLOCK = ("seconds", "steps_per_second")
Row = Mapping[str, Any]


def run(config: ConfigDict, workdir: pathlib.Path, first: pathlib.Path) -> None:
    """Trains the config of the run `first` in `workdir`, and compares every line of metrics.jsonl.

    Raises:
      UserError: train.run raises it; or the first run has no measurements, or was imported.
      Failed: a number differs.
    """
    rows = read_metrics(first / "metrics.jsonl")
    require(rows, f"{str(first)!r} has no measurements yet with which a rerun could be compared.")
    require(
        first.resolve() != workdir.resolve(),
        f"--rerun and --workdir are both {str(first)!r}; give another --workdir.",
    )
    require(
        not (first / "imported.json").exists(),
        f"{str(first)!r} started from imported parameters, which a rerun would lack; repeat its import and "
        "its training.",
    )
    train.run(config, workdir)
    then, now = provenance.read(first), provenance.read(workdir)
    if then and now:
        found = list(dict.fromkeys(text for one in then for text in provenance.differences(now[-1], one)))
        print("started as before" if not found else f"started differently: {'; '.join(found)}")
    print(verdict(read_metrics(workdir / "metrics.jsonl"), rows, str(first)))


def verdict(ours: Sequence[Row], others: Sequence[Row], name: str) -> str:
    """Checks that all lines that both runs have are the same to the last bit.

    Raises:
      Failed: a number differs; the message states the first step at which it does.
    """
    key = lambda row: (row["step"], row["split"])
    here = {key(row): row for row in ours}
    compared, last = 0, 0
    for row in others:
        mine = here.get(key(row))
        if mine is None:
            continue
        for field, value in row.items():
            if field not in CLOCK and mine.get(field) != value:
                raise Failed(
                    f"not the same as {name}: {row['split']} {field} at step {row['step']} was {value!r}, is "
                    f"{mine.get(field)!r}; the same to the last bit up to step {last} ({compared} lines)."
                )
        compared, last = compared + 1, row["step"]
    if not compared:
        raise Failed(f"metrics.jsonl and that of {name} have no step in common.")
    return f"the same as {name} to the last bit: {compared} lines of metrics up to step {last}"
