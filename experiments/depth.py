"""The number of steps T in training against T in evaluation (VDM table 2).

  python -m experiments.depth --workdir=runs/depth --config=configs/digits.py

A model is trained at each T, including ∞, and evaluated at every T, since the denoiser does not depend on the
number of steps. All models have the same linear schedule.
"""

from collections.abc import Mapping
import pathlib
import textwrap
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from vdm import run as run_lib, workdir as workdir_lib
from vdm.estimate import standard_error
from vdm.evaluation.elbo import make_elbo
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import study, tables, workdirs
from vdm.sweep.curves import plot_curves
from vdm.sweep.output import write_csv

TRAINED, EVALUATED = (10, 100, 1_000, 0), (10, 30, 100, 300, 1_000, 0)

Estimates = Mapping[int, tuple[float, float]]  # T to bits/dim and its standard error


def name_of(timesteps: int) -> str:
    """The name of a depth."""
    return f"T={timesteps}" if timesteps else "T=inf"


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    line = {"model.schedule.name": "fixed_linear", "objective.name": "elbo"}
    return {name_of(timesteps): line | {"model.timesteps": timesteps} for timesteps in TRAINED}


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes depth.md and depth.csv, and the table and curves of the runs; returns their paths."""
    numbers = {variant: [by_depth(folder) for folder in folders] for variant, folders in found.items()}
    text = table(numbers)
    print(text)
    (workdir / "depth.md").write_text(text)
    rows = [
        {"trained": variant, "run": folder, "evaluated": name_of(t), "bpd": seed[t][0], "bpd_se": seed[t][1]}
        for variant, seeds in numbers.items()
        for folder, seed in zip(found[variant], seeds)
        for t in EVALUATED
    ]
    write_csv(workdir / "depth.csv", rows)
    tables.write_table(found, workdir)
    return [workdir / "depth.md", workdir / "depth.csv", workdir / "table.md", *plot_curves(found, workdir)]


def table(numbers: Mapping[str, list[Estimates]]) -> str:
    """Markdown: for each variant, the mean over seeds at each depth."""
    cells = []
    for variant, seeds in numbers.items():
        largest = max(np.mean([seed[t][1] for seed in seeds]) for t in EVALUATED)
        values = [np.array([seed[t][0] for seed in seeds]) for t in EVALUATED]
        bars = [f"{v.mean():.4f} ± {fixed(standard_error(v))}" for v in values]
        cells.append([variant, *bars, f"{largest:.4f}"])
    header = ["trained with", *(f"evaluated with {name_of(t)}" for t in EVALUATED), "largest s.e. of one run"]
    note = f"""Bits/dim, mean over seeds ± its standard error from the spread of the seeds.
{tables.seeds_note(map(len, numbers.values()))} The standard error of one run counts the test images, which
are the same for all, and the noise of evaluation."""
    return f"{markdown_table(header, cells)}\n\n{textwrap.fill(note, 110)}\n"


def by_depth(folder: pathlib.Path) -> Estimates:
    """Bits/dim of a run at each depth, from `at_each_depth`, cached."""
    found = workdirs.kept(folder, "depth", at_each_depth)
    return {timesteps: found[name_of(timesteps)] for timesteps in EVALUATED}


def at_each_depth(folder: pathlib.Path) -> dict[str, tuple[float, float]]:
    """{name of T: (bits/dim, standard error)} of a run, evaluated at each depth."""
    config = workdir_lib.read_config(folder)
    run = run_lib.restore(config, folder)
    numbers = {}
    for timesteps in EVALUATED:
        evaluate = make_elbo(run.model.at_depth(timesteps), config, run.data)
        title = f"{folder.name}, {name_of(timesteps)}"
        estimate, _ = evaluate(run.state.ema, config.eval.passes, progress=True, title=title)
        numbers[name_of(timesteps)] = estimate.mean["bpd"], estimate.se["bpd"]
    return numbers


if __name__ == "__main__":
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=study.SHORT)
