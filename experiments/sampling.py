"""How good samples are by how many network evaluations they took, for each sampler.

  python -m experiments.sampling --workdir=runs/digits

The measure is the energy distance between samples and held-out images, pixels in [−1, 1]:
2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ (Székely & Rizzo 2013). It has no bandwidth to choose, is zero
only where the two distributions are the same, and its estimate here is unbiased, so that it
does not favour few samples. Writes sampling.md, and sampling.png with the distances and samples
of one and the same noise.
"""

import dataclasses
import pathlib
import sys

from absl import app, flags, logging
import jax
from matplotlib.figure import Figure
import numpy as np
from tqdm import tqdm

from vdm import run as run_lib, sample
from vdm.diffusion import encoder, model as diffusion_lib
from vdm.reporting import report
from vdm.runtime import cache, workdir as workdir_lib
from vdm.errors import UserError, require
from vdm.diffusion.sampler import SAMPLERS

FLAGS = flags.FLAGS


def energy_distance(x, y):
    """The unbiased energy distance of samples x [n, d] and y [m, d].

    Returns:
      the distance; and how much each of x, and each of y, moves it, [n] and [m], so that
      `standard_error` of these is its standard error: up to a third too large near distance 0.
    """
    across = _distances(x, y)
    within_x = _distances(x, x).sum(axis=1) / (len(x) - 1)
    within_y = _distances(y, y).sum(axis=1) / (len(y) - 1)
    value = 2.0 * across.mean() - within_x.mean() - within_y.mean()
    # To first order; a sample is in both places of a pair, hence twice.
    of_x = 2.0 * (across.mean(axis=1) - within_x)
    of_y = 2.0 * (across.mean(axis=0) - within_y)
    return value, of_x, of_y


def _distances(a, b):
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def standard_error(*influences):
    """Of what independent samples move by `influences`, each [n]."""
    return float(np.sqrt(sum(np.var(i, ddof=1) / len(i) for i in influences)))


def images_of(split, most=2_000):
    """The images of a split, or so many of them."""
    return split.read(np.arange(min(split.size, most)))["image"]


def run(workdir, num, evaluations):
    """Draws with every sampler and number of evaluations, and compares with the test images.

    Returns:
      {(sampler, evaluations): energy_distance(…)}, that of the training images, the samples by
      the same names, and the levels of a value.
    """
    require(
        workdir_lib.newest(workdir) is not None, f"--workdir is {str(workdir)!r}, which has no checkpoint."
    )
    config = workdir_lib.get_config(workdir / "config.json")
    config.sample.num = num
    config.sample.batch_size = -(-min(num, 500) // jax.device_count()) * jax.device_count()
    this = run_lib.restore(config, workdir)
    require(
        isinstance(this.model, diffusion_lib.Diffusion),
        f"the model of {str(workdir)!r} is no diffusion model, so it has no steps to choose.",
    )
    vocab_size = this.data.spec.vocab_size

    def flat(images):
        x = encoder.scale(np.asarray(images), vocab_size)
        return np.asarray(x, np.float64).reshape(len(images), -1)

    held_out = flat(images_of(this.data.test))
    drawn, found = {}, {}
    cases = [(name, n) for n in evaluations for name in SAMPLERS]
    bar = tqdm(cases, "samples", disable=None)
    for name, n in bar:
        bar.set_postfix_str(f"{name}, {n} evaluations")
        model = dataclasses.replace(this.model, sampler=name, sample_steps=n, timesteps=0)
        drawn[name, n] = sample.make_sampler(model, config, this.data)(this.state.ema)
        found[name, n] = energy_distance(flat(drawn[name, n]), held_out)
    trained = energy_distance(flat(images_of(this.data.train)), held_out)
    return found, trained, drawn, vocab_size


def table(found, trained):
    """Markdown: each distance, and how far it is from that of the longest ancestral chain."""
    longest = ("ancestral", max(n for _, n in found))
    other, other_x, other_y = found[longest]
    rows = []
    for case, (value, of_x, of_y) in found.items():
        cells = [f"{value:.4f}", f"{standard_error(of_x, of_y):.4f}", "", ""]
        if case != longest:
            # Samples start from the same noise, and the test images are the same for both: what
            # they move in common cancels.
            apart = standard_error(of_x - other_x, of_y - other_y)
            cells[2:] = [f"{value - other:+.4f}", f"{apart:.4f}"]
        rows.append([case[0], str(case[1]), *cells])
    value, *moved = trained
    rows.append(["training images", "", f"{value:.4f}", f"{standard_error(*moved):.4f}", "", ""])
    header = ("samples", "evaluations", "energy distance", "± s.e.")
    return report.markdown_table((*header, "minus " + " ".join(map(str, longest)), "± s.e."), rows)


def draw(path, found, trained, drawn, vocab_size, shown=8):
    """Distances over evaluations, and beside them a few samples of each case, of one noise."""
    evaluations = sorted({n for _, n in found})
    size = (5.0 + 0.45 * shown * len(SAMPLERS), 1.0 + 0.5 * len(evaluations))
    figure = Figure(figsize=size, layout="constrained")
    left, *grids = figure.subplots(
        1, 1 + len(SAMPLERS), width_ratios=[5.0, *[0.45 * shown] * len(SAMPLERS)]
    )
    for k, name in enumerate(SAMPLERS):
        values = [found[name, n] for n in evaluations]
        bars = [standard_error(*moved) for _, *moved in values]
        beside = [n * 1.05 ** (k - 1) for n in evaluations]
        left.errorbar(beside, [v for v, *_ in values], bars, marker="o", ms=4, label=name, capsize=2)
    left.axhline(trained[0], color="gray", ls=":", label="training images")
    left.set(xscale="log", xlabel="network evaluations", ylabel="energy distance ± s.e.")
    left.set_xticks(evaluations, evaluations)
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend()
    for axes, name in zip(grids, SAMPLERS):
        line = [(0, 0), (1, 0), (1, 0), (0, 0)]  # a line between samples
        rows = [np.pad(drawn[name, n][:shown], line, constant_values=vocab_size // 2) for n in evaluations]
        whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        axes.imshow(np.squeeze(whole) / (vocab_size - 1), cmap="gray", vmin=0.0, vmax=1.0)
        side = rows[0].shape[1]
        axes.set(title=name, xticks=[])
        axes.set_yticks([side * (i + 0.5) for i in range(len(rows))], evaluations)
    figure.savefig(path, dpi=110)


def main(argv):
    """Prints and writes the table, and draws the figure."""
    logging.set_verbosity(logging.ERROR)  # the libraries' own reports are not the study's
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    cache.enable(cache.FOLDER)
    try:
        require(not argv[1:], f"{' '.join(argv[1:])!r} is no flag; see --help.")
        wrong = [n for n in FLAGS.evaluations if not n.isdigit() or int(n) < 1]
        require(not wrong, f"--evaluations has {wrong}; accepted: 1 or more, joined by commas.")
        found, trained, drawn, vocab_size = run(
            workdir, FLAGS.num, sorted({int(n) for n in FLAGS.evaluations})
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    text = table(found, trained)
    print(text)
    (workdir / "sampling.md").write_text(text + "\n")
    draw(workdir / "sampling.png", found, trained, drawn, vocab_size)
    print(f"{workdir}: sampling.md, sampling.png")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "A trained workdir of a diffusion model.", required=True)
    flags.DEFINE_integer("num", 1_000, "Samples for each distance.", lower_bound=2)
    flags.DEFINE_list("evaluations", ["5", "10", "20", "50", "100", "250"], "Steps of a sampler.")
    app.run(main)
