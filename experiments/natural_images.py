"""What pays on natural images within minutes: each idea of a config against the same run without it.

  python -m experiments.natural_images --workdir=runs/natural_images --minutes=10 \\
      --config.data.data_dir=$HOME/tensorflow_datasets

All runs train for as long, as --minutes says: a variant whose steps cost more takes fewer. They are compared
on a tenth of the training images, held out for that. Writes the table; and natural_images.png, bits/dim
against minutes and against floating-point operations, beside what PNG, WebP and, with the extra "codecs",
JPEG XL make of the same images.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np

from experiments import budget, codecs, curves, sweep, tables, workdirs
from experiments.output import save_figure
from vdm import run as run_lib, workdir as workdir_lib
from vdm.data import sources
from vdm.diffusion import elbo, encoder, stationary
from vdm.evaluation.estimate import standard_error
from vdm.evaluation.evaluator import make_evaluator
from vdm.evaluation.profile import EDGES
from vdm.reporting.text import fixed, markdown_table

# The fields of each variant. Of the paper's own recipe the network is as large as fits the time.
VARIANTS: dict[str, dict[str, Any]] = {
    "config": {},
    "gaussian_alone": {"train.steps": 1, "optimizer.learning_rate": 0.0},
    "no_gaussian": {"model.parameterisation": "eps"},
    "stratified_times": {"model.times": "stratified"},
    "no_flips": {"data.augment": ""},
    "no_average": {"train.ema": 0.0},
    "adamw": {"optimizer.name": "adamw", "optimizer.learning_rate": 2e-3},
    "one_resolution": {"model.net.levels": 1},
    "squares_of_4_pixels": {"model.net.patch": 2, "model.net.width": 64},
    "wider": {"model.net.width": 48},
    "deeper": {"model.net.depth": 3},
    "labels": {"model.condition": "label"},
    "batch_64": {"train.batch_size": 64},
    "paper": {
        "config": "configs/cifar10.py",
        "model.net.depth": 4,
        "model.net.width": 64,
        "train.batch_size": 16,
        "train.ema": 0.99,
    },
}
DENSITIES = ("config", "gaussian_alone", "paper")  # shown over γ
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
    some = next(iter(found.values()))[0]
    measured = workdirs.kept(some, "references", lambda folder: references(workdirs.read(folder).config.data))
    rates = {name: rate for name, rate in measured.items() if name != "step"}
    rows = [(name, *(fixed(math.nan if n is None else n) for n in rate)) for name, rate in rates.items()]
    print(markdown_table(("the same images by", "bits/dim", "± s.e."), rows))
    return [workdir / "table.md", workdir / "table.csv", *plot(workdir, found, known, rates)]


def references(section: ConfigDict) -> dict[str, tuple[float, float | None]]:
    """{name: (bits/dim, standard error over images)} of the test images of config.data: by codecs, and by the
    density of the training images' Gaussian, in closed form."""
    data = sources.load(section)
    images = data.test.read(np.arange(data.test.size))["image"]
    gaussian = stationary.fit(data.train, data.spec.shape, data.spec.vocab_size)
    x = np.asarray(encoder.scale(images, data.spec.vocab_size), np.float64)
    nats = gaussian_nats(gaussian, x) + math.prod(data.spec.shape) * math.log(data.spec.vocab_size / 2.0)
    bits = elbo.bits_per_dim(nats, data.spec.shape)
    found = {
        "Gaussian, closed form": (float(bits.mean()), standard_error(bits)),
        **codecs.bits_per_dim(images),
    }
    return {name: (rate, None if math.isnan(error) else error) for name, (rate, error) in found.items()}


def gaussian_nats(
    of: stationary.Stationary, x: Float[np.ndarray, "images height width channels"]
) -> Float[np.ndarray, "images"]:
    """−log N(x; mean, covariance), nats of a density."""
    mean, variance, basis = (np.asarray(value, np.float64) for value in of)
    rows, columns = (stationary.cosines(size) for size in x.shape[1:3])
    frequencies = np.einsum("ih,nhwc,jw->nijc", rows, x - mean, columns, optimize=True)
    along_axes = np.einsum("ijcd,nijc->nijd", basis, frequencies, optimize=True)
    return 0.5 * np.sum(np.square(along_axes) / variance + np.log(2.0 * np.pi * variance), axis=(1, 2, 3))


def density(folder: pathlib.Path) -> dict[str, list[float]]:
    """Where over γ the bits of a run's diffusion term are: "gamma" at the edges of parts, and "per_gamma",
    bits/dim per unit of γ in each."""
    config = workdir_lib.read_config(folder)
    run = run_lib.restore(config, folder)
    gamma = np.asarray(run.model.gamma(run.state.ema, EDGES.astype(np.float32)))
    _, profile = make_evaluator(run.model, config, run.data)(run.state.ema, config.eval.passes)
    columns = profile.summary(gamma, 0.0, run.data.spec.shape, run.data.spec.vocab_size)
    return {"gamma": gamma.tolist(), "per_gamma": columns["per_gamma"].tolist()}


def plot(
    workdir: pathlib.Path,
    found: workdirs.Variants,
    costs: Mapping[str, budget.Cost],
    rates: Mapping[str, tuple[float, float | None]],
) -> list[pathlib.Path]:
    """Writes natural_images.png and .pdf: the mean over seeds of each variant, against minutes without
    evaluations and against operations, with `rates` as horizontal lines; and the density over γ of the first
    seed of some. Returns their paths."""
    figure = Figure(figsize=(17, 6), layout="constrained")
    minutes, operations, gamma = figure.subplots(1, 3)
    for place, (name, records) in enumerate(workdirs.read_variants(found).items()):
        style = curves.style_of(place)
        if name in DENSITIES:
            kept = workdirs.kept(records[0].folder, "density", density)
            gamma.stairs(kept["per_gamma"], kept["gamma"], color=style["color"], ls=style["ls"])
        tested = [curves.curve_of(record, "step", "bpd") for record in records if record.test]
        if name not in costs or not tested:
            continue
        step, values = curves.over_seeds(tested)
        spent = [costs[name].seconds(n) / 60.0 for n in step]
        for axes, x in ((minutes, spent), (operations, step * costs[name].operations)):
            axes.plot(x, values.mean(axis=0), marker=".", label=name, **style)
    for axes, label in ((minutes, "minutes of training"), (operations, "floating-point operations")):
        for name, (rate, _) in rates.items():
            axes.axhline(rate, color="0.6", lw=0.8, zorder=0)
            axes.annotate(name, (1.0, rate), xycoords=("axes fraction", "data"), fontsize=7, ha="right")
        axes.set(xlabel=label, ylabel="bits/dim", xscale="log")
    gamma.set(xlabel="γ = −log SNR", ylabel="bits/dim per unit of γ", title="where the diffusion term is")
    for axes in (minutes, operations, gamma):
        axes.grid(alpha=0.3)
    figure.legend(*minutes.get_legend_handles_labels(), loc="outside right upper")
    return save_figure(figure, workdir, "natural_images")


if __name__ == "__main__":
    fields = {"data.hold_out": 0.1, "eval.passes_in_training": 2}
    sweep.main(__doc__, grid, results_of, config="configs/cifar10_laptop.py", seeds=2, fields=fields)
