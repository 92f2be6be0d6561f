"""What pays on natural images within minutes: each idea of a config against the same run without it.

  python -m experiments.natural_images --workdir=runs/natural_images --minutes=10 \\
      --config.data.data_dir=$HOME/tensorflow_datasets

All runs train for as long, as --minutes says: a variant whose steps cost more takes fewer. They are compared
on a tenth of the training images, held out for that. Writes the table; and natural_images.png, bits/dim
against minutes and against floating-point operations, beside what PNG, WebP and, with the extra "codecs",
JPEG XL make of the same images.
"""

from collections.abc import Mapping
import json
import math
import pathlib
from typing import Any

from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np

from experiments import budget, codecs, curves, sweep, tables, workdirs
from experiments.output import save_figure
from vdm.data import sources
from vdm.reporting.text import fixed, markdown_table

# The fields of each variant. Of the paper's own recipe the network is as large as fits the time.
VARIANTS: dict[str, dict[str, Any]] = {
    "config": {},
    "gaussian_alone": {"optimizer.learning_rate": 0.0},
    "no_gaussian": {"model.parameterisation": "eps"},
    "stratified_times": {"model.times": "stratified"},
    "no_flips": {"data.augment": ""},
    "no_average": {"train.ema": 0.0},
    "one_resolution": {"model.net.levels": 1},
    "single_pixels": {"model.net.patch": 1, "model.net.width": 32},
    "labels": {"model.condition": "label"},
    "muon": {"optimizer.name": "muon", "optimizer.learning_rate": 2e-3},
    "batch_64": {"train.batch_size": 64},
    "paper": {
        "config": "configs/cifar10.py",
        "model.net.depth": 4,
        "model.net.width": 64,
        "train.batch_size": 16,
        "train.ema": 0.99,
    },
}
CAPTION = """Bits/dim are of training images, held out. A step's seconds are those with nothing beside it, and
PFLOP are the 10^15 floating-point operations of the whole training, as XLA counts them."""


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    return {name: dict(fields) for name, fields in VARIANTS.items()}


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the figure; returns their paths."""
    costs = budget.read(workdir)
    known = {name: cost for name, cost in costs.items() if name in found}
    steps = {name: workdirs.read(folders[0]).config.train.steps for name, folders in found.items()}
    more = {
        "s a step": {name: (cost.step, math.nan) for name, cost in known.items()},
        "PFLOP": {name: (steps[name] * cost.operations / 1e15, math.nan) for name, cost in known.items()},
    }
    print(tables.write_table(found, workdir, more=more, caption=CAPTION))
    rates = codec_rates(workdir, next(iter(found.values()))[0])
    print(
        markdown_table(
            ["codec", "bits/dim", "± s.e."], [[name, *map(fixed, rate)] for name, rate in rates.items()]
        )
    )
    return [workdir / "table.md", workdir / "table.csv", *plot(workdir, found, known, rates)]


def codec_rates(workdir: pathlib.Path, folder: pathlib.Path) -> dict[str, tuple[float, float]]:
    """codecs.bits_per_dim of the images that a run is tested by; kept in codecs.json of the study."""
    path = workdir / "codecs.json"
    if not path.exists():
        test = sources.load(workdirs.read(folder).config.data).test
        path.write_text(json.dumps(codecs.bits_per_dim(test.read(np.arange(test.size))["image"])) + "\n")
    return {name: (rate, error) for name, (rate, error) in json.loads(path.read_text()).items()}


def plot(
    workdir: pathlib.Path,
    found: workdirs.Variants,
    costs: Mapping[str, budget.Cost],
    rates: Mapping[str, tuple[float, float]],
) -> list[pathlib.Path]:
    """Writes natural_images.png and .pdf: the mean over seeds of each variant, against minutes without
    evaluations and against operations; and codecs as horizontal lines. Returns their paths."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for place, (name, records) in enumerate(workdirs.read_variants(found).items()):
        tested = [curves.curve_of(record, "step", "bpd") for record in records if record.test]
        if name not in costs or not tested:
            continue
        step, values = curves.over_seeds(tested)
        minutes = [costs[name].seconds(n) / 60.0 for n in step]
        for axes, x in zip(panels, (minutes, step * costs[name].operations)):
            axes.plot(x, values.mean(axis=0), marker=".", label=name, **curves.style_of(place))
    for axes, label in zip(panels, ("minutes of training", "floating-point operations")):
        for name, (rate, _) in rates.items():
            axes.axhline(rate, color="0.6", lw=0.8, zorder=0)
            axes.annotate(
                name, (1.0, rate), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom"
            )
        axes.set(xlabel=label, xscale="log")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("bits/dim, held-out training images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    return save_figure(figure, workdir, "natural_images")


if __name__ == "__main__":
    fields = {"data.hold_out": 0.1, "eval.passes_in_training": 2}
    sweep.main(__doc__, grid, results_of, config="configs/cifar10_laptop.py", seeds=2, fields=fields)
