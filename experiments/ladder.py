"""Every system of the lecture on the same data, in the same unit: from a naive predictor to the VDM.

  python -m experiments.ladder --workdir=runs/ladder

Each rung is a config of configs/. Between the hierarchical VAE and the VDM are the three restrictions, added
one after another with the VAE's networks, and a VDM with as many steps T as the restricted chain. Writes
ladder.md and ladder.csv (the bits/dim of each system, whether these are exact or a bound, and the cost) and
ladder.png and ladder.pdf (a row of samples of each system, and the curves). For MNIST, select some rungs; on
photographs, the VDM is that of configs/cifar10_laptop.py, and the autoregressor is a PixelCNN. They and the
naive predictor have the same optimiser and batch, and each rung trains for equally many minutes. There, the
table and the figure also have lossless codecs and a Gaussian of the training images:

  python -m experiments.ladder --workdir=runs/ladder_mnist --only=naive,VAE,MHVAE,MHVAE_I,latent_VDM \\
      --config.data.name=mnist --config.data.data_dir=$HOME/tensorflow_datasets
  python -m experiments.ladder --workdir=runs/ladder_cifar10 --minutes=10 \\
      --only=naive,autoregressor,VAE,MHVAE,VDM,latent_VDM \\
      --config.data.name=cifar10 --config.data.data_dir=$HOME/tensorflow_datasets
"""

from collections.abc import Mapping, Sequence
import pathlib
import textwrap
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from experiments import codecs
from experiments.codecs import Rates
from experiments.natural_images import references
from vdm import run as run_lib, sample, workdir as workdir_lib
from vdm.arrays import Images
from vdm.diffusion import process
from vdm.estimate import standard_error
from vdm.reporting import figures
from vdm.reporting.text import fixed, markdown_table
from vdm.runtime import devices
from vdm.sweep import curves, look, study, tables, workdirs
from vdm.sweep.output import save_figure, write_csv

RUNGS = {
    "naive": "configs/naive.py",
    "autoregressor": "configs/autoregressor.py",
    "VAE": "configs/vae.py",
    "MHVAE": "configs/mhvae.py",
    "MHVAE, I": "configs/mhvae.py",
    "MHVAE, I+II": "configs/mhvae.py",
    "MHVAE, I+II+III": "configs/mhvae.py",
    "VDM, T=9": "configs/digits.py",
    "VDM": "configs/digits.py",
    "VDM, encoder learned": "configs/diffenc.py",
    "latent VDM": "configs/latent.py",
}
DIGITS = ("digits", "mnist")  # data sets for which the VDM is that of configs/digits.py
PHOTOGRAPHS = "configs/cifar10_laptop.py"
SHOWN = 12  # samples of each rung in the figure
TIMED = 64  # samples that are drawn at once to measure the time per sample
GUIDANCE = 2.0  # guidance of the latent VDM's samples in an additional row

Records = Mapping[str, Sequence[workdirs.Record]]


class Samples(NamedTuple):
    """The samples of a run's model.

    Attributes:
      rows: SHOWN images for each row of the figure, by description; "" for unconditional samples.
      seconds: time per sample.
      parameters: number of parameters of the model.
    """

    rows: dict[str, Images]
    seconds: float
    parameters: int
    vocab_size: int


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant: a rung's config, and its restrictions."""
    found: dict[str, dict[str, Any]] = {
        name.replace(", ", "_").replace(" ", "_"): {"config": file} for name, file in RUNGS.items()
    }
    for name, fields in found.items():
        if name.startswith("MHVAE_"):
            fields["model.restrictions"] = name.removeprefix("MHVAE_").replace("+", ",")
    found["VDM_T=9"] |= {
        "model.timesteps": 9,
        "model.schedule.name": "learned_net",
        "model.schedule.learn_ends": True,
        "model.schedule.gamma_min": -5.0,  # chosen among −4, −5 and −9, on held-out training images
    }
    if config.data.name not in DIGITS:
        # An exact likelihood needs one pass; a second pass shows that it has no noise.
        alike = {
            "config": PHOTOGRAPHS,
            "objective.name": "elbo",
            "eval.passes": 2,
            "eval.passes_in_training": 1,
        }
        found["naive"] = {**alike, "model.name": "naive"}
        found["autoregressor"] = {**alike, "model.name": "autoregressor", "model.net.name": "pixelcnn"}
        # Larger than for the digits, as photographs have 48 times as many values. Not compared with others.
        of_vectors = {"model.latent": 128, "model.net.width": 512, "train.batch_size": 64}
        for name in found:
            if name in ("VAE", "latent_VDM") or name.startswith("MHVAE"):
                found[name] |= of_vectors
        found["VDM"] = {"config": PHOTOGRAPHS}
    return found


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the figure; returns their paths."""
    records, samples = workdirs.read_variants(found), {}
    for variant, (folder, *_) in tqdm(found.items(), "samples", disable=None):
        samples[variant] = draw_samples(folder)
    rows = [row_of(variant, records[variant], samples[variant]) for variant in records]
    config = next(iter(records.values()))[0].config
    rates = {} if config.data.name in DIGITS else references(config)
    text = table(rows, rates)
    print(text)
    (workdir / "ladder.md").write_text(text)
    write_csv(workdir / "ladder.csv", rows)
    return [workdir / "ladder.md", workdir / "ladder.csv", *plot_ladder(workdir, records, samples, rates)]


# ---- samples ----------------------------------------------------------------------------


def draw_samples(folder: pathlib.Path) -> Samples:
    """The Samples of a run."""
    config = workdir_lib.read_config(folder)
    config.sample.num = TIMED
    config.sample.batch_size = devices.multiple(TIMED)
    run = run_lib.restore(config, folder)
    sampler = sample.make_sampler(run.model, config, run.data)
    sampler(run.state.ema)  # compiles the sampler
    start = time.monotonic()
    rows = {"": sampler(run.state.ema)[:SHOWN]}
    seconds = (time.monotonic() - start) / TIMED
    if config.model.name == "naive":
        rows["given the upper half"] = predict_lower_halves(run)
    if config.model.get("drop_label"):
        config.model.guidance = GUIDANCE
        guided = sample.make_sampler(run_lib.build_model(config, run.data.spec), config, run.data)
        rows[f"guided, w = {GUIDANCE:g}"] = guided(run.state.ema)[:SHOWN]
    count = sum(value.size for value in jax.tree.leaves(run.state.params))
    return Samples(rows, seconds, count, run.data.spec.vocab_size)


def predict_lower_halves(run: run_lib.Run) -> Images:
    """The first test images, with the naive model's prediction of the lower half from the upper half."""
    count = min(SHOWN, run.data.test.size)
    batch = run.data.test.read(np.arange(count)) | {"augmented": np.zeros(count, np.float32)}
    model: Any = run.model
    params = run.state.ema
    upper = model.is_upper()

    @jax.jit
    def predict(batch):
        x = process.scale(batch["image"], model.vocab_size)
        lower = model.average(params, x * upper, 1.0, model.condition_of(batch))
        return process.unscale(jnp.where(upper > 0, x, lower), model.vocab_size).astype(jnp.uint8)

    return np.asarray(predict(batch))


# ---- the table --------------------------------------------------------------------------


def row_of(variant: str, records: Sequence[workdirs.Record], samples: Samples) -> dict[str, Any]:
    """A row of ladder.csv: bits/dim and its terms, means over seeds, and the cost of the rung."""
    values = np.array([workdirs.number(record.final, "bpd") for record in records])
    row = {
        "model": variant.replace("_", " "),
        "bpd": float(values.mean()),
        "bpd_se_seeds": standard_error(values),
        "bpd_se_run": float(np.mean([workdirs.number(record.final, "bpd_se") for record in records])),
        "is": "exact" if records[0].final.get("estimator", "").startswith("exact") else "ELBO",
        "parameters": samples.parameters,
        "seeds": len(records),
        "steps": tables.progress(records),
        "training_seconds": float(np.mean([workdirs.number(record.newest, "seconds") for record in records])),
        "seconds_per_sample": samples.seconds,
    }
    terms = figures.term_names(record.final for record in records)
    means = {t: float(np.mean([workdirs.number(record.final, t) for record in records])) for t in terms}
    return row | means


def table(rows: Sequence[Mapping[str, Any]], rates: Rates) -> str:
    """The rows as Markdown, with all terms of a row in one cell, and the rates below."""
    header = ("model", "bits/dim", "± over seeds", "± of one run", "which is", "parameters", "seeds", "steps",
              "training, s", "a sample, ms", "terms")  # fmt: skip
    cells = []
    for row in rows:
        terms = list(row)[list(row).index("seconds_per_sample") + 1 :]
        levels = [name for name in terms if name.startswith("level_")]
        shown = {name: row[name] for name in terms if name not in levels}
        if levels:
            shown[f"{len(levels)} levels"] = sum(row[name] for name in levels)
        cells.append([
            row["model"], *(fixed(row[name]) for name in ("bpd", "bpd_se_seeds", "bpd_se_run")), row["is"],
            f"{row['parameters']:,}", str(row["seeds"]), row["steps"], f"{row['training_seconds']:.0f}",
            f"{1e3 * row['seconds_per_sample']:.3g}",
            ", ".join(f"{name} {value:.3f}" for name, value in shown.items()),
        ])  # fmt: skip
    for name, (rate, error) in rates.items():
        kind = "bound" if name == "Gaussian" else "file"
        cells.append([name, fixed(rate), "", fixed(error), kind, *[""] * (len(header) - 5)])
    note = f"""Bits/dim of the test split. "± over seeds" is the standard error of the mean over seeds, from
their spread. {tables.seeds_note(row["seeds"] for row in rows)} "± of one run" counts the test images and the
noise of evaluation. An ELBO bounds −log p(x) from above. Seconds count from a run's start, and include
compilation and evaluations; those of a sample are for {TIMED} drawn at once."""
    if rates:
        note += """ The Gaussian is fitted to the training images, and evaluated on test images with uniform
noise, which bounds −log p(x), too. Codecs write each image to a file, or as many as fit to one sheet."""
    return f"{markdown_table(header, cells)}\n\n{textwrap.fill(note, 110)}\n"


# ---- the figure -------------------------------------------------------------------------


def plot_ladder(
    workdir: pathlib.Path, records: Records, samples: Mapping[str, Samples], rates: Rates
) -> list[pathlib.Path]:
    """Writes ladder.png and ladder.pdf: a row of samples of each rung, and the curves over training time."""
    rows = [
        (variant, name, images, samples[variant].vocab_size)
        for variant in samples
        for name, images in samples[variant].rows.items()
    ]
    figure = Figure(figsize=(15, 0.62 * len(rows) + 0.6), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(9, 6))
    left, right = halves
    panels = left.subplots(len(rows), 2, squeeze=False, width_ratios=(1, 6))
    for (label_axes, axes), (variant, name, images, vocab_size) in zip(panels, rows):
        row = side_by_side(images / (vocab_size - 1))
        axes.imshow(row, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        bpd = np.mean([workdirs.number(record.final, "bpd") for record in records[variant]])
        label = name or f"{variant.replace('_', ' ')}\n{bpd:.3f} bits/dim"
        label_axes.text(1.0, 0.5, label, ha="right", va="center", fontsize=9, wrap=True)
        label_axes.set_axis_off()
        axes.set_axis_off()
    left.suptitle("samples, not selected")
    plot_progress(right.subplots(), records, rates, workdir)
    return save_figure(figure, workdir, "ladder")


def plot_progress(axes: Any, records: Records, rates: Rates, workdir: pathlib.Path) -> None:
    """Plots the mean bits/dim over seeds against training time: each rung's curve and final estimate; and the
    rates as lines."""
    ends = []
    styles = look.styles(list(records), workdir)
    for variant, seeds in records.items():
        style = styles[variant]
        label = variant.replace("_", " ")
        if all(record.test for record in seeds):
            each = [curves.curve_of(record, "seconds", "bpd") for record in seeds]
            seconds, values = curves.over_seeds(each)
            axes.plot(seconds, values.mean(axis=0), label=label, marker=".", **style)
        x, y = (np.mean([workdirs.number(one.final, name) for one in seeds]) for name in ("seconds", "bpd"))
        axes.plot(x, y, color=style["color"], marker="D", ms=5, ls="none", zorder=3)
        ends.append(y)
    axes.plot([], [], color="gray", marker="D", ms=5, ls="none", label="final estimate")
    title = "mean over seeds; diamonds: final estimates;\npoints: fewer passes, the same noise at each"
    axes.set(xscale="log", xlabel="seconds of training", ylabel="bits/dim, test split", title=title)
    axes.set_ylim(min(ends) - 0.05, max(ends) + 0.3)
    codecs.draw_lines(axes, rates)
    figures.plain_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def side_by_side(
    images: Float[np.ndarray, "images height width channels"],
) -> Float[np.ndarray, "height all_widths ..."]:
    """Joins images with values up to 1 into a row, with white between them; grayscale or three channels."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0)
    row = np.concatenate(list(padded), axis=1)
    return row[..., :3] if row.shape[-1] >= 3 else row[..., 0]


if __name__ == "__main__":
    every = {"train.eval_every": 100}
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=every)
