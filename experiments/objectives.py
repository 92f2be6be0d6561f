"""Compares training objectives at equal steps: the ELBO, its least variance, weighted ELBOs, truncated times.

  python -m experiments.objectives --workdir=runs/objectives --config=configs/digits.py

All use a linear γ(t), except `least_variance`, which learns its shape. The table lists the ELBO for every
objective, and the energy distance (experiments.sampling) between the samples that each run draws at its end
and the test images, since weights are meant to improve samples.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from experiments.sampling import Distance, energy_distance, flat, images_of
from vdm import workdir as workdir_lib
from vdm.data import source
from vdm.errors import require
from vdm.sweep import study, tables, workdirs

SAMPLES = {"sample.num": 1_000, "model.sampler": "dpm2m", "model.sample_steps": 50}
CAPTION = """"energy distance" is between the samples of each run (config.sample.num of them) and the test
images, less is better; ± is over seeds."""

WEIGHTINGS = ("sigmoid", "edm_monotone", "flow_matching", "soft_truncation")


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    line = {"model.schedule.name": "fixed_linear"}
    weighted = {"objective.name": "weighted"}
    return {
        "elbo": line | {"objective.name": "elbo"},
        "least_variance": {"model.schedule.name": "piecewise", "objective.name": "least_variance"},
        **{name: line | weighted | {"objective.weighting": name} for name in WEIGHTINGS},
    }


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the curves; returns their paths."""
    distances = {
        variant: tables.over_seeds([distance(folder) for folder in folders])
        for variant, folders in found.items()
    }
    return study.table_and_curves(workdir, found, {"energy distance": distances}, CAPTION)


def distance(folder: pathlib.Path) -> float:
    """The energy distance of a run's samples from the test images, cached."""
    return workdirs.kept(folder, "distance", lambda folder: {"distance": measure(folder).value})["distance"]


def measure(folder: pathlib.Path) -> Distance:
    """The energy distance of a run's samples from the test images.

    Raises:
      UserError: there is one sample, or the folder has no samples.
    """
    path = folder / "samples.npz"
    more = f"--workdir={folder} --config.sample.num={SAMPLES['sample.num']}"
    again = f"draw more: python -m vdm.main --mode=sample {more}"
    require(path.exists(), f"{str(path)!r} does not exist; {again}")
    with np.load(path) as file:
        samples = file["image"]
    require(len(samples) > 1, f"{str(path)!r} has one sample; {again}")
    data = source.load(workdir_lib.read_config(folder).data)
    x, y = (flat(images, data.spec.vocab_size) for images in (samples, images_of(data.test)))
    return energy_distance(x, y)


if __name__ == "__main__":
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=3, fields=study.SHORT | SAMPLES)
