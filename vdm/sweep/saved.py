"""What is in a study's folder, and what it says of itself: study.json."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from vdm import workdir as workdir_lib
from vdm.config import flat
from vdm.errors import UserError, require
from vdm.runtime.atomic import write_text
from vdm.sweep.output import make_folder
from vdm.sweep.variants import Fields

# The files of a study's folder and what they are, as workdir.FILES.
FILES = {
    "study.json": "the flags and the base config, so that the study goes on by `--workdir` alone",
    "VARIANT-SEED/": "the workdir of a run",
    "differences.md, differences.csv, differences.tex": "a row for each variant: bits/dim, and its "
    "difference from the baseline",
    "table.md, table.csv": "a row for each variant: bits/dim, terms, steps and seconds",
    "table_runs.csv": "the same of each run",
    "curves.png, curves.pdf": "the curves of all variants",
    "curves.txt": "their caption",
    "budget.json": "what a step of each variant costs, with `--minutes`",
    "submitit/": "the files of submitit, with `--cluster`",
    "mlflow.db, mlartifacts/": "the runs as MLflow keeps them, with `--config.loggers=mlflow`",
    ".aim/": "the runs as Aim keeps them, with `--config.loggers=aim`",
}


@dataclasses.dataclass(frozen=True)
class Saved:
    """A study as it was last run.

    Attributes:
      file: of the base config.
      args: --config.FIELD=VALUE of all runs.
      base: the base config, {dotted field: value}.
      variants: by flags, as opposed to those of the study's own.
      names: of all variants, in the order of their colours.
      baseline: the variant that differences are taken from; None for the first.
      seeds: how many.
      minutes: of each run; None where config.train.steps says how long it trains.
      look: of the figures (look.Look).
    """

    file: str
    args: list[str]
    base: dict[str, Any]
    variants: dict[str, Fields]
    names: list[str]
    baseline: str | None
    seeds: int
    minutes: float | None
    look: dict[str, Any]


def read(workdir: pathlib.Path) -> Saved | None:
    """The Saved of a folder; None where it is that of no study yet.

    Raises:
      UserError: it is damaged.
    """
    path = workdir / "study.json"
    if not path.exists():
        return None
    try:
        return Saved(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{str(path)!r} is damaged ({error}); delete it, and give all flags again."
        ) from error


def write(workdir: pathlib.Path, saved: Saved) -> None:
    """Writes study.json, whole or not at all."""
    write_text(make_folder(workdir) / "study.json", json.dumps(dataclasses.asdict(saved), indent=2) + "\n")


def check_base(workdir: pathlib.Path, saved: Saved, base: ConfigDict) -> None:
    """Raises UserError where a folder is that of a study of another base config."""
    now = base_of(base)
    both = {*now} & {*saved.base}  # a field that is new in this version is no difference
    found = workdir_lib.differences(*({name: of[name] for name in both} for of in (saved.base, now)))
    fields = "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in found[:5])
    require(
        not found,
        f"{str(workdir)!r} is a study of {saved.file}, with another base config: {fields}. Set these fields "
        "back, or give another --workdir.",
    )


def base_of(base: ConfigDict) -> dict[str, Any]:
    """A base config as Saved keeps it."""
    return json.loads(json.dumps(flat(base)))  # tuples as lists


def require_different(configs: Mapping[str, ConfigDict], by_flags: Collection[str]) -> None:
    """Raises UserError where a variant by flags is the same as another."""
    seen: dict[str, str] = {}
    for name, config in configs.items():
        text = json.dumps(config.to_dict(), sort_keys=True)
        other = seen.setdefault(text, name)
        require(
            other == name or not {other, name} & {*by_flags},
            f"variants {other!r} and {name!r} are the same; leave one of them out.",
        )


def in_order(names: Sequence[str], first: Sequence[str]) -> list[str]:
    """The names, those of `first` first."""
    return [*first, *(name for name in names if name not in first)]
