"""The ELBO as a file size: every rung of the ladder as a codec, beside PNG and others on the same images.

  python -m experiments.compression --workdir=runs/compression

The codecs are those of each variant's first seed. A model of variable depth is a separate codec at each T of
config.eval.depths. Writes compression.md and .csv (the bits/dim of each file, of its images alone, and of the
ELBO at the same T) and compression.png and .pdf (the rate against T). For CIFAR-10, use the config of natural
images:

  python -m experiments.compression --workdir=runs/compression_cifar --config=configs/cifar10_laptop.py \\
      --config.data.data_dir=$HOME/tensorflow_datasets --config.eval.depths=10,30,100

With the extra "codecs", the other codecs include JPEG XL.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
import textwrap
from typing import Any

import jax
from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np

from experiments import codecs, ladder
from vdm import run as run_lib, workdir as workdir_lib
from vdm.codec.codec import stacks_of
from vdm.data import source
from vdm.evaluation import codec
from vdm.evaluation.depth import depths
from vdm.evaluation.elbo import elbo_row
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import look, study, workdirs
from vdm.sweep.output import save_figure, write_csv

Row = Mapping[str, Any]

NOTE = """Bits/dim. A file contains the first {images} test images, on {lanes} stacks; all were recovered bit
for bit. "Images" is their addition to the stacks; the initial bits and the header are the rest.
"Above" is the excess of "images" over the ELBO at this T, or over the exact likelihood, on the same images, ±
the standard error over images, which counts the noise of both. Seconds are per image, with compilation.
Reading a file requires the model, whose parameters are float32."""


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The rungs of the ladder that are codecs; for other data, the config itself."""
    if config.data.name != "digits":
        return {"VDM": {}}
    return {name: fields for name, fields in ladder.grid(config).items() if name != "VDM_encoder_learned"}


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the figure; returns their paths."""
    rows: list[Row] = []
    for variant, (folder, *_) in found.items():
        kept = workdirs.kept(folder, "compression", files_of)
        rows += [{"system": variant, **row} for row in kept["rows"]]
    others = codecs.bits_per_dim(test_images(workdir_lib.read_config(next(iter(found.values()))[0])))
    text = table(rows, others)
    print(text)
    (workdir / "compression.md").write_text(text)
    write_csv(workdir / "compression.csv", rows)
    return [workdir / "compression.md", workdir / "compression.csv", *plot(workdir, rows, others)]


def test_images(config: ConfigDict) -> Any:
    """The images that are compressed."""
    test = source.load(config.data).test
    return test.read(np.arange(min(config.codec.images or test.size, test.size)))["image"]


def files_of(folder: pathlib.Path) -> dict[str, Any]:
    """{"rows": one row per file of a run}."""
    config = workdir_lib.read_config(folder)
    run = run_lib.restore(config, folder)
    config.eval.images = min(config.codec.images or run.data.test.size, run.data.test.size)
    own = run.model.depth
    rows = []
    for timesteps in [own or 0] if own != 0 else depths(config):
        config.codec.timesteps = timesteps or config.codec.timesteps
        bound, _ = elbo_row(config, run, run.model.at_depth(timesteps) if timesteps else run.model)
        file = codec.make_file(config, run)
        more, se = codec.above(file, bound)
        parts = {name: float(values.mean()) for name, values in file.values.items()}
        rows.append(
            {
                "T": timesteps or None,
                "file": sum(parts.values()),
                **parts,
                "bound": bound.estimate.mean["bpd"],
                "bound_se": bound.estimate.se["bpd"],
                "above": more,
                "above_se": se,
                "compress": file.compress / config.eval.images,
                "decompress": file.decompress / config.eval.images,
                "bytes": file.size,
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state.ema)),
                "count": config.eval.images,
                "lanes": stacks_of(config, config.eval.images),
            }
        )
        print(f"{folder.name}, T = {timesteps or '–'}: {rows[-1]['file']:.4f} bits/dim", flush=True)
    return {"rows": rows}


def table(rows: Sequence[Row], others: codecs.Rates) -> str:
    """The results as Markdown."""
    header = (
        "codec", "T", "file", "images", "initial bits", "header", "ELBO or exact", "above", "± s.e.", "%",
        "s, compress", "s, decompress", "parameters",
    )  # fmt: skip
    cells = []
    for row in rows:
        parts = [fixed(row[name]) for name in ("file", "images", "initial", "header", "bound")]
        more = [f"{row['above']:+.4f}", fixed(row["above_se"]), f"{100.0 * row['above'] / row['bound']:+.2f}"]
        seconds = [f"{row[name]:.3f}" for name in ("compress", "decompress")]
        system = row["system"].replace("_", " ")
        cells.append([system, str(row["T"] or ""), *parts, *more, *seconds, f"{row['parameters']:,}"])
    blank = [""] * (len(header) - 3)
    cells += [[name, "", fixed(rate), *blank] for name, (rate, _) in others.items()]
    note = NOTE.format(images=rows[0]["count"], lanes=rows[0]["lanes"])
    return f"{markdown_table(header, cells)}\n\n{textwrap.fill(note, 110)}\n"


def plot(workdir: pathlib.Path, rows: Sequence[Row], others: codecs.Rates) -> list[pathlib.Path]:
    """Writes compression.png and .pdf: the rate of the images in each file, and the ELBO, against T, with
    other codecs as horizontal lines. Returns their paths."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    systems = list(dict.fromkeys(row["system"] for row in rows))
    for place, system in enumerate(systems):
        of_it = [row for row in rows if row["system"] == system]
        steps = [row["T"] or math.nan for row in of_it]
        style = look.style_of(place)
        if all(math.isnan(step) for step in steps):
            axes.axhline(of_it[0]["images"], **style, lw=1.0, label=f"{system}: images".replace("_", " "))
            continue
        name = system.replace("_", " ")
        axes.plot(steps, [row["bound"] for row in of_it], **style, lw=1.0, label=f"{name}: ELBO")
        axes.errorbar(
            steps,
            [row["images"] for row in of_it],
            [row["above_se"] for row in of_it],
            color=style["color"],
            marker="o",
            ls="none",
            label=f"{name}: images",
        )
    highest = max(max(row["images"], row["bound"]) for row in rows)
    # A higher one would flatten all other curves; the table lists it.
    codecs.draw_lines(axes, {name: rate for name, rate in others.items() if rate[0] <= 1.5 * highest})
    axes.set(xlabel="T", ylabel="bits/dim without initial bits and header", xscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return save_figure(figure, workdir, "compression")


if __name__ == "__main__":
    fields = {"eval.depths": "10,50,200,1000"}
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=1, fields=fields)
