"""Compares noise schedules in equal training with equal end points (learned_linear learns its end points).

  python -m experiments.noise_schedules --workdir=runs/noise_schedules --config=configs/digits.py

In continuous time the schedule changes the variance of the ELBO's estimate, and thereby the training, but not
its mean, unless γ differs between the values of an image (multivariate). The interiors of learned_net and
multivariate are trained on the ELBO itself; those of min_variance (the same network as learned_net) and
piecewise are trained for the least variance. Each schedule is trained with the config's parameterisation, and
two of them also with ε and v; multivariate uses ε if the config's parameterisation needs the same γ for all
values. Times are stratified, as importance sampling of times would compensate for the schedule. Each run is
evaluated twice: with its own γ(t), and with a linear γ(t) between the same end points, which has the same
mean, and the same times and noise for all runs. Writes the table and the curves of the runs, and figures of
γ(t) before and after training, of the density of the loss over t, and of the variance of one draw of the loss
during training.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from experiments import schedule_invariance
from vdm import component, run as run_lib, workdir as workdir_lib
from vdm.contract import bits_per_dim
from vdm.diffusion.schedule import FixedLinear
from vdm.estimate import standard_error
from vdm.evaluation.elbo import make_elbo
from vdm.evaluation.profile import EDGES, in_continuous_time
from vdm.reporting import figures
from vdm.sweep import differences, look, saved, study, tables, workdirs
from vdm.sweep.curves import plot_curves, plot_variance as plot_variance_in_training

SCHEDULES = (
    "fixed_linear", "min_variance", "cosine", "linear_beta", "sigmoid", "polynomial", "learned_linear",
    "learned_net", "piecewise", "multivariate",
)  # fmt: skip
LEAST_VARIANCE = {"min_variance": "learned_net", "piecewise": "piecewise"}  # schedule by variant
TWO = ("fixed_linear", "min_variance")  # trained with each parameterisation
CAPTION = """"Variance of a draw" is that of one draw of a test image's bits/dim, with independent t and
noise, in (bits/dim)²: its mean over images and seeds, ± the standard error over images. "With a linear γ(t)"
are the bits/dim of the same runs, evaluated with a linear γ(t) between the end points of their schedule; ± is
over seeds. "Less {baseline}" is their difference from those of {baseline}, paired by seed and image; ± counts
which seeds and which images were drawn."""
SCHEDULES_CAPTION = """Left: γ(t) after training; thin: before, if it has moved; bands: from the lowest to the
highest of an image's values. Right: density of the diffusion term over t. For the first seed of each
variant."""
VARIANCE_CAPTION = """Left: the square of the mean standard deviation of the losses in a training batch, over
images, times and noise; mean over seeds. Right: variance of one draw of a test image's bits/dim
after training, over times and noise; mean over seeds and images, ± its standard error over images."""
DRAWS = 10_000  # of the ELBO, over all test images, for the variance of a draw; and as many for the density

Measured = Mapping[str, Any]  # the result of measure()


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    found: dict[str, dict[str, Any]] = {}
    for name in SCHEDULES:
        objective = "least_variance" if name in LEAST_VARIANCE else "elbo"
        found[name] = {"model.schedule.name": LEAST_VARIANCE.get(name, name), "objective.name": objective}
    found["multivariate_context"] = found["multivariate"] | {"model.name": "mulan", "model.context": 8}
    own = config.model.parameterisation.name
    per_value = [name for name in found if name.startswith("multivariate")]
    one_gamma = component.find("parameterisation", own, "config.model.parameterisation.name").one_gamma
    for other in sorted({"eps", "v"} - {own}):
        for name in [*TWO, *(per_value if one_gamma and other == "eps" else ())]:
            found[f"{name}_{other}"] = found[name] | {"model.parameterisation": other}
    return {name: fields for name, fields in found.items() if not (one_gamma and name in per_value)}


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the figures; returns their paths."""
    folders = [folder for folders in found.values() for folder in folders]
    bar = tqdm(folders, "schedules", disable=None)
    of_folder = {folder: workdirs.kept(folder, "schedule", measure) for folder in bar}
    measured = {variant: [of_folder[folder] for folder in folders] for variant, folders in found.items()}
    variance = {variant: mean_variance(seeds) for variant, seeds in measured.items()}
    study_of = saved.read(workdir)
    baseline = (study_of and study_of.baseline) or next(iter(found))
    alike = {variant: with_linear_gamma(folders) for variant, folders in found.items()}
    more = {"variance of a draw": variance}
    more["with a linear γ(t)"] = {
        variant: tables.over_seeds([bits.mean() for bits in seeds.values()])
        for variant, seeds in alike.items()
        if seeds
    }
    more[f"less {baseline}"] = {
        variant: differences.paired(seeds, alike.get(baseline, {}))
        for variant, seeds in alike.items()
        if variant != baseline
    }
    print(tables.write_table(found, workdir, more=more, caption=CAPTION.format(baseline=baseline)))
    # Other parameterisations would clutter the figures.
    own = {name: seeds for name, seeds in measured.items() if not name.endswith(("_eps", "_v"))} or measured
    files = plot_curves({name: found[name] for name in own}, workdir)
    files += plot_schedules(workdir, own) + plot_variance(workdir, found, variance)
    return [workdir / "table.md", workdir / "table.csv", workdir / "table_runs.csv", *files]


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """Measures the schedule of a run, with the EMA of its newest checkpoint.

    Returns:
      {"before", "after": γ at EDGES before and after training, [parts + 1, values], with one γ for all
      values of an image or one for each; "per_t", "per_t_se": bits/dim per unit of t and their standard
      error, [parts]; "variance": variance of one independent draw of each image's bits/dim, [images]}.
    """
    config = workdir_lib.read_config(folder)
    fresh = run_lib.build(config).init().params
    run = run_lib.restore(config, folder)
    model, shape = run.model, run.data.spec.shape
    before, after = (
        np.asarray(model.gamma(params, jnp.asarray(EDGES, jnp.float32)), np.float64).reshape(len(EDGES), -1)
        for params in (fresh, run.state.ema)
    )

    passes = max(2, -(-DRAWS // run.data.test.size))
    terms = schedule_invariance.independent_draws(config, run, passes, folder.name)
    nats = np.sum(list(terms.values()), axis=0)
    _, profile = make_elbo(in_continuous_time(model), config, run.data)(run.state.ema, passes)
    assert profile is not None  # as the model draws a time
    columns = profile.summary(after.mean(axis=1), 0.0, shape, run.data.spec.vocab_size)
    found = {"before": before, "after": after, "per_t": columns["per_t"], "per_t_se": columns["per_t_se"]}
    found["variance"] = bits_per_dim(nats, shape).var(axis=0, ddof=1)
    return {name: values.tolist() for name, values in found.items()}


def with_linear_gamma(folders: Sequence[pathlib.Path]) -> dict[int, Float[np.ndarray, "images"]]:
    """{seed: bits/dim of each test image} of runs, evaluated with a linear γ(t) between the end points of
    their schedule; {} if the ELBO depends on the schedule between them."""

    def evaluated(folder):
        config = workdir_lib.read_config(folder)
        run = run_lib.restore(config, folder)
        if not schedule_invariance.is_invariant(run.model):
            return {"bpd": []}
        run = schedule_invariance.under(
            run, schedule_invariance.instead(run.model, run.state.ema, FixedLinear), {}
        )
        evaluate = make_elbo(run.model, config, run.data)
        estimate, _ = evaluate(run.state.ema, config.eval.passes, True, title=f"{folder.name}, linear γ(t)")
        return {"bpd": estimate.values["bpd"].tolist()}

    of_folder = {folder: workdirs.kept(folder, "linear", evaluated)["bpd"] for folder in folders}
    return {
        workdir_lib.read_config(folder).seed: np.array(bits) for folder, bits in of_folder.items() if bits
    }


def mean_variance(seeds: Sequence[Measured]) -> tuple[float, float]:
    """The variance of a draw, averaged over images and over the results of `measure` for each seed, and its
    standard error over images, which includes that of the draws."""
    of_images = np.mean([one["variance"] for one in seeds], axis=0)
    return float(of_images.mean()), standard_error(of_images)


def plot_schedules(workdir: pathlib.Path, measured: Mapping[str, Sequence[Measured]]) -> list[pathlib.Path]:
    """Plots γ(t) and the density of the loss for the first seed of each variant. A γ that differs between
    values is shown as a band from the lowest to the highest."""
    styles, of_study = look.styles(list(measured), workdir), look.of_study(workdir)
    with of_study.drawing():
        figure, panels = of_study.figure(("gamma", "density"), height=0.75)
        left, right = panels["gamma"], panels["density"]
        for variant, (first, *_) in measured.items():
            style = styles[variant]
            before, after = (np.array(first[name]) for name in ("before", "after"))
            left.plot(EDGES, after.mean(axis=1), label=variant, **style)
            if after.shape[1] > 1:
                low, high = after.min(axis=1), after.max(axis=1)
                left.fill_between(EDGES, low, high, color=style["color"], alpha=0.2, lw=0)
            if np.abs(after - before).max() > 0.05:
                left.plot(EDGES, before.mean(axis=1), color=style["color"], lw=0.5)
            right.stairs(first["per_t"], EDGES, **style)
        left.set(xlabel="t", ylabel="γ = −log SNR")
        right.set(xlabel="t", ylabel="bits/dim per unit of t", yscale="log")
        figures.plain_ticks(right.yaxis)
        for axes in (left, right):
            axes.grid(alpha=0.3, lw=0.4)
        look.legend_above(figure, left.get_legend_handles_labels()[0], of_study.width)
        return look.save(figure, workdir, "schedules", SCHEDULES_CAPTION)


def plot_variance(
    workdir: pathlib.Path, found: workdirs.Variants, variance: Mapping[str, tuple[float, float]]
) -> list[pathlib.Path]:
    """Plots the variance of one draw of the loss over training, and the final variances."""
    styles, of_study = look.styles(list(found), workdir), look.of_study(workdir)
    with of_study.drawing():
        figure, panels = of_study.figure(("training", "final"), height=0.9)
        left, right = panels["training"], panels["final"]
        plot_variance_in_training(left, workdirs.read_variants(found), styles)
        names = sorted(variance, key=lambda name: variance[name][0])
        for place, name in enumerate(names):
            mean, error = variance[name]
            right.errorbar(mean, place, xerr=error, fmt="o", ms=3, capsize=2, color=styles[name]["color"])
        right.set_yticks(range(len(names)), names)
        right.set(xscale="log", xlabel="variance, (bits/dim)²")
        figures.plain_ticks(right.xaxis)
        for axes in (left, right):
            axes.grid(alpha=0.3, lw=0.4)
        look.legend_above(figure, left.get_legend_handles_labels()[0], of_study.width)
        return look.save(figure, workdir, "variance", VARIANCE_CAPTION)


if __name__ == "__main__":
    study.main(
        __doc__,
        grid,
        results_of,
        config="configs/digits.py",
        seeds=2,
        fields=study.SHORT | {"model.times": "stratified"},
    )
