"""Reads the workdirs of runs, finished or active.

A run is one workdir. A variant is a name and its workdirs, whose configs differ only in the seed. A sweep is
a folder of workdirs that are named VARIANT-SEED.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
import dataclasses
import json
import math
import os
import pathlib
import re
import statistics
from typing import Any

from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm import workdir as workdir_lib
from vdm.errors import UserError, require
from vdm.reporting.metrics import lacks_final, read_metrics
from vdm.sweep.output import write_json

Row = Mapping[str, Any]  # a line of metrics.jsonl, or eval.json
Variants = Mapping[str, Sequence[pathlib.Path]]  # name to the workdirs of its seeds


@dataclasses.dataclass(frozen=True)
class Record:
    """The contents of a workdir.

    Attributes:
      config: the complete config, converted to this version if an older version wrote it.
      train: the lines of metrics.jsonl on training.
      test: the lines on the test split that form one curve, with the same number of passes.
      newest: the newest line; a line of step 0 if there is no line.
      final: the final estimate (`final`), or else the newest evaluation; {} if nothing was evaluated yet.
        "seconds" is from the line of its step.
    """

    folder: pathlib.Path
    config: ConfigDict
    train: Sequence[Row]
    test: Sequence[Row]
    newest: Row
    final: Row

    @property
    def has_own_final(self) -> bool:
        """Whether the final estimate has more passes than the curve and so is not one of its points."""
        return bool(self.final) and self.final not in self.test


def read(folder: pathlib.Path | str) -> Record:
    """The Record of a workdir.

    Raises:
      UserError: the folder is not that of a run, or one of its files is damaged.
    """
    folder = pathlib.Path(folder).expanduser()
    require(folder.is_dir(), f"{str(folder)!r} does not exist; give the workdir of a run.")
    require(
        {"seed", "data", "train"} <= set(workdir_lib.read_raw(folder)),
        f"{str(folder)!r} is not a run: its config.json has other contents; give the workdir of a run.",
    )
    config = workdir_lib.read_config(folder)
    rows = read_metrics(folder / "metrics.jsonl")
    evaluations = [row for row in rows if row["split"] in ("test", "final")]
    newest = rows[-1] if rows else {"step": 0}
    own = final(folder, rows)
    # A run that was resumed to train for longer has the eval.json of its first end until its second.
    going = newest["step"] < config.train.steps or lacks_final(folder, newest["step"])
    if evaluations and (not own or going and own["step"] < evaluations[-1]["step"]):
        own = evaluations[-1]
    if own:
        before = [row["seconds"] for row in rows if row["step"] <= own["step"]]
        own = {"seconds": before[-1] if before else None, **own}
    train = [row for row in rows if row["split"] == "train"]
    test = comparable([row for row in evaluations if row["split"] == "test"])
    return Record(folder, config, train, test, newest, own)


def final(folder: pathlib.Path, rows: Sequence[Row]) -> Row:
    """The final estimate of a run: eval.json, if it is of the same step and images as the line "final" of
    metrics.jsonl, from as many passes or more; otherwise this line, as --mode=eval has evaluated something
    else since. {} before the end of training.

    Args:
      rows: the lines of metrics.jsonl.
    """
    found, ends = _read_json(folder / "eval.json"), [row for row in rows if row["split"] == "final"]
    if not ends:
        return found
    same = all(found.get(name) == ends[-1].get(name) for name in ("step", "images"))
    if same and found.get("passes", 0) >= ends[-1].get("passes", 0):
        return found
    return {**found, **ends[-1]}  # eval.json states the kind of estimate, too


def comparable(test: Sequence[Row]) -> list[Row]:
    """The lines that have the most frequent number of passes: others have other draws, and would make a curve
    jump.

    In runs of older versions the last line has more passes than the earlier ones.
    """
    usual = statistics.mode(row.get("passes") for row in test) if test else None
    return [row for row in test if row.get("passes") == usual]


def _read_json(path):
    """The contents of a JSON file; {} if it does not exist."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); leave this run out.") from error


def find(folders: Iterable[pathlib.Path | str]) -> dict[str, list[pathlib.Path]]:
    """{label: [workdirs]} of workdirs, and of each variant in sweeps.

    A label is the path of the workdir, or SWEEP/VARIANT, relative to the folder that contains all of them.
    Folders NAME-NUMBER are one variant if their seeds differ, and nothing else on which training depends.

    Raises:
      UserError: one of the folders contains no run.
    """
    found: dict[pathlib.Path, list[pathlib.Path]] = {}
    for folder in (pathlib.Path(folder).expanduser() for folder in folders):
        runs = sorted(path.parent for path in folder.glob("*/config.json"))
        sweep = runs and not (folder / "config.json").exists()
        for run in runs if sweep else [read(folder).folder]:
            path = pathlib.Path(os.path.abspath(run))
            name = re.sub(r"-\d+$", "", path.name) if sweep else path.name
            found.setdefault(path.with_name(name), []).append(run)
    above = os.path.commonpath([path.parent for path in found])
    labels: dict[str, list[pathlib.Path]] = {}
    for path, runs in found.items():
        alike = _differ_in_seed_alone(runs)
        for run in runs:
            own = path if alike else path.with_name(run.name)
            labels.setdefault(str(own.relative_to(above)), []).append(run)
    return labels


def _differ_in_seed_alone(runs):
    configs = [workdir_lib.read_config(run) for run in runs]
    differs = {name for other in configs[1:] for name, *_ in workdir_lib.differences(configs[0], other)}
    return differs <= {"seed"} and len({config.seed for config in configs}) == len(configs)


def read_variants(variants: Variants) -> dict[str, list[Record]]:
    """The Records of each variant, without the variants that have no runs.

    Raises:
      UserError: `read` raises it; or a variant has the same seed twice, so that its spread is not that of
        seeds; or there is no run at all.
    """
    found = {name: [read(folder) for folder in folders] for name, folders in variants.items() if folders}
    require(found, "there is no run to show yet.")
    for name, records in found.items():
        seeds = [record.config.seed for record in records]
        twice = [str(record.folder) for record in records if seeds.count(record.config.seed) > 1]
        require(not twice, f"{name!r} has the same seed twice: {', '.join(twice)}; give each seed once.")
    return found


def number(row: Row, name: str) -> float:
    """A number of a line; NaN if it is missing or not finite."""
    value = row.get(name)
    return math.nan if value is None else float(value)


def image_values(record: Record) -> Float[np.ndarray, "images"] | None:
    """The final bits/dim of each image; None if eval_images.csv does not exist, or belongs to another
    evaluation."""
    path = record.folder / "eval_images.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    values = np.array([float(row[1]) for row in rows])  # column 0 is the index of the image, 1 the ELBO
    same = len(values) == record.final.get("images")
    return values if same and math.isclose(values.mean(), number(record.final, "bpd")) else None


def same_images(one: Record, other: Record) -> bool:
    """Whether two runs were evaluated on the same images: by their fingerprints, if both have one."""
    data = {record.final.get("data") for record in (one, other)}
    return len(data) == 1 if None not in data else _image_source(one) == _image_source(other)


def images_note(records: Iterable[Record]) -> str:
    """A note if not all runs were evaluated on the same images; otherwise ""."""
    ended = [record for record in records if record.final]
    same = all(same_images(record, ended[0]) for record in ended)
    return "" if same else "The runs were evaluated on different images: their numbers are not comparable."


def _image_source(record):
    """What determines the test images: config.data without the fields of training, and the number of
    evaluated images."""
    in_training = ("augment", "on_device_gib")
    fields = sorted((name, value) for name, value in record.config.data.items() if name not in in_training)
    return *fields, record.final.get("images")


def kept(
    folder: pathlib.Path, name: str, measure: Callable[[pathlib.Path], dict[str, Any]]
) -> dict[str, Any]:
    """measure(folder), a JSON dictionary, cached in NAME.json of the workdir for the step of its last
    evaluation.

    Raises:
      UserError: the run was not evaluated.
    """
    path, step = folder / f"{name}.json", read(folder).final.get("step")
    require(
        step is not None,
        f"{str(folder)!r} was not evaluated yet; finish it: python -m vdm.main --workdir={folder}",
    )
    if path.exists() and (found := _read_json(path)).get("step") == step:
        return found
    found = measure(folder) | {"step": step}
    write_json(path, found)
    return json.loads(path.read_text())
