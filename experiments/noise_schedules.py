"""Every noise schedule, trained alike, between the same end points (learned_linear learns its own).

  python -m experiments.noise_schedules --workdir=runs/noise_schedules --config=configs/digits.py

In continuous time the schedule changes no mean of the ELBO, but the variance of its estimate, and by that
the training; unless each value of a picture has noise of its own (multivariate). Each schedule is trained
under the config's parameterisation, and two of them under the others too. Writes the table and the curves of the
runs, and figures of γ(t) and SNR(t) before and after training, of where in t the loss is, and of
the variance of one draw of the loss over training.
"""

import dataclasses

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
from tqdm import tqdm

from experiments import results, sweep, workdirs
from vdm import run as run_lib
from vdm.diffusion import elbo
from vdm.evaluation import estimators, evaluate
from vdm.reporting import figures
from vdm.runtime import workdir as workdir_lib
from vdm.evaluation.evaluate import standard_error
from vdm.evaluation.profile import EDGES
from vdm.runtime.randomness import Rng

SCHEDULES = (
    "fixed_linear", "cosine", "linear_beta", "sigmoid", "polynomial", "learned_linear", "learned_net",
    "min_variance", "piecewise", "multivariate",
)  # fmt: skip
TWO = ("fixed_linear", "min_variance")  # with each parameterisation
CAPTION = """"Variance of a draw" is that of one draw of a test image's bits/dim, with its own t and noise, in
(bits/dim)²: its mean over images and seeds, ± the standard error over images."""
DRAWS = 50  # independent draws of the ELBO of each test image, for their variance


def grid(config):
    """{variant: fields}."""
    found = {name: {"model.schedule.name": name} for name in SCHEDULES}
    found["multivariate_context"] = found["multivariate"] | {"model.schedule.context": 8}
    for other in sorted({"eps", "v"} - {config.model.parameterisation}):
        for name in TWO:
            found[f"{name}_{other}"] = found[name] | {"model.parameterisation": other}
    return found


def results_of(workdir, found):
    """Writes the table and the figures of {variant: [workdirs]}; returns their paths."""
    folders = [folder for folders in found.values() for folder in folders]
    measured = {folder: workdirs.kept(folder, "schedule", measure) for folder in tqdm(folders, "schedules", disable=None)}
    of = {variant: [measured[folder] for folder in folders] for variant, folders in found.items()}
    variance = {variant: mean_variance(seeds) for variant, seeds in of.items()}
    more = {"variance of a draw": variance}
    print(results.table(found, workdir, more=more, caption=CAPTION))
    own = {name: seeds for name, seeds in of.items() if not name.endswith(("_eps", "_v"))}
    drawn = results.curves({name: found[name] for name in own} or found, workdir)
    drawn += draw_schedules(workdir, own or of) + draw_variance(workdir, found, variance)
    return [workdir / "table.md", workdir / "table.csv", workdir / "table_runs.csv", *drawn]


def measure(folder):
    """What the schedule of a run is and does, on the EMA of its newest checkpoint.

    Returns:
      {"before", "after": γ at EDGES [parts + 1, values], one value or each of a picture's;
      "per_t", "per_t_se": bits/dim per unit of t, [parts]; "variance": of an independent draw of
      bits/dim, [images]}.
    """
    config = workdir_lib.get_config(folder / "config.json")
    fresh = run_lib.build(config).init().params
    this = run_lib.restore(config, folder)
    model, shape = dataclasses.replace(this.model, times="iid"), this.data.spec.shape
    before, after = (
        np.asarray(model.gamma(params, jnp.asarray(EDGES, jnp.float32)), np.float64).reshape(len(EDGES), -1)
        for params in (fresh, this.state.ema)
    )

    def one_draw(params, rng, batch, _):
        own = Rng(jax.random.fold_in(rng.key, rng.number), rng.index, rng.images)
        return {"nats": sum(model.loss(params, own, batch, False).values())}

    drawn = estimators.passes(one_draw, config, this, DRAWS, folder.name)["nats"]
    _, profile = evaluate.make_evaluator(this.model, config, this.data)(this.state.ema, 20)
    columns = profile.summary(after.mean(axis=1), 0.0, shape, this.data.spec.vocab_size)
    found = {"before": before, "after": after, "per_t": columns["per_t"], "per_t_se": columns["per_t_se"]}
    found["variance"] = elbo.bits_per_dim(drawn, shape).var(axis=0, ddof=1)
    return {name: values.tolist() for name, values in found.items()}


def mean_variance(seeds):
    """Of what `measure` gave for each seed: the variance of a draw, mean over seeds and images, and its
    standard error over images, which counts the draws too."""
    of_images = np.mean([one["variance"] for one in seeds], axis=0)
    return float(of_images.mean()), standard_error(of_images)


def draw_schedules(workdir, of):
    """Draws γ(t), SNR(t) and the density of the loss of {variant: [measure(…)]}, the first seed's;
    a schedule with γ of many values as a band from the lowest to the highest."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for place, (variant, (first, *_)) in enumerate(of.items()):
        style = results.style_of(place)
        before, after = (np.array(first[name]) for name in ("before", "after"))
        for axes, form in ((left, lambda gamma: gamma), (middle, lambda gamma: np.exp(-gamma))):
            axes.plot(EDGES, form(after.mean(axis=1)), label=variant if axes is left else None, **style)
            if after.shape[1] > 1:
                axes.fill_between(EDGES, form(after.min(axis=1)), form(after.max(axis=1)), color=style["color"], alpha=0.2, lw=0)
            if np.abs(after - before).max() > 0.05:
                axes.plot(EDGES, form(before.mean(axis=1)), color=style["color"], lw=0.6)
        right.stairs(first["per_t"], EDGES, color=style["color"], ls=style["ls"])
    left.set(xlabel="t", ylabel="γ = −log SNR", title="after training; thin: before")
    middle.set(xlabel="t", ylabel="SNR", yscale="log", title="the same as SNR")
    right.set(xlabel="t", ylabel="bits/dim per unit of t", title="where in t the diffusion term is", ylim=(0, None))
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    return results.save(figure, workdir, "schedules")


def draw_variance(workdir, found, variance):
    """Draws the deviation of one draw of the training loss over training, and the final variances."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, (variant, folders) in enumerate(found.items()):
        runs = [workdirs.read(folder).train for folder in folders]
        steps = [row["step"] for row in runs[0]]
        variances = np.mean([[row["draw_sd"] ** 2 for row in rows] for rows in runs], axis=0)
        left.plot(steps, variances, label=variant, marker=".", **results.style_of(place))
    left.set(xlabel="step", ylabel="variance, (bits/dim)²", yscale="log", title="of one example's loss in a training batch: images, t and noise")
    figure.legend(loc="outside right upper")
    names = sorted(variance, key=lambda name: variance[name][0])
    means, errors = zip(*(variance[name] for name in names))
    right.errorbar(means, range(len(names)), xerr=errors, fmt="o", ms=4, capsize=3, color="black")
    right.set_yticks(range(len(names)), names)
    right.set(xscale="log", xlabel="variance, (bits/dim)² ± s.e. over images", title="of one draw for a test image")
    for axes, axis in ((left, left.yaxis), (right, right.xaxis)):
        figures.plain_ticks(axis)
        axes.grid(alpha=0.3)
    return results.save(figure, workdir, "variance")


if __name__ == "__main__":
    sweep.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=sweep.SHORT)
