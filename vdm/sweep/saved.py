"""The files of a study's folder, and study.json, which describes the study."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from vdm import workdir as workdir_lib
from vdm.config import flat
from vdm.errors import UserError, require
from vdm.sweep.output import make_folder, write_json
from vdm.sweep.variants import Fields

# The files of a study's folder and their contents, in the form of workdir.FILES.
FILES = {
    "study.json": "the flags and the base config, so that `--workdir` alone resumes the study",
    "VARIANT-SEED/": "the workdir of a run",
    "differences.md, differences.csv, differences.tex": "a row for each variant: bits/dim, and its "
    "difference from the baseline",
    "table.md, table.csv": "a row for each variant: bits/dim, terms, steps and seconds",
    "table_runs.csv": "the same for each run",
    "curves.png, curves.pdf": "the curves of all variants",
    "curves.txt": "their caption",
    "budget.json": "the cost of a step of each variant, with `--minutes`",
    "submitit/": "the files of submitit, with `--cluster`",
    "mlflow.db, mlartifacts/": "MLflow's record of the runs, with `--config.loggers=mlflow`",
    ".aim/": "Aim's record of the runs, with `--config.loggers=aim`",
}


@dataclasses.dataclass(frozen=True)
class Saved:
    """A study as it was last run.

    Attributes:
      file: file of the base config.
      args: the arguments --config.FIELD=VALUE of all runs.
      base: the base config, {dotted field: value}.
      variants: the variants that flags define, and not the study's file.
      names: names of all variants, in the order of their colours.
      baseline: the variant from which differences are taken; None for the first.
      seeds: number of seeds.
      minutes: training time of each run; None if config.train.steps determines it.
      look: look of the figures (look.Look).
      cache: folder of the cache; None for that of vdm.main.
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
    cache: str | None = None


def read(workdir: pathlib.Path) -> Saved | None:
    """The Saved of a folder; None if it is not the folder of a study yet.

    Raises:
      UserError: study.json is damaged.
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
    """Writes study.json atomically."""
    write_json(make_folder(workdir) / "study.json", dataclasses.asdict(saved))


def check_base(workdir: pathlib.Path, saved: Saved, base: ConfigDict) -> None:
    """Raises UserError if a folder is that of a study with another base config."""
    now = base_of(base)
    both = {*now} & {*saved.base}  # ignores fields that only one of the versions has
    found = workdir_lib.differences(*({name: of[name] for name in both} for of in (saved.base, now)))
    fields = "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in found[:5])
    require(
        not found,
        f"{str(workdir)!r} is a study of {saved.file}, with another base config: {fields}. Set these fields "
        "back, or give another --workdir.",
    )


def base_of(base: ConfigDict) -> dict[str, Any]:
    """A base config as the class Saved stores it."""
    return json.loads(json.dumps(flat(base)))  # tuples as lists


def require_different(configs: Mapping[str, ConfigDict], by_flags: Collection[str]) -> None:
    """Raises UserError if a variant that is defined by flags equals another."""
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
