"""Depth: chains of T steps in training against T steps in evaluation (VDM table 2).

  python -m experiments.depth --workdir=runs/depth --config=configs/digits.py

A model trained at each T, ∞ among them, is evaluated as a chain of each other T: the denoiser does not know
how many steps there are. The schedule is a straight line, the same for all.
"""

import csv
import dataclasses

import numpy as np

from experiments import results, sweep, workdirs
from vdm import run as run_lib
from vdm.evaluation import evaluate
from vdm.reporting import report
from vdm.runtime import workdir as workdir_lib
from vdm.evaluation.evaluate import standard_error

TRAINED, EVALUATED = (10, 100, 1_000, 0), (10, 30, 100, 300, 1_000, 0)


def name_of(timesteps):
    """What a depth is called."""
    return f"T={timesteps}" if timesteps else "T=inf"


def grid(config):
    """{variant: fields}."""
    line = {"model.schedule.name": "fixed_linear"}
    return {name_of(timesteps): line | {"model.timesteps": timesteps} for timesteps in TRAINED}


def results_of(workdir, found):
    """Writes depth.md and depth.csv, and the table and curves of the runs; returns their paths."""
    numbers = {variant: [by_depth(folder) for folder in folders] for variant, folders in found.items()}
    cells = []
    for variant, seeds in numbers.items():
        own = [np.mean([seed[t][1] for seed in seeds]) for t in EVALUATED]  # one set of images for all seeds
        over = [standard_error(np.array([seed[t][0] for seed in seeds])) for t in EVALUATED]
        means = [np.mean([seed[t][0] for seed in seeds]) for t in EVALUATED]
        cells.append([variant, *(f"{m:.4f} ± {report.fixed(s)}" for m, s in zip(means, over)), f"{max(own):.4f}"])
    header = ["trained with", *(f"evaluated with {name_of(t)}" for t in EVALUATED), "largest s.e. of one run"]
    text = report.markdown_table(header, cells)
    text += "\n\nBits/dim, mean over seeds ± its standard error by how far the seeds are apart.\n"
    print(text)
    (workdir / "depth.md").write_text(text)
    with (workdir / "depth.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trained", "run", "evaluated", "bpd", "bpd_se"])
        for variant, seeds in numbers.items():
            for folder, seed in zip(found[variant], seeds):
                rows.writerows([variant, folder, name_of(t), *seed[t]] for t in EVALUATED)
    results.table(found, workdir)
    return [workdir / "depth.md", workdir / "depth.csv", workdir / "table.md", *results.curves(found, workdir)]


def by_depth(folder):
    """{T: (bits/dim, standard error)} of a run, as it was kept, or else as `at_each_depth` finds it."""
    found = workdirs.kept(folder, "depth", at_each_depth)
    return {timesteps: found[name_of(timesteps)] for timesteps in EVALUATED}


def at_each_depth(folder):
    """{name of T: (bits/dim, standard error)} of a run as a chain of each depth."""
    config = workdir_lib.get_config(folder / "config.json")
    this = run_lib.restore(config, folder)
    numbers = {}
    for timesteps in EVALUATED:
        model = dataclasses.replace(this.model, timesteps=timesteps)
        name = f"{folder.name}, {name_of(timesteps)}"
        estimate, _ = evaluate.make_evaluator(model, config, this.data)(
            this.state.ema, config.eval.passes, progress=True, what=name
        )
        numbers[name_of(timesteps)] = estimate.mean["bpd"], estimate.se["bpd"]
    return numbers


if __name__ == "__main__":
    sweep.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=sweep.SHORT)
