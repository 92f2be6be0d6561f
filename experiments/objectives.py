"""Compares training objectives at equal steps: the ELBO, its least variance, weighted ELBOs, truncated times.

  python -m experiments.objectives --workdir=runs/objectives --config=configs/digits.py

All use a linear γ(t), except `least_variance`, which learns its shape. The table lists the ELBO for every
objective, and the energy distance between samples and test images (experiments.sampling), since weights are
meant to improve samples.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from experiments.sampling import Distance, energy_distance, flat, images_of
from vdm import run as run_lib, sample, workdir as workdir_lib
from vdm.runtime import devices
from vdm.sweep import study, tables, workdirs

SAMPLES, EVALUATIONS = 1_000, 50  # number of samples for each distance, and of steps of dpm2m
CAPTION = f""""energy distance" is between {SAMPLES:,} samples by dpm2m in {EVALUATIONS} evaluations and the
test images, less is better; ± is over seeds."""

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
    return workdirs.kept(folder, "distance", lambda folder: {"distance": draw_and_compare(folder).value})[
        "distance"
    ]


def draw_and_compare(folder: pathlib.Path) -> Distance:
    """The energy distance of a run's samples from the test images."""
    config = workdir_lib.read_config(folder)
    config.sample.num = SAMPLES
    config.sample.batch_size = devices.multiple(SAMPLES // 2)
    config.model.sampler.name, config.model.sample_steps = "dpm2m", EVALUATIONS
    run = run_lib.restore(workdir_lib.read_config(folder), folder)
    model = run_lib.build_model(config, run.data.spec)
    samples = sample.make_sampler(model, config, run.data)(run.state.ema)
    x, y = (flat(images, run.data.spec.vocab_size) for images in (samples, images_of(run.data.test)))
    return energy_distance(x, y)


if __name__ == "__main__":
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=3, fields=study.SHORT)
