"""--mode=eval: the likelihood of the test split by independent estimators, in one table."""

import csv
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from vdm import denoiser, diffusion, elbo, encoder, evaluate, figures, likelihood, report
from vdm import rng as rng_lib, run as run_lib
from vdm.errors import one_of, require
from vdm.profile import EDGES

ESTIMATORS = ("elbo", "depth", "chain", "ode")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: the estimator.
      bounds: whose negative log-likelihood it bounds from above.
      estimate: evaluate.Estimate, of the first so many test images.
      evaluations: of the network, per image.
      seconds: that it took, compilation included.
    """

    name: str
    bounds: str
    estimate: evaluate.Estimate
    evaluations: float
    seconds: float

    def json(self):
        """Flat."""
        return {
            "name": self.name,
            "bounds": self.bounds,
            **self.estimate.json(),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }


def run(config, workdir):
    """Prints the table of config.eval.estimators, and writes into the workdir eval.json,
    eval.md, eval_images.csv and, for a diffusion, profile.csv, density.png, distortion.png;
    depth.png where "depth" is among them.

    Raises:
      UserError: the workdir has no checkpoint, or a number of config.eval cannot be.
    """
    chosen = check(config)
    this = run_lib.restore(config, workdir)
    is_diffusion = isinstance(this.model, diffusion.Diffusion)
    require(
        is_diffusion or chosen == ["elbo"],
        f"config.eval.estimators is {config.eval.estimators!r}; accepted for "
        f"config.model.name = {config.model.name!r}: 'elbo'.",
    )
    lead = jax.process_index() == 0
    if lead:
        print(f"{config.data.name}, test split, step {int(this.state.step)}, EMA", flush=True)
    rows, checks, more = [], [], {}

    def add(*new):
        for row in new:
            rows.append(row)
            if lead and row.name.startswith("ELBO, T → ∞"):
                print(report.estimate_table(row.estimate), flush=True)
            elif lead:
                estimate = row.estimate
                print(f"{row.name}: {estimate.mean['bpd']:.4f} ± {estimate.se['bpd']:.4f}", flush=True)

    main_row, profile = elbo_row(config, this, this.model)
    add(main_row)
    if is_diffusion:
        columns = profile.summary(
            this.model.gamma(this.state.ema, jnp.asarray(EDGES, jnp.float32)),
            main_row.estimate.mean["prior"],
            this.data.spec.shape,
            this.data.spec.vocab_size,
        )
        strip = pictures(config, this)
        if lead:
            write_columns(workdir / "profile.csv", columns)
            figures.save_density(workdir / "density.png", columns, main_row.estimate)
            figures.save_distortion(workdir / "distortion.png", columns, *strip, this.data.spec)
    if "depth" in chosen:
        chain_of = depths(config, this, main_row)
        add(*(row for row in chain_of if row is not main_row))
        checks.append(order("falls with T", chain_of))
        if lead:
            figures.save_depth(workdir / "depth.png", depth_list(config), chain_of)
    if "chain" in chosen:
        bounded, weighted = chain_rows(config, this)
        if bounded.name not in [row.name for row in rows]:
            add(bounded)
        add(*weighted.values())
        checks.append(order("falls with K", [bounded, *weighted.values()]))
    if "ode" in chosen:
        flows, weighted, quadrature = ode_rows(config, this)
        add(*flows, *weighted.values())
        checks.append(order("falls with K", list(weighted.values())))
        more["ode_quadrature_error"] = quadrature
    if not lead:
        return
    text = "\n\n".join([table(rows), "\n".join(filter(None, checks))]).strip() + "\n"
    if len(rows) > 1:
        print("\n" + text)
        (workdir / "eval.md").write_text(text)
    more |= {"rows": [row.json() for row in rows], "checks": [c for c in checks if c]}
    evaluate.write(workdir / "eval.json", main_row.estimate, int(this.state.step), more)
    write_images(workdir / "eval_images.csv", rows)
    print(workdir / "eval.json")


def table(rows):
    """The rows as a Markdown table."""
    header = "estimator; bounds −log p of; bits/dim; ± s.e.; of which noise; images; evaluations/image; seconds"
    cells = [
        [
            row.name,
            row.bounds,
            f"{row.estimate.mean['bpd']:.4f}",
            f"{row.estimate.se['bpd']:.4f}",
            f"{row.estimate.noise['bpd']:.4f}".replace("nan", "–"),
            f"{row.estimate.images}",
            f"{row.evaluations:.0f}",
            f"{row.seconds:.0f}",
        ]
        for row in rows
    ]
    return report.markdown_table(header.split("; "), cells)


def order(what, rows):
    """One line on whether each of the rows is below the one before it, image by image, or None
    for one row: the pair with the least drop in standard errors, which must not be below −3."""
    pairs = []
    for above, below in zip(rows, rows[1:]):
        images = min(above.estimate.images, below.estimate.images)
        drop = above.estimate.values["bpd"][:images] - below.estimate.values["bpd"][:images]
        pairs.append((drop.mean(), evaluate.standard_error(drop), above.name, below.name))
    if not pairs:
        return None
    drop, se, above, below = min(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] > 0 else 0.0)
    verdict = "NO" if drop < -3.0 * se else "yes"
    return f"{what}: {verdict}. Least sure: {above} is {drop:+.4f} ± {se:.4f} above {below}"


def write_columns(path, columns):
    """Columns of one length as a CSV; those of edges are left out."""
    names = [name for name in columns if not name.endswith("edges")]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*(columns[name] for name in names)))


def write_images(path, rows):
    """eval_images.csv: bits/dim of each test image by each row; of the first also its terms."""
    first, *others = rows
    columns = {("" if name == "bpd" else name) : v for name, v in first.estimate.values.items()}
    columns = {f"{first.name}{' ' if n else ''}{n}": v for n, v in columns.items()}
    columns |= {row.name: row.estimate.values["bpd"] for row in others}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        writer.writerows(
            [i, *(values[i] if i < len(values) else "" for values in columns.values())]
            for i in range(first.estimate.images)
        )


STRIP = 8  # pictures that are shown on the way


def pictures(config, this):
    """x̂(z_t) of the first test images at times from 1 down to 0, with one ε for all times.

    Returns:
      t [n], x̂ [n, images, height, width, channels], and the images x themselves, in [−1, 1].
    """
    model = this.model

    def predicted(params, rng, batch, t):
        x = encoder.scale(batch["image"], model.vocab_size)
        gamma = jnp.broadcast_to(model.gamma(params, t), x.shape[:1])
        eps = rng.normal(rng_lib.NOISE, model.shape)
        z_t = encoder.diffuse(x, diffusion.over_pixels(gamma), eps)
        eps_hat = model.eps_hat(params, z_t, gamma, model.told(batch))
        return {"x": x, "x_hat": denoiser.x_from_eps(eps_hat, z_t, diffusion.over_pixels(gamma))}

    images = min(STRIP, config.eval.images or this.data.test.size)
    one_pass = evaluate.over_split(predicted, config, this.data)
    times = np.linspace(1.0, 0.0, 9)
    with evaluate.progress_bar(images, config, len(times), "pictures") as bar:
        shown = [
            one_pass(this.state.ema, (0, 0, 1), np.float32(t), images, bar) for t in times
        ]
    return times, np.stack([one["x_hat"] for one in shown]), shown[0]["x"]


def check(config):
    """The estimators that config.eval names, ELBO first.

    Raises:
      UserError: one is unknown, or a number of config.eval cannot be.
    """
    names = [name for name in config.eval.estimators.split(",") if name]
    for name in names:
        one_of("config.eval.estimators", name, (*ESTIMATORS, "all"))
    least = {"chain.timesteps": 1, "chain.samples": 1, "ode.samples": 1, "ode.images": 1}
    for name, low in least.items():
        group, field = name.split(".")
        value = config.eval[group][field]
        require(value >= low, f"config.eval.{name} is {value}; accepted: {low} or more.")
    nodes, tolerance = config.eval.ode.nodes, config.eval.ode.tolerance
    require(
        nodes >= 4 and nodes % 4 == 0,
        f"config.eval.ode.nodes is {nodes}; accepted: a multiple of 4.",
    )
    require(
        0 < tolerance < 1,
        f"config.eval.ode.tolerance is {tolerance}; accepted: between 0 and 1, such as 1e-5.",
    )
    depth_list(config)
    return [name for name in ESTIMATORS if name in names or "all" in names or name == "elbo"]


def depth_list(config):
    """config.eval.depths as integers.

    Raises:
      UserError: it is no list of them.
    """
    text = config.eval.depths
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = [0]
    require(
        min(depths) >= 1,
        f"config.eval.depths is {text!r}; accepted: numbers of steps, such as '1,10,100'.",
    )
    return depths


# ---- the ELBO, at any depth -------------------------------------------------------------


def elbo_row(config, this, model):
    """(Row, Profile) of the ELBO of a model."""
    start = time.monotonic()
    steps = getattr(model, "timesteps", 0)
    name = f"ELBO, T = {steps}" if steps else "ELBO, T → ∞"
    estimate, profile = evaluate.make_evaluator(model, config, this.data)(
        this.state.ema, config.eval.passes, True, config.eval.target_se, name
    )
    seconds = time.monotonic() - start
    return Row(name, whose(steps), estimate, estimate.passes, seconds), profile


def whose(timesteps):
    """Whose likelihood a chain of so many steps has."""
    return f"the chain of {timesteps} steps" if timesteps else "the chain of ∞ steps"


def depths(config, this, row):
    """[Row]: the ELBO of the same model as a chain of each of config.eval.depths, then T → ∞."""
    rows = []
    for steps in [*depth_list(config), 0]:
        model = dataclasses.replace(this.model, timesteps=steps)
        rows.append(row if model == this.model else elbo_row(config, this, model)[0])
    return rows


# ---- importance weights on a chain ------------------------------------------------------


def chain_rows(config, this):
    """The ELBO of the chain of config.eval.chain.timesteps as a Row, and its K-sample bounds as
    {K: Row}, K = 1, 2, 4, … up to config.eval.chain.samples."""
    steps, samples = config.eval.chain.timesteps, config.eval.chain.samples
    model = dataclasses.replace(this.model, timesteps=steps)
    elbo, _ = elbo_row(config, this, model)
    start = time.monotonic()

    def log_weight(params, rng, batch, _):
        gammas = model.gamma(params, jnp.linspace(0.0, 1.0, steps + 1))
        eps_hat = lambda *args: model.eps_hat(params, *args)  # noqa: E731
        log_w = likelihood.chain(
            eps_hat,
            batch["image"].astype(jnp.int32),
            model.told(batch),
            gammas,
            rng.keys(rng_lib.NOISE),
            model.vocab_size,
        )
        return {"log_w": log_w}

    name = f"importance-weighted, T = {steps}"
    log_w = passes(log_weight, config, this, samples, name)["log_w"]
    seconds = time.monotonic() - start
    rows = {}
    for k in powers_of_two(samples):
        estimate = bound(log_w, k, this.data.spec.shape)
        rows[k] = Row(f"{name}, K = {k}", whose(steps), estimate, samples * steps, seconds)
    return elbo, rows


def passes(function, config, this, number, name, images=None):
    """`function`'s results of so many passes, stacked: {name: float64 [passes, images, …]}."""
    images = images or config.eval.images or this.data.test.size
    one_pass = evaluate.over_split(function, config, this.data)
    with evaluate.progress_bar(images, config, number, name) as bar:
        results = [
            one_pass(this.state.ema, (0, k, number), np.float32(0), images, bar)
            for k in range(number)
        ]
    return jax.tree.map(lambda *values: np.stack(values), *results)


def bound(log_w, samples, shape):
    """The Estimate of the `samples`-sample bound from log weights [passes, images], nats."""
    groups = -likelihood.importance_bound(log_w, samples)
    return evaluate.combine([(1, {"bpd": group}) for group in groups], shape)


def powers_of_two(most):
    """1, 2, 4, … and `most`."""
    return sorted({*(2**i for i in range(most.bit_length())), most})


# ---- the probability-flow ODE -----------------------------------------------------------


def ode_rows(config, this):
    """Rows by the ODE: uniform and normal dequantisation, each by Hutchinson's divergence on
    all images; and {K: Row} of the importance-weighted bound, normal and by the exact
    divergence, as Hutchinson's noise under its logarithm would make it no bound, on the first
    config.eval.ode.images. Also the mean error of the quadrature there, bits/dim."""
    ode, model, shape = config.eval.ode, this.model, this.data.spec.shape

    def log_weight(kind, exact):
        def function(params, rng, batch, _):
            ends = model.gamma(params, jnp.array([0.0, 1.0]))
            z, gamma_0, nats = likelihood.dequantise(
                kind, rng.keys(rng_lib.DECODE), batch["image"], ends[0], model.vocab_size
            )
            result = likelihood.flow_log_density(
                lambda *args: model.eps_hat(params, *args),
                z,
                model.told(batch),
                (gamma_0, ends[1]),
                rng.keys(rng_lib.NOISE),
                ode.nodes,
                ode.tolerance,
                exact,
            )
            return result | {"log_w": result["log_density"] + nats}

        return function

    def measured(name, kind, exact, samples, images):
        start = time.monotonic()
        result = passes(log_weight(kind, exact), config, this, samples, name, images)
        likelihood.require_solved(result["steps"], ode.tolerance)
        # A step asks for six evaluations, a node for one with its divergence.
        evaluations = float(samples * (6.0 * result["steps"].mean() + ode.nodes + 1))
        return result, evaluations, time.monotonic() - start

    rows = []
    for kind in ("uniform", "normal"):
        name = f"ODE, {kind} dequantisation"
        result, evaluations, seconds = measured(name, kind, False, 1, None)
        rows.append(Row(name, "the ODE", bound(result["log_w"], 1, shape), evaluations, seconds))
    images = min(ode.images, rows[0].estimate.images)
    name = f"ODE, normal, first {images}, exact"
    result, evaluations, seconds = measured(name, "normal", True, ode.samples, images)
    weighted = {}
    for k in powers_of_two(ode.samples):
        estimate = bound(result["log_w"], k, shape)
        weighted[k] = Row(f"{name}, K = {k}", "the ODE", estimate, evaluations, seconds)
    quadrature = float(elbo.bits_per_dim(result["quadrature"].mean(), shape))
    return rows, weighted, quadrature
