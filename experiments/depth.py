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
from vdm.reporting import figures
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import differences, look, study, tables, workdirs
from vdm.sweep.curves import plot_curves
from vdm.sweep.output import write_csv

TRAINED, EVALUATED = (10, 100, 1_000, 0), (10, 30, 100, 300, 1_000, 0)
COSTS_CAPTION = """Colours: T in training. Left: what a chain of T steps costs in evaluation, as the
difference of the same runs from their evaluation with T = ∞. Right: what a finite T costs in training, as the
difference from the model that was trained with T = ∞, both evaluated with the same T. Paired by seed and
image; bars: standard error, over seeds and images."""


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
    files = [workdir / name for name in ("depth.md", "depth.csv", "table.md")]
    return [*files, *plot_costs(numbers, workdir), *plot_curves(found, workdir)]


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


Cost = tuple[float, float]  # a difference in bits/dim, and its standard error


def cost_of_evaluation(numbers: Mapping[str, Mapping[int, Estimates]]) -> dict[str, dict[int, Cost]]:
    """{variant: {T: bits/dim as a chain of T steps less those for T → ∞}}, paired by seed and image."""
    return {
        variant: {t: differences.paired(_bits(seeds, t), _bits(seeds, 0)) for t in EVALUATED if t}
        for variant, seeds in numbers.items()
    }


def cost_of_training(numbers: Mapping[str, Mapping[int, Estimates]]) -> dict[str, dict[int, Cost]]:
    """{variant: {T: bits/dim as a chain of T steps less those of the model trained with T → ∞}}, paired by
    seed and image; {} if no run of this model has finished."""
    continuous = numbers.get(name_of(0))
    return {
        variant: {t: differences.paired(_bits(seeds, t), _bits(continuous, t)) for t in EVALUATED}
        for variant, seeds in numbers.items()
        if continuous and variant != name_of(0)
    }


def _bits(seeds, t):
    return {seed: of[t].bpd for seed, of in seeds.items()}


def costs(numbers: Mapping[str, Mapping[int, Estimates]]) -> str:
    """Markdown: what a finite T costs in evaluation, and in training."""

    def cell(cost):
        mean, error = cost
        return f"{mean:+.4f} ± {fixed(error)}" if np.isfinite(mean) else "–"

    def text(of):
        header = ["trained with", *(f"evaluated with {name_of(t)}" for t in next(iter(of.values())))]
        return markdown_table(header, [[name, *map(cell, each.values())] for name, each in of.items()])

    in_evaluation = """Differences in bits/dim of the same runs from their evaluation with T=inf, paired by
seed and image; ± counts which seeds and which images were drawn."""
    in_training = """Differences in bits/dim from the model trained with T=inf, both evaluated with the same
T, paired in the same way."""
    parts = ((cost_of_evaluation(numbers), in_evaluation), (cost_of_training(numbers), in_training))
    return "\n".join(f"{text(of)}\n\n{textwrap.fill(note, 110)}\n" for of, note in parts if of)


def plot_costs(numbers: Mapping[str, Mapping[int, Estimates]], workdir: pathlib.Path) -> list[pathlib.Path]:
    """Plots what a finite T costs in evaluation, and in training; returns the paths."""
    styles, of_study = look.styles(list(numbers), workdir), look.of_study(workdir)
    places = {t: t or 10 * max(EVALUATED) for t in EVALUATED}  # on a logarithmic axis, ∞ is at the right
    with of_study.drawing():
        figure, panels = of_study.figure(("evaluation", "training"), height=0.75)
        for axes, of in zip(panels.values(), (cost_of_evaluation(numbers), cost_of_training(numbers))):
            axes.set(xscale="log", xlabel="T in evaluation")
            axes.minorticks_off()
            for variant, each in of.items():
                means, errors = np.array(list(each.values())).T
                x = [places[t] for t in each]
                axes.errorbar(x, means, yerr=errors, marker="o", capsize=2, label=variant, **styles[variant])
                axes.set_xticks(x, [str(t or "∞") for t in each])
            axes.grid(alpha=0.3, lw=0.4)
        left, right = panels["evaluation"], panels["training"]
        left.set(yscale="log", ylabel="bits/dim above T = ∞")
        figures.plain_ticks(left.yaxis)
        right.set(ylabel="… above training at T = ∞")
        right.axhline(0.0, color="0.6", lw=0.6)
        look.legend_above(figure, left.get_legend_handles_labels()[0], of_study.width)
        return look.save(figure, workdir, "depth", COSTS_CAPTION)


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
