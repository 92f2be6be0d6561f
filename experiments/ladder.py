"""Every system of the lecture on the same data, in the same unit: from a naive predictor up to the VDM.

  python -m experiments.ladder --workdir=runs/ladder

Each rung is a config of configs/; between the hierarchical VAE and the VDM come its three restrictions, one
after the other, by the networks of the VAE; and the VDM itself, first with as many steps as they have. Writes ladder.md and ladder.csv, what each reaches, whether that is exact or a bound, and what it
costs; and ladder.png and ladder.pdf, samples of each in a row and the curves. On MNIST, the rungs of vectors:

  python -m experiments.ladder --workdir=runs/ladder_mnist --only=naive,VAE,MHVAE,MHVAE_I,latent_VDM \\
      --config.data.name=mnist --config.data.vocab_size=256 --config.data.data_dir=$HOME/tensorflow_datasets
"""

import time

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
from tqdm import tqdm

from experiments import results, sweep, workdirs
from vdm import model as model_lib, run as run_lib, sample
from vdm.diffusion import encoder
from vdm.reporting import figures, report
from vdm.runtime import workdir as workdir_lib
from vdm.evaluation.evaluate import standard_error

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
    "latent VDM": "configs/latent.py",
}
SHOWN = 12  # samples of each rung in the figure
TIMED = 64  # samples that are drawn to see how long one takes
GUIDANCE = 2.0  # of the latent VDM's samples in a row of their own


def grid(config):
    """{variant: fields}: a rung's config, and its restrictions."""
    found = {name.replace(", ", "_").replace(" ", "_"): {"config": file} for name, file in RUNGS.items()}
    for name, fields in found.items():
        if name.startswith("MHVAE_"):
            fields["model.restrictions"] = name.removeprefix("MHVAE_").replace("+", ",")
    found["VDM_T=9"] |= {
        "model.timesteps": 9,
        "model.schedule.name": "learned_net",
        "model.schedule.learn_ends": True,
        "model.schedule.gamma_min": -5.0,  # of −4, −5 and −9, on held-out training images
    }
    return found


def results_of(workdir, found):
    """Writes the table and the figure of {variant: [workdirs]}; returns their paths."""
    runs, drawn = workdirs.read_variants(found), {}
    for variant, (folder, *_) in tqdm(found.items(), "samples", disable=None):
        drawn[variant] = draw(folder)
    rows = [row_of(variant, runs[variant], drawn[variant]) for variant in runs]
    text = table(rows)
    print(text)
    (workdir / "ladder.md").write_text(text)
    results.write_csv(workdir / "ladder.csv", rows)
    return [workdir / "ladder.md", workdir / "ladder.csv", *draw_ladder(workdir, runs, drawn)]


# ---- the table --------------------------------------------------------------------------


def draw(folder):
    """What the model of a run draws.

    Returns:
      {"rows": {name: uint8 [SHOWN, height, width, channels]}, "seconds": of one sample, "parameters": how
      many, "vocab_size"}.
    """
    config = workdir_lib.get_config(folder / "config.json")
    config.sample.num = config.sample.batch_size = TIMED
    this = run_lib.restore(config, folder)
    sampler = sample.make_sampler(this.model, config, this.data)
    sampler(this.state.ema)  # compiles it
    begun = time.monotonic()
    rows = {"": sampler(this.state.ema)[:SHOWN]}
    seconds = (time.monotonic() - begun) / TIMED
    if config.model.name == "naive":
        rows["given the upper half"] = lower_halves(this)
    if config.model.drop_label:
        config.model.guidance = GUIDANCE
        guided = sample.make_sampler(model_lib.build(config, this.data.spec), config, this.data)
        rows[f"guided, w = {GUIDANCE:g}"] = guided(this.state.ema)[:SHOWN]
    count = sum(value.size for value in jax.tree.leaves(this.state.params))
    return {"rows": rows, "seconds": seconds, "parameters": count, "vocab_size": this.data.spec.vocab_size}


def lower_halves(this):
    """Test images, whose lower half is what the naive model predicts from the upper: uint8 [SHOWN or less, …]."""
    count = min(SHOWN, this.data.test.size)
    batch = this.data.test.read(np.arange(count)) | {"augmented": np.zeros(count, np.float32)}
    model, params = this.model, this.state.ema
    upper = model.is_upper()

    @jax.jit
    def predict(batch):
        x = encoder.scale(batch["image"], model.vocab_size)
        lower = model.average(params, x * upper, 1.0, model.told(batch))
        return encoder.unscale(jnp.where(upper > 0, x, lower), model.vocab_size).astype(jnp.uint8)

    return np.asarray(predict(batch))


def row_of(variant, runs, drawn):
    """A row of ladder.csv: bits/dim and its terms, means over seeds, and what the rung costs."""
    values = np.array([workdirs.number(run.final, "bpd") for run in runs])
    row = {
        "model": variant.replace("_", " "),
        "bpd": float(values.mean()),
        "bpd_se_seeds": standard_error(values),
        "bpd_se_run": float(np.mean([workdirs.number(run.final, "bpd_se") for run in runs])),
        "is": "exact" if runs[0].final.get("estimator", "").startswith("exact") else "ELBO",
        "parameters": drawn["parameters"],
        "seeds": len(runs),
        "steps": results.progress(runs),
        "training_seconds": float(np.mean([workdirs.number(run.newest, "seconds") for run in runs])),
        "seconds_per_sample": drawn["seconds"],
    }
    terms = figures.term_names(run.final for run in runs)
    return row | {term: float(np.mean([workdirs.number(run.final, term) for run in runs])) for term in terms}


def table(rows):
    """The rows as Markdown, the terms of each in one cell."""
    header = ("model", "bits/dim", "± over seeds", "± of one run", "which is", "parameters", "seeds", "steps",
              "training, s", "a sample, ms", "terms")  # fmt: skip
    cells = []
    for row in rows:
        terms = list(row)[list(row).index("seconds_per_sample") + 1 :]
        levels = [name for name in terms if name.startswith("level_")]
        told = {name: row[name] for name in terms if name not in levels}
        if levels:
            told[f"{len(levels)} levels"] = sum(row[name] for name in levels)
        cells.append([
            row["model"], *(report.fixed(row[name]) for name in ("bpd", "bpd_se_seeds", "bpd_se_run")), row["is"],
            f"{row['parameters']:,}", str(row["seeds"]), row["steps"], f"{row['training_seconds']:.0f}",
            f"{1e3 * row['seconds_per_sample']:.3g}",
            ", ".join(f"{name} {value:.3f}" for name, value in told.items()),
        ])  # fmt: skip
    text = report.markdown_table(header, cells)
    return text + f"""

Bits/dim of the test split. "± over seeds" is the standard error of the mean over seeds by how far they are
apart, "± of one run" counts the test images and the noise of evaluation. An ELBO bounds −log p(x) from above.
Seconds are of a run from its start on, with compilation and evaluations; a sample's are of {TIMED} drawn at once.
Naive predictor, autoregressor and VDM are transformers; VAE, MHVAE and latent VDM residual MLPs.
"""


# ---- the figure -------------------------------------------------------------------------


def draw_ladder(workdir, runs, drawn):
    """Draws ladder.png and ladder.pdf: samples of each rung in a row, and the curves over training time."""
    shown = [
        (variant, name, pictures, drawn[variant]["vocab_size"])
        for variant in drawn
        for name, pictures in drawn[variant]["rows"].items()
    ]
    figure = Figure(figsize=(15, 0.62 * len(shown) + 0.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(9, 6))
    panels = left.subplots(len(shown), 2, squeeze=False, width_ratios=(1, 6))
    for (told, axes), (variant, name, pictures, vocab_size) in zip(panels, shown):
        axes.imshow(strip(pictures / (vocab_size - 1)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        bpd = np.mean([workdirs.number(run.final, "bpd") for run in runs[variant]])
        label = name or f"{variant.replace('_', ' ')}\n{bpd:.3f} bits/dim"
        told.text(1.0, 0.5, label, ha="right", va="center", fontsize=9, wrap=True)
        told.set_axis_off()
        axes.set_axis_off()
    left.suptitle("samples, none chosen")
    axes, ends = right.subplots(), []
    for place, (variant, of_seeds) in enumerate(runs.items()):
        curves = [
            np.array([[workdirs.number(row, key) for row in run.test] for key in ("step", "seconds", "bpd")])
            for run in of_seeds
        ]
        seconds, values = results.over_seeds(curves)
        style = results.style_of(place)
        axes.plot(seconds, values.mean(axis=0), label=variant.replace("_", " "), marker=".", **style)
        ends.append(values.mean(axis=0)[-1])
    axes.set(xscale="log", xlabel="seconds of training", ylabel="bits/dim, test split", title="mean over seeds")
    axes.set_ylim(min(ends) - 0.05, min(max(ends), 2.0 * min(ends)) + 0.3)
    figures.plain_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return results.save(figure, workdir, "ladder")


def strip(pictures):
    """Pictures [n, height, width, channels] of values up to 1 side by side, white between them: [height,
    n · (width + 1)(, 3)]."""
    apart = np.pad(pictures, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=1.0)
    row = np.concatenate(list(apart), axis=1)
    return row[..., :3] if row.shape[-1] >= 3 else row[..., 0]


if __name__ == "__main__":
    sweep.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields={"train.eval_every": 100})
