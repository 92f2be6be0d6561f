"""What workdirs tell of their runs, finished or still going.

A run is one workdir. A variant is a name and its workdirs, whose configs differ in the seed alone.
A sweep is a folder of workdirs that are named VARIANT-SEED.
"""

import csv
import dataclasses
import json
import math
import os
import pathlib
import re
import sys

from absl import app, flags, logging
import numpy as np

from vdm.reporting import report
from vdm.errors import UserError, one_line, require


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir, finished or still going.

    Attributes:
      config: nested dictionaries.
      train, test: lines of metrics.jsonl, a dictionary each.
      final: eval.json, or else the newest line of `test`; {} where nothing was evaluated yet.
    """

    folder: pathlib.Path
    config: dict
    train: list
    test: list
    final: dict

    @property
    def newest(self):
        """The newest line; of step 0 where there is none."""
        return max([{"step": 0}, *self.train[-1:], *self.test[-1:]], key=lambda row: row["step"])


def read(folder):
    """The Run of a workdir.

    Raises:
      UserError: the folder is not that of a run, or a file of it is damaged.
    """
    folder = pathlib.Path(folder).expanduser()
    require(folder.is_dir(), f"{str(folder)!r} does not exist; give the workdir of a run.")
    config = _json(folder / "config.json")
    require(
        {"seed", "data", "train"} <= set(config),
        f"{str(folder)!r} is no run: it has no config.json of one; give the workdir of a run.",
    )
    rows = report.read_metrics(folder / "metrics.jsonl")
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    final = _json(folder / "eval.json")
    # A run that was taken up again, to train for longer, has the eval.json of its first end.
    going = rows and rows[-1]["step"] < config["train"]["steps"]
    if test and (not final or going and final["step"] < test[-1]["step"]):
        final = test[-1]
    return Run(folder, config, train, test, final)


def _json(path):
    """What a JSON file holds; {} where there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); leave this run out.") from error


def find(folders):
    """{label: [workdirs]} of workdirs, and of each variant in sweeps.

    A label is the path of the workdir, or SWEEP/VARIANT, below the folder that all are in.

    Raises:
      UserError: there is no run in one of the folders.
    """
    found = {}
    for folder in (pathlib.Path(folder).expanduser() for folder in folders):
        runs = sorted(path.parent for path in folder.glob("*/config.json"))
        sweep = runs and not (folder / "config.json").exists()
        for run in runs if sweep else [read(folder).folder]:
            path = pathlib.Path(os.path.abspath(run))
            name = re.sub(r"-\d+$", "", path.name) if sweep else path.name
            found.setdefault(path.with_name(name), []).append(run)
    above = os.path.commonpath([path.parent for path in found])
    return {str(path.relative_to(above)): runs for path, runs in found.items()}


def read_variants(variants):
    """{variant: [Run]} of {variant: [workdirs]}, without the variants that have none yet.

    Raises:
      UserError: as `read` does; or a variant has a seed twice, which says nothing of seeds; or there
        is no run at all.
    """
    found = {name: [read(folder) for folder in folders] for name, folders in variants.items() if folders}
    require(found, "there is no run to show yet.")
    for name, runs in found.items():
        seeds = [run.config["seed"] for run in runs]
        twice = [str(run.folder) for run in runs if seeds.count(run.config["seed"]) > 1]
        require(not twice, f"{name!r} has one seed twice: {', '.join(twice)}; give each seed once.")
    return found


def number(row, name):
    """A number of a line; NaN where it is not there or was not finite."""
    value = row.get(name)
    return math.nan if value is None else float(value)


def images(run):
    """The final bits/dim image by image, [images]; None where eval_images.csv is not there, or is of
    another evaluation."""
    path = run.folder / "eval_images.csv"
    if not path.exists():
        return None
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    values = np.array([float(row[1]) for row in rows])  # after the image's number: the ELBO
    same = len(values) == run.final.get("images") and math.isclose(values.mean(), number(run.final, "bpd"))
    return values if same else None


def kept(folder, name, measure):
    """measure(folder), a JSON dictionary, kept in NAME.json of the workdir for the step of its last evaluation."""
    path, step = folder / f"{name}.json", read(folder).final["step"]
    if path.exists() and (found := _json(path)).get("step") == step:
        return found
    found = measure(folder) | {"step": step}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found) + "\n")
    part.replace(path)
    return json.loads(path.read_text())


def image_source(run):
    """What says which test images there are: fields of the config, and how many were evaluated."""
    fields = run.config["data"]
    return *(fields.get(name) for name in ("name", "data_dir", "image_size", "vocab_size")), run.final.get("images")


def main(run, out):
    """Calls run(folders, --out) of the command line, and exits: with 2 on bad input."""
    # As a flag of the program, so that --help shows it.
    flags.DEFINE_string("out", out, "Folder for what is written.", module_name=sys.argv[0])

    def checked(argv):
        logging.set_verbosity(logging.ERROR)  # the libraries' own reports are not the study's
        try:
            run(argv[1:], flags.FLAGS.out)
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(2)

    app.run(checked)
