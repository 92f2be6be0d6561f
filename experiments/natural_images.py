"""What improves training on natural images within minutes: a config against variants that change a setting.

  python -m experiments.natural_images --workdir=runs/natural_images --minutes=10 \\
      --config.data.data_dir=$HOME/tensorflow_datasets

All runs have the same training time, --minutes: a variant whose steps are slower takes fewer steps. They are
compared on a held-out tenth of the training images. Writes the table; references.md with the bits/dim of a
Gaussian, PNG, WebP and, with the extra "codecs", JPEG XL on the same images; and natural_images.png with
bits/dim against minutes and against floating-point operations, and the density of the bits over γ.
"""

from collections.abc import Mapping
import math
import pathlib
import textwrap
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from experiments import codecs
from experiments.codecs import Rates
from vdm.contract import bits_per_dim
from vdm.data import source
from vdm.diffusion import process
from vdm.estimate import standard_error
from vdm.methods import wiener
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import budget, curves, density, look, study, tables, workdirs

# The fields of each variant. `paper` is the paper's config, with a smaller network and batch.
VARIANTS: dict[str, dict[str, Any]] = {
    "config": {},
    "gaussian_alone": {"train.steps": 1, "optimizer.learning_rate": 0.0},
    "no_gaussian": {"model.parameterisation": "eps"},
    "posterior": {"model.parameterisation": "wiener"},
    "stratified_times": {"model.times": "stratified"},
    "no_flips": {"data.augment": ""},
    "no_average": {"train.ema": 0.0},
    "adamw": {"optimizer.name": "adamw", "optimizer.learning_rate": 2e-3},
    "one_scale": {"model.net.scales": 1},
    "patches_of_2": {"model.net.patch": 2, "model.net.width": 96},  # steps as expensive as the config's
    "narrower": {"model.net.width": 32},
    "deeper": {"model.net.depth": 3},
    "labels": {"model.condition": "label"},
    "batch_64": {"train.batch_size": 64},
    "paper": {
        "config": "configs/cifar10.py",
        "model.net.depth": 4,
        "model.net.width": 64,
        "train.batch_size": 16,
        "train.ema": 0.99,
        "train.sample_every": 0,  # samples of 1,000 steps would take longer than the training
    },
}
DENSITIES = ("config", "gaussian_alone", "paper")  # variants whose density over γ is plotted
CAPTION = """The images are {}. With labels the number is −log p(x|label). Seconds per step were measured with
nothing else running; PFLOP are the 10^15 floating-point operations of the whole training."""


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    return VARIANTS


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the tables and the figure; returns their paths."""
    costs = {name: cost for name, (cost, _) in budget.read(workdir).items() if name in found}
    configs = {name: workdirs.read(folders[0]).config for name, folders in found.items()}
    flops = {name: configs[name].train.steps * cost.operations for name, cost in costs.items()}
    columns = {
        "seconds a step": {name: (cost.step, math.nan) for name, cost in costs.items()},
        "PFLOP": {name: (total / 1e15, math.nan) for name, total in flops.items()},
    }
    config = next(iter(configs.values()))
    share = config.data.hold_out
    split = f"{share:.0%} of the training images, held out" if share else "those of the test split"
    caption = textwrap.fill(CAPTION.format(split), 110)
    print(tables.write_table(found, workdir, more=columns, caption=caption))
    rates = references(config)
    rows = [(name, *map(fixed, rate)) for name, rate in rates.items()]
    text = markdown_table(("the same images by", "bits/dim", "± s.e."), rows)
    (workdir / "references.md").write_text(text + "\n")
    print(text)
    names = ("table.md", "table.csv", "table_runs.csv", "references.md")
    return [*(workdir / name for name in names), *plot(workdir, found, costs, rates)]


def references(config: ConfigDict) -> Rates:
    """Bits/dim on a run's test images: of codecs, and of a Gaussian fitted to the training images."""
    data = source.load(config.data)
    images = data.test.read(np.arange(config.eval.images or data.test.size))["image"]
    gaussian = wiener.fit(data.train, data.spec.shape, data.spec.vocab_size)
    x = np.asarray(process.scale(jnp.asarray(images), data.spec.vocab_size), np.float64)
    bits = bits_per_dim(wiener.dequantised_nats(gaussian, x, data.spec.vocab_size), data.spec.shape)
    return {"Gaussian": (float(bits.mean()), standard_error(bits)), **codecs.bits_per_dim(images)}


def plot(
    workdir: pathlib.Path, found: workdirs.Variants, costs: Mapping[str, budget.Cost], rates: Rates
) -> list[pathlib.Path]:
    """Plots each variant's mean over seeds against minutes (without evaluations) and against operations, with
    `rates` as horizontal lines, and the density over γ of the first seed of some variants. Returns the
    paths."""
    styles, of_study = look.styles(list(found), workdir), look.of_study(workdir)
    with of_study.drawing():
        figure, panels = of_study.figure(("minutes", "operations", "gamma"), height=0.85)
        minutes, operations, gamma = (panels[name] for name in ("minutes", "operations", "gamma"))
        for name, records in workdirs.read_variants(found).items():
            style = styles[name]
            if name in DENSITIES:
                kept = workdirs.kept(records[0].folder, "density", density.density)
                gamma.stairs(kept["per_gamma"], kept["gamma"], label=name, **style)
            tested = [curves.curve_of(record, "step", "bpd") for record in records if record.test]
            if name not in costs or not tested:
                continue
            step, values = curves.over_seeds(tested)
            spent = [costs[name].seconds(number) / 60.0 for number in step]
            for axes, x in ((minutes, spent), (operations, step * costs[name].operations)):
                axes.plot(x, values.mean(axis=0), marker=".", label=name, **style)
        for axes, label in ((minutes, "minutes of training"), (operations, "floating-point operations")):
            codecs.draw_lines(axes, rates)
            axes.set(xlabel=label, ylabel="bits/dim")
        operations.set_xscale("log")
        gamma.set(xlabel="γ = −log SNR", ylabel="bits/dim per unit of γ")
        for axes in panels.values():
            axes.grid(alpha=0.3, lw=0.4)
        look.legend_above(figure, minutes.get_legend_handles_labels()[0], of_study.width)
        caption = (
            "Mean over seeds of each variant, against minutes of training without evaluations, and against "
            f"operations; gray: codecs on the same images. Density of the diffusion term over γ: "
            f"{', '.join(DENSITIES)}."
        )
        return look.save(figure, workdir, "natural_images", caption)


if __name__ == "__main__":
    fields = {"data.hold_out": 0.1, "eval.passes": 10}
    study.main(
        __doc__, grid, results_of, config="configs/cifar10_laptop.py", seeds=2, fields=fields, minutes=10.0
    )
