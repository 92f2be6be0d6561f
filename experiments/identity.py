"""log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)), term by term, of a VAE as it trains (lecture (4) to (9)).

  python -m experiments.identity --workdir=runs/identity

A VAE with a latent of one or two numbers is small enough to integrate: log p(x) and the KL are sums over a grid of
z, and the ELBO is the mean of the model's own loss over many draws, so that the two sides are found
apart. Every checkpoint of its training is measured on the test images. Writes identity.md and identity.csv; and
identity.png and identity.pdf: both sides over training, and, of a latent of two numbers, q(z|x) on p(z|x).
"""

import math

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
from tqdm import tqdm

from experiments import results, sweep
from vdm import run as run_lib
from vdm.diffusion import decoder, elbo
from vdm.evaluation import evaluate
from vdm.reporting import report
from vdm.runtime import checkpoint, workdir as workdir_lib

LATENTS = (1, 2)
PASSES = 1_000  # draws of the ELBO for each image
HALF, POINTS = 8.0, {1: 8_001, 2: 801}  # the grid: from −HALF to HALF, so many points along each axis
CHUNK = 2**25  # log-probabilities of levels that are computed at once
SHOWN = 4  # images whose posterior is drawn


def grid(config):
    """{variant: fields}."""
    return {f"latent={size}": {"model.latent": size} for size in LATENTS}


def results_of(workdir, found):
    """Writes the table and the figure of {variant: [workdirs]}; returns their paths."""
    of = {
        folder.name if len(folders) > 1 else variant: measure(folder)
        for variant, folders in found.items()
        for folder in folders
    }
    text = table(of)
    print(text)
    (workdir / "identity.md").write_text(text)
    rows = [{"variant": variant, **row} for variant, measured in of.items() for row in measured["rows"]]
    results.write_csv(workdir / "identity.csv", rows)
    return [workdir / "identity.md", workdir / "identity.csv", *draw(workdir, of)]


def measure(folder):
    """Both sides of the identity at each checkpoint of a run.

    Returns:
      {"rows": [{"step", "log_p", "elbo", "kl", means over images, bits/dim; "apart": log_p − elbo − kl, and
      "apart_se" its noise over these images, which is all the ELBO's;
      "mass": the least ∫ q(z|x) dz on the grid}], "posterior": of the first images, at the last step, p(z|x)
      on the grid [SHOWN, points, points], and mean and standard deviation of q [SHOWN, 2] each; where z has two
      numbers}.
    """
    config = workdir_lib.get_config(folder / "config.json")
    this = run_lib.build(config)
    checkpoints = checkpoint.Checkpoints(folder, config.train.keep, read_only=True)
    evaluator = evaluate.make_evaluator(this.model, config, this.data)
    images = this.data.test.read(np.arange(config.eval.images or this.data.test.size))["image"]
    found = {"rows": []}
    for step in tqdm(checkpoints.steps(), folder.name, disable=None):
        state, _ = checkpoints.restore(this.like, step)
        estimate, _ = evaluator(state.ema, PASSES)
        log_p, kl, mass, posterior = integrate(this.model, state.ema, images)
        log_p, kl = (elbo.bits_per_dim(nats, images.shape[1:]) for nats in (log_p, kl))
        bound = -estimate.values["bpd"]
        apart = log_p - bound - kl
        row = {"step": step, "log_p": log_p.mean(), "elbo": bound.mean(), "kl": kl.mean(), "apart": apart.mean()}
        found["rows"].append(row | {"apart_se": estimate.noise["bpd"], "mass": mass.min()})
        found["posterior"] = posterior
    checkpoints.close()
    return found


def integrate(model, params, images):
    """By a sum over a grid of z, in float64 but for the networks: log p(x) and KL(q(z|x) ‖ p(z|x)), nats
    [images], ∫ q(z|x) dz [images]; and (p(z|x) [SHOWN, points, points], mean, standard deviation of q), or None."""
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

    q = jax.tree.map(lambda v: np.asarray(v, np.float64), model.encode(params, images))
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
        return log_p, kl, mass, None
    return log_p, kl, mass, (np.stack(shown), q.mean[:SHOWN], np.exp(0.5 * q.log_variance[:SHOWN]))


def _log_normal(z, mean, log_variance):
    """log N(z; mean, e^log_variance) of points [n, size]: [n]."""
    each = np.square(z - mean) * np.exp(-log_variance) + log_variance + math.log(2.0 * math.pi)
    return -0.5 * each.sum(axis=1)


def table(of):
    """What `measure` found, of each variant, as Markdown."""
    header = ("latent", "step", "log p(x)", "ELBO", "KL(q ‖ p(z|x))", "log p − ELBO − KL", "± noise")
    cells = [
        [variant.partition("=")[2], str(row["step"]), *(f"{row[name]:.4f}" for name in ("log_p", "elbo", "kl")),
         f"{row['apart']:+.5f}", f"{row['apart_se']:.5f}"]
        for variant, measured in of.items()
        for row in measured["rows"]
    ]  # fmt: skip
    least = min(row["mass"] for measured in of.values() for row in measured["rows"])
    return report.markdown_table(header, cells) + f"""

Bits/dim, means over the test images. log p(x) and KL by a sum over a grid of z, on which ∫ q(z|x) dz is at least
{least:.6f} for every image; the ELBO by {PASSES} draws of the model's own loss for each image, whose noise is ±.
"""


def draw(workdir, of):
    """Draws identity.png and identity.pdf."""
    posteriors = [measured["posterior"] for measured in of.values() if measured["posterior"]]
    figure = Figure(figsize=(5 * len(of) + 5 * bool(posteriors), 4.3), layout="constrained")
    panels = figure.subfigures(1, len(of) + bool(posteriors), squeeze=False)[0]
    for panel, (variant, measured) in zip(panels, of.items()):
        axes = panel.subplots()
        step, log_p, bound, kl = (
            np.array([row[name] for row in measured["rows"]]) for name in ("step", "log_p", "elbo", "kl")
        )
        axes.fill_between(step, bound, bound + kl, color="tab:orange", alpha=0.3, lw=0, label="KL(q(z|x) ‖ p(z|x))")
        axes.plot(step, bound, color="tab:blue", label="ELBO, the model's own draws")
        axes.plot(step, log_p, "k.", ms=7, label="log p(x), summed over a grid of z")
        axes.set(xlabel="step", ylabel="bits/dim", title=variant.replace("latent=", "latent numbers: "))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    if posteriors:
        density, mean, deviation = posteriors[-1]
        panels[-1].suptitle("p(z|x) of four test images; red: q(z|x), 1 and 2 σ")
        for axes, p, m, s in zip(panels[-1].subplots(2, 2).flat, density, mean, deviation):
            axis = np.linspace(-HALF, HALF, len(p))
            axes.contourf(axis, axis, p.T, levels=12, cmap="Greys")
            angle = np.linspace(0.0, 2.0 * math.pi, 100)
            for far in (1, 2):
                axes.plot(m[0] + far * s[0] * np.cos(angle), m[1] + far * s[1] * np.sin(angle), color="tab:red", lw=1)
            of_p = np.array([axis @ p.sum(axis=1), axis @ p.sum(axis=0)]) / p.sum()
            middle, wide = 0.5 * (m + of_p), 0.6 * np.abs(m - of_p).max() + 4.0 * s.max()
            low, high = middle - wide, middle + wide
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    return results.save(figure, workdir, "identity")


if __name__ == "__main__":
    every = {"train.checkpoint_every": 250, "train.keep": 100}
    sweep.main(__doc__, grid, results_of, config="configs/vae.py", seeds=1, fields=every)
