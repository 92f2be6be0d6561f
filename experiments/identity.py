"""log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)), term by term, for a VAE during training (lecture (4) to (9)).

  python -m experiments.identity --workdir=runs/identity

A VAE with a latent of one or two dimensions can be integrated numerically: log p(x) and the KL are sums over
a grid of z, and the ELBO is the mean of the model's loss over many draws, so the two sides are computed
independently. Every checkpoint is measured on the test images. Writes identity.md and identity.csv, and plots
both sides during training, and q(z|x) over p(z|x) for a latent of two dimensions, into identity.png and
identity.pdf.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
from matplotlib.figure import Figure
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from vdm import run as run_lib, workdir as workdir_lib
from vdm.baselines.vae import VAE
from vdm.contract import Params, bits_per_dim
from vdm.data.dataset import Images
from vdm.diffusion import decoder
from vdm.evaluation.elbo import make_elbo
from vdm.reporting.text import markdown_table
from vdm.runtime import checkpoint
from vdm.sweep import study, workdirs
from vdm.sweep.output import save_figure, write_csv

LATENTS = (1, 2)
PASSES = 1_000  # draws of the ELBO for each image
HALF, POINTS = 8.0, {1: 8_001, 2: 801}  # the grid: from −HALF to HALF, with this number of points per axis
CHUNK = 2**25  # number of levels' log-probabilities that are computed at once
SHOWN = 4  # images whose posterior is plotted

PerImage = Float[np.ndarray, "images"]


class Posterior(NamedTuple):
    """For the first images and a latent of two dimensions: p(z|x) on the grid, and the mean and standard
    deviation of q(z|x)."""

    density: Float[np.ndarray, "shown points points"]
    mean: Float[np.ndarray, "shown 2"]
    deviation: Float[np.ndarray, "shown 2"]


class Sums(NamedTuple):
    """Sums over the grid.

    Attributes:
      log_p: log p(x), in nats.
      kl: KL(q(z|x) ‖ p(z|x)), in nats.
      mass: ∫ q(z|x) dz.
      posterior: the densities, if z has two dimensions.
    """

    log_p: PerImage
    kl: PerImage
    mass: PerImage
    posterior: Posterior | None


class Measured(NamedTuple):
    """Both sides of the identity at each checkpoint of a run.

    Attributes:
      rows: {"step"; "log_p", "elbo", "kl": means over images, in bits/dim; "apart": log_p − elbo − kl;
        "apart_se": the Monte-Carlo error of "apart", which is that of the ELBO on these images; "mass": the
        smallest ∫ q(z|x) dz on the grid}.
      posterior: the densities at the last step, if z has two dimensions.
    """

    rows: list[dict[str, float]]
    posterior: Posterior | None


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    return {f"latent={size}": {"model.latent": size} for size in LATENTS}


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the figure; returns their paths."""
    measured = {
        folder.name if len(folders) > 1 else variant: measure(folder)
        for variant, folders in found.items()
        for folder in folders
    }
    text = table(measured)
    print(text)
    (workdir / "identity.md").write_text(text)
    rows = [{"variant": variant, **row} for variant, one in measured.items() for row in one.rows]
    write_csv(workdir / "identity.csv", rows)
    return [workdir / "identity.md", workdir / "identity.csv", *plot_identity(workdir, measured)]


def measure(folder: pathlib.Path) -> Measured:
    """Both sides of the identity at each checkpoint of a run."""
    config = workdir_lib.read_config(folder)
    parts = run_lib.build(config)
    model: Any = parts.model
    checkpoints = checkpoint.Checkpoints(folder, config.train.keep, read_only=True)
    evaluate = make_elbo(parts.model, config, parts.data)
    images = parts.data.test.read(np.arange(config.eval.images or parts.data.test.size))["image"]
    rows, posterior = [], None
    for step in tqdm(checkpoints.steps(), folder.name, disable=None):
        state, _ = checkpoints.restore(parts.like, step)
        estimate, _ = evaluate(state.ema, PASSES)
        sums = integrate(model, state.ema, images)
        log_p, kl = (bits_per_dim(nats, images.shape[1:]) for nats in (sums.log_p, sums.kl))
        bound = -estimate.values["bpd"]
        apart = log_p - bound - kl
        means = {"log_p": log_p.mean(), "elbo": bound.mean(), "kl": kl.mean(), "apart": apart.mean()}
        rows.append({"step": step, **means, "apart_se": estimate.noise["bpd"], "mass": sums.mass.min()})
        posterior = sums.posterior
    checkpoints.close()
    return Measured(rows, posterior)


def integrate(model: VAE, params: Params, images: Images) -> Sums:
    """The Sums over a grid of z. Everything but the networks is computed in float64."""
    size = model.latent
    axis = np.linspace(-HALF, HALF, POINTS[size])
    z = np.stack(np.meshgrid(*[axis] * size, indexing="ij"), axis=-1).reshape(-1, size)
    log_cell = size * math.log(axis[1] - axis[0])
    values = math.prod(model.shape)
    chosen = jax.nn.one_hot(images.reshape(len(images), -1), model.vocab_size).reshape(len(images), -1)

    @jax.jit
    def log_likelihood(z):
        logits = decoder.logits(*model.decode(params, z), model.vocab_size)
        log_p = jax.nn.log_softmax(logits).reshape(len(z), values * model.vocab_size)
        return jnp.matmul(log_p, chosen.T, precision=jax.lax.Precision.HIGHEST)

    at_once = min(len(z), max(1, CHUNK // chosen.shape[1]))
    padded = np.concatenate([z, np.zeros((-len(z) % at_once, size))]).astype(np.float32)
    log_p_x = np.empty((len(images), len(padded)), np.float32)
    for start in range(0, len(padded), at_once):
        log_p_x[:, start : start + at_once] = log_likelihood(padded[start : start + at_once]).T

    given: Any = images  # encode takes NumPy arrays, too
    q = jax.tree.map(lambda v: np.asarray(v, np.float64), model.encode(params, given))
    log_prior = _log_normal(z, np.zeros(size), np.zeros(size))
    log_p, kl, mass = np.zeros((3, len(images)))
    shown = []
    for i, (mean, log_variance) in enumerate(zip(*q)):
        log_joint = log_prior + log_p_x[i, : len(z)]
        top = log_joint.max()
        log_p[i] = np.log(np.exp(log_joint - top).sum()) + top + log_cell
        log_q = _log_normal(z, mean, log_variance)
        weight = np.exp(log_q + log_cell)
        mass[i] = weight.sum()
        kl[i] = np.sum(weight * (log_q - log_joint + log_p[i]))
        if size == 2 and i < SHOWN:
            shown.append(np.exp(log_joint - log_p[i]).reshape(len(axis), len(axis)))
    if not shown:
        return Sums(log_p, kl, mass, None)
    deviation = np.exp(0.5 * q.log_variance[:SHOWN])
    return Sums(log_p, kl, mass, Posterior(np.stack(shown), q.mean[:SHOWN], deviation))


def _log_normal(z, mean, log_variance):
    """log N(z; mean, e^log_variance) of points [n, size]: [n]."""
    each = np.square(z - mean) * np.exp(-log_variance) + log_variance + math.log(2.0 * math.pi)
    return -0.5 * each.sum(axis=1)


def table(measured: Mapping[str, Measured]) -> str:
    """The results of `measure` for each variant, as Markdown."""
    header = ("latent", "step", "log p(x)", "ELBO", "KL(q ‖ p(z|x))", "log p − ELBO − KL", "± noise")
    cells = []
    for variant, one in measured.items():
        for row in one.rows:
            numbers = [f"{row[name]:.4f}" for name in ("log_p", "elbo", "kl")]
            numbers += [f"{row['apart']:+.5f}", f"{row['apart_se']:.5f}"]
            cells.append([variant.partition("=")[2], str(row["step"]), *numbers])
    smallest = min(row["mass"] for one in measured.values() for row in one.rows)
    return f"""{markdown_table(header, cells)}

Bits/dim, means over the test images. log p(x) and KL are sums over a grid of z, on which ∫ q(z|x) dz is at
least {smallest:.6f} for every image; the ELBO is the mean of {PASSES} draws of the model's loss for each
image, whose noise is ±.
"""


def plot_identity(workdir: pathlib.Path, measured: Mapping[str, Measured]) -> list[pathlib.Path]:
    """Writes identity.png and identity.pdf."""
    posteriors = [one.posterior for one in measured.values() if one.posterior]
    figure = Figure(figsize=(5 * len(measured) + 5 * bool(posteriors), 4.3), layout="constrained")
    panels = figure.subfigures(1, len(measured) + bool(posteriors), squeeze=False)[0]
    for panel, (variant, one) in zip(panels, measured.items()):
        axes = panel.subplots()
        step, log_p, bound, kl = (
            np.array([row[name] for row in one.rows]) for name in ("step", "log_p", "elbo", "kl")
        )
        label = "KL(q(z|x) ‖ p(z|x))"
        axes.fill_between(step, bound, bound + kl, color="tab:orange", alpha=0.3, lw=0, label=label)
        axes.plot(step, bound, color="tab:blue", label="ELBO, draws of the model's loss")
        axes.plot(step, log_p, "k.", ms=7, label="log p(x), summed over a grid of z")
        axes.set(xlabel="step", ylabel="bits/dim", title=variant.replace("latent=", "latent numbers: "))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    if posteriors:
        panels[-1].suptitle("p(z|x) of four test images; red: q(z|x), 1 and 2 σ")
        for axes, density, mean, deviation in zip(panels[-1].subplots(2, 2).flat, *posteriors[-1]):
            _plot_posterior(axes, density, mean, deviation)
    return save_figure(figure, workdir, "identity")


def _plot_posterior(axes, density, mean, deviation):
    """p(z|x) of one image on the grid, and q(z|x) as ellipses."""
    axis = np.linspace(-HALF, HALF, len(density))
    axes.contourf(axis, axis, density.T, levels=12, cmap="Greys")
    angle = np.linspace(0.0, 2.0 * math.pi, 100)
    for sigmas in (1, 2):
        x, y = (mean[k] + sigmas * deviation[k] * wave(angle) for k, wave in enumerate((np.cos, np.sin)))
        axes.plot(x, y, color="tab:red", lw=1)
    true_mean = np.array([axis @ density.sum(axis=1), axis @ density.sum(axis=0)]) / density.sum()
    middle = 0.5 * (mean + true_mean)
    wide = 0.6 * np.abs(mean - true_mean).max() + 4.0 * deviation.max()
    low, high = middle - wide, middle + wide
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")


if __name__ == "__main__":
    every = {"train.checkpoint_every": 250, "train.keep": 100}
    study.main(__doc__, grid, results_of, config="configs/vae.py", seeds=1, fields=every)
