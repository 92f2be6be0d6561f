"""The number of steps T in training against T in evaluation (VDM table 2).

  python -m experiments.depth --workdir=runs/depth --config=configs/digits.py

A model is trained at each T, including ∞, and evaluated at every T, since the denoiser does not depend on the
number of steps. All models have the same linear schedule.
"""

from collections.abc import Mapping
import pathlib
import textwrap
from typing import Any, NamedTuple

from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm import run as run_lib, workdir as workdir_lib
from vdm.estimate import standard_error
from vdm.evaluation.elbo import make_elbo
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import differences, study, tables, workdirs
from vdm.sweep.curves import plot_curves
from vdm.sweep.output import write_csv

TRAINED, EVALUATED = (10, 100, 1_000, 0), (10, 30, 100, 300, 1_000, 0)


class Estimate(NamedTuple):
    """A run's ELBO as a chain of T steps: bits/dim of each test image, and the standard error of the mean."""

    bpd: Float[np.ndarray, "images"]
    se: float


Estimates = Mapping[int, Estimate]  # by T


def name_of(timesteps: int) -> str:
    """The name of a depth."""
    return f"T={timesteps}" if timesteps else "T=inf"


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    line = {"model.schedule.name": "fixed_linear", "objective.name": "elbo"}
    return {name_of(timesteps): line | {"model.timesteps": timesteps} for timesteps in TRAINED}


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes depth.md and depth.csv, and the table and curves of the runs; returns their paths."""
    numbers = {
        variant: {workdir_lib.read_config(folder).seed: by_depth(folder) for folder in folders}
        for variant, folders in found.items()
    }
    text = f"{table(numbers)}\n{costs(numbers)}"
    print(text)
    (workdir / "depth.md").write_text(text)
    rows = [
        {"trained": variant, "seed": seed, "evaluated": name_of(t), "bpd": at.bpd.mean(), "bpd_se": at.se}
        for variant, seeds in numbers.items()
        for seed, of in seeds.items()
        for t, at in of.items()
    ]
    write_csv(workdir / "depth.csv", rows)
    tables.write_table(found, workdir)
    return [workdir / "depth.md", workdir / "depth.csv", workdir / "table.md", *plot_curves(found, workdir)]


def table(numbers: Mapping[str, Mapping[int, Estimates]]) -> str:
    """Markdown: for each variant, the mean over seeds at each depth."""
    cells = []
    for variant, seeds in numbers.items():
        largest = max(np.mean([of[t].se for of in seeds.values()]) for t in EVALUATED)
        values = [np.array([of[t].bpd.mean() for of in seeds.values()]) for t in EVALUATED]
        bars = [f"{v.mean():.4f} ± {fixed(standard_error(v))}" for v in values]
        cells.append([variant, *bars, f"{largest:.4f}"])
    header = ["trained with", *(f"evaluated with {name_of(t)}" for t in EVALUATED), "largest s.e. of one run"]
    note = f"""Bits/dim, mean over seeds ± its standard error from the spread of the seeds.
{tables.seeds_note(map(len, numbers.values()))} The standard error of one run counts the test images, which
are the same for all, and the noise of evaluation."""
    return f"{markdown_table(header, cells)}\n\n{textwrap.fill(note, 110)}\n"


def costs(numbers: Mapping[str, Mapping[int, Estimates]]) -> str:
    """Markdown: what a finite T costs in evaluation, and in training, paired by seed and image."""

    def bits(seeds, t):
        return {seed: of[t].bpd for seed, of in seeds.items()}

    def difference(ours, others):
        mean, error = differences.paired(ours, others)
        return f"{mean:+.4f} ± {fixed(error)}" if np.isfinite(mean) else "–"

    infinite = name_of(0)
    baseline = bits(numbers.get(infinite, {}), 0)
    cells = []
    for variant, seeds in numbers.items():
        own = bits(seeds, 0)
        of_depths = [difference(bits(seeds, t), own) for t in EVALUATED if t]
        cells.append([variant, *of_depths, "–" if variant == infinite else difference(own, baseline)])
    header = [
        "trained with",
        *(f"evaluated with {name_of(t)}" for t in EVALUATED if t),
        f"evaluated with {infinite}: minus the model trained with {infinite}",
    ]
    note = f"""Differences in bits/dim, paired by seed and image; ± counts which seeds and which images were
drawn. "Evaluated with T" is the difference of the same runs from their evaluation with {infinite}."""
    return f"{markdown_table(header, cells)}\n\n{textwrap.fill(note, 110)}\n"


def by_depth(folder: pathlib.Path) -> Estimates:
    """The Estimate of a run at each depth, from `at_each_depth`, cached."""
    found = workdirs.kept(folder, "depths", at_each_depth)
    return {t: Estimate(np.array(found[name_of(t)]["bpd"]), found[name_of(t)]["se"]) for t in EVALUATED}


def at_each_depth(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """{name of T: the fields of an Estimate} of a run, evaluated at each depth."""
    config = workdir_lib.read_config(folder)
    run = run_lib.restore(config, folder)
    numbers = {}
    for timesteps in EVALUATED:
        evaluate = make_elbo(run.model.at_depth(timesteps), config, run.data)
        title = f"{folder.name}, {name_of(timesteps)}"
        estimate, _ = evaluate(run.state.ema, config.eval.passes, progress=True, title=title)
        bits = estimate.values["bpd"].tolist()
        numbers[name_of(timesteps)] = {"bpd": bits, "se": estimate.se["bpd"]}
    return numbers


if __name__ == "__main__":
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=study.SHORT)
