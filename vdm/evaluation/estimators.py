"""--mode=eval: the likelihood of the test split by independent estimators, in one table."""

import csv
import dataclasses
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from vdm.diffusion import denoiser, elbo, encoder, model as diffusion_lib
from vdm.evaluation import evaluate, likelihood
from vdm.reporting import figures, report
from vdm import run as run_lib
from vdm.diffusion import schedule
from vdm.evaluation import table
from vdm.runtime import randomness
from vdm.errors import UserError, one_of, require
from vdm.evaluation.profile import EDGES

ESTIMATORS = ("elbo", "depth", "chain", "ode")


def run(config, workdir):
    """Prints the table of config.eval.estimators, and writes into the workdir eval.json,
    eval.md, eval_images.csv and, for a diffusion, profile.csv, density.png, distortion.png;
    depth.png where "depth" is among them.

    Raises:
      UserError: the workdir has no checkpoint, or a number of config.eval cannot be.
    """
    chosen = check(config)
    this = run_lib.restore(config, workdir)
    is_diffusion = isinstance(this.model, diffusion_lib.Diffusion)
    has = of_model(this.model)
    if "all" in config.eval.estimators.split(","):
        chosen = [name for name in chosen if name in has]
    require(
        set(chosen) <= set(has),
        f"config.eval.estimators is {config.eval.estimators!r}; accepted for this model, "
        f"{config.model.name!r}: {', '.join(map(repr, has))}, 'all'.",
    )
    heading = f"{config.data.name}, test split, step {int(this.state.step)}, EMA"
    lead = jax.process_index() == 0
    if lead:
        print(heading, flush=True)
    first, profile = elbo_row(config, this, this.model)
    if lead:
        print(report.estimate_table(first.estimate), flush=True)
    rows = [first]
    if is_diffusion and this.model.timesteps:  # the profile is that of continuous time
        row, profile = elbo_row(config, this, dataclasses.replace(this.model, timesteps=0))
        rows.append(tell(row))
    strip = pictures(config, this) if is_diffusion else None
    rows, series, checks = measure(config, this, chosen, rows)
    if not lead:
        return

    text = table.tables(rows, series, checks)
    if len(chosen) > 1:
        print("\n" + text)
    written = write(workdir, heading, text, rows, series, checks, int(this.state.step))
    if is_diffusion:
        written += draw(workdir, config, this, rows, profile, strip, series)
    print(f"{workdir}: {', '.join(written)}")


def of_model(model):
    """Those of ESTIMATORS that a model has."""
    if not isinstance(model, diffusion_lib.Diffusion):
        return ("elbo", "chain") if hasattr(model, "log_weight") else ("elbo",)
    if isinstance(model.schedule, schedule.Multivariate):
        return ("elbo", "depth")  # the others take one γ for all values
    return ESTIMATORS


def measure(config, this, chosen, rows):
    """All that is chosen beside the `rows` that there are: the ELBO, and that for T → ∞.

    Returns:
      [Row] of the table; {"depth", "chain", "ode": [Row]}, for each chosen, over T and over K;
      and lines on whether the numbers agree as they must.
    """
    series, checks = {}, []
    if "depth" in chosen:
        series["depth"] = depths(config, this, rows)
        pairs = table.least_drop(series["depth"])
        checks += [table.order("The ELBO falls with T", *pair) for pair in pairs]
    if "chain" in chosen:
        of_chain, *weighted = chain_rows(config, this, rows + series.get("depth", []))
        series["chain"] = weighted
        there = any(row is of_chain for row in rows)
        rows = rows + ([] if there else [of_chain]) + weighted[-1:]
        checks.append(table.agreement("Paths have the ELBO for their mean", weighted[0], of_chain))
        checks.append(table.list_of(weighted))
    if "ode" in chosen:
        try:
            flows = [flow_row(config, this, kind) for kind in ("uniform", "normal")]
            weighted, quadrature = weighted_flow_rows(config, this)
        except UserError as error:  # all the rest is not lost for it
            return rows, series, [*checks, f"No row of the ODE: {error}"]
        series["ode"] = weighted
        rows = rows + flows + weighted[:1] + weighted[1:][-1:]
        checks += [
            table.agreement(
                "Hutchinson's divergence has the exact one for its mean", flows[1], weighted[0]
            ),
            table.list_of(weighted),
            "In the ODE, each image's steps keep the local error of z within "
            f"{config.eval.ode.tolerance}; half the nodes would change an image by "
            f"{quadrature:.4f} bits/dim on average.",
        ]
    return rows, series, checks


def tell(row):
    """Prints a Row as it is done, and returns it."""
    if jax.process_index() == 0:
        mean, se = row.estimate.mean["bpd"], row.estimate.se["bpd"]
        print(f"{row.name}: {mean:.4f} ± {report.fixed(se)}, {row.seconds:.0f} s", flush=True)
    return row


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
    return sorted(set(depths))


# ---- the ELBO, at any depth -------------------------------------------------------------


def elbo_row(config, this, model):
    """(Row, Profile) of the ELBO of a model."""
    start = time.monotonic()
    name, of = "exact" if getattr(model, "exact", False) else "ELBO", OWN
    if isinstance(model, diffusion_lib.Diffusion):
        name, of = elbo_name(model.timesteps), whose(model.timesteps)
    estimate, profile = evaluate.make_evaluator(model, config, this.data)(
        this.state.ema, config.eval.passes, True, config.eval.target_se, name
    )
    seconds = time.monotonic() - start
    return table.Row(name, of, estimate, estimate.passes, seconds), profile


OWN = "the model"  # whose likelihood a model has that is no chain of any depth one likes


def elbo_name(timesteps):
    """What the ELBO at this depth is called; 0 is T → ∞."""
    return f"ELBO, T = {timesteps}" if timesteps else "ELBO, T → ∞"


def whose(timesteps):
    """Whose likelihood a chain of so many steps has."""
    return f"the chain of {timesteps} steps" if timesteps else "the chain of ∞ steps"


def depths(config, this, done):
    """[Row]: the ELBO of the same model as a chain of each of config.eval.depths, then T → ∞."""
    return [depth(config, this, steps, done) for steps in [*depth_list(config), 0]]


def depth(config, this, steps, done):
    """The Row of the ELBO of a chain of `steps`, taken from the rows `done` where it is there."""
    for row in done:
        if row.name == elbo_name(steps):
            return row
    return tell(elbo_row(config, this, dataclasses.replace(this.model, timesteps=steps))[0])


STRIP = 8  # pictures that are shown on the way


def pictures(config, this):
    """x̂(z_t) of the first test images at times from 1 down to 0, with one ε for all times.

    Returns:
      t [n], x̂ [n, images, height, width, channels], and the images x themselves, in [−1, 1].
    """
    model = this.model

    def predicted(params, rng, batch, t):
        x = encoder.scale(batch["image"], model.vocab_size)
        context, _ = model.draw_context(params, rng, x)
        gamma = model.gamma(params, jnp.broadcast_to(t, x.shape[:1]), context)
        eps = rng.normal(randomness.NOISE, model.shape)
        z_t = encoder.diffuse(x, diffusion_lib.over_pixels(gamma), eps)
        eps_hat = model.eps_hat(params, z_t, gamma, model.told(batch), context=context)
        return {"x": x, "x_hat": denoiser.x_from_eps(eps_hat, z_t, diffusion_lib.over_pixels(gamma))}

    images = min(STRIP, config.eval.images or this.data.test.size)
    one_pass = evaluate.over_split(predicted, config, this.data)
    times = np.linspace(1.0, 0.0, 9)
    with evaluate.progress_bar(images, config, len(times), "pictures") as bar:
        shown = [
            one_pass(this.state.ema, (0, 0, 1), np.float32(t), images, bar) for t in times
        ]
    return times, np.stack([one["x_hat"] for one in shown]), shown[0]["x"]


# ---- importance weights on a chain ------------------------------------------------------


def chain_rows(config, this, done=()):
    """[Row]: the ELBO of the chain of config.eval.chain.timesteps, and its K-sample bounds,
    K = 1, 2, 4, … up to config.eval.chain.samples; of a model that is no diffusion, of its own chain.
    `done`: rows that are there already, the model's own ELBO first."""
    if not isinstance(this.model, diffusion_lib.Diffusion):
        return [done[0], *own_chain_rows(config, this)]
    steps, samples = config.eval.chain.timesteps, config.eval.chain.samples
    model = dataclasses.replace(this.model, timesteps=steps)
    of_chain = depth(config, this, steps, done)
    start = time.monotonic()

    def log_weight(params, rng, batch, _):
        gammas = model.gamma(params, jnp.linspace(0.0, 1.0, steps + 1))
        eps_hat = lambda *args: model.eps_hat(params, *args)  # noqa: E731
        log_w = likelihood.chain(
            eps_hat,
            batch["image"].astype(jnp.int32),
            model.told(batch),
            gammas,
            rng.keys(randomness.NOISE),
            model.vocab_size,
        )
        return {"log_w": log_w}

    name = f"importance-weighted, T = {steps}"
    log_w = passes(log_weight, config, this, samples, name)["log_w"]
    seconds = time.monotonic() - start
    return [of_chain, *bounds(name, whose(steps), log_w, samples * steps, seconds, this)]


def own_chain_rows(config, this):
    """[Row]: the K-sample bounds of a model that has latents of its own, and with them a method
    log_weight(params, rng, batch): log p(x, z)/q(z|x) of one draw of q, nats [batch]."""
    start, samples = time.monotonic(), config.eval.chain.samples

    def log_weight(params, rng, batch, _):
        return {"log_w": this.model.log_weight(params, rng, batch)}

    name = "importance-weighted"
    log_w = passes(log_weight, config, this, samples, name)["log_w"]
    return bounds(name, OWN, log_w, samples, time.monotonic() - start, this)


def bounds(name, whose, log_w, evaluations, seconds, this):
    """[Row] of the K-sample bounds from log weights [passes, images], nats, K = 1, 2, 4, … and
    all; `evaluations` and `seconds` are of all. Of passes that K does not divide, the last are
    left out."""
    total = len(log_w)
    rows = []
    for k in sorted({*(2**i for i in range(total.bit_length())), total}):
        groups = -likelihood.importance_bound(log_w, k)
        sets = [(1, {"bpd": group}) for group in groups]
        estimate = evaluate.combine(sets, this.data.spec.shape)
        estimate = dataclasses.replace(estimate, passes=len(groups) * k)
        rows.append(table.Row(f"{name}, K = {k}", whose, estimate, evaluations, seconds))
    tell(rows[-1])
    return rows


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


# ---- the probability-flow ODE -----------------------------------------------------------


def flow_row(config, this, kind):
    """The Row of the ODE with `kind` of dequantisation (likelihood.dequantise), one point for
    each image, by Hutchinson's divergence."""
    name = f"ODE, {kind} dequantisation"
    result, evaluations, seconds = flow(config, this, kind, False, 1, None, name)
    return bounds(name, "the ODE", result["log_w"], evaluations, seconds, this)[0]


def weighted_flow_rows(config, this):
    """[Row] of the ODE's K-sample bounds, K = 1, 2, 4, … up to config.eval.ode.samples, with
    normal dequantisation, on the first config.eval.ode.images; and the mean difference that
    half the quadrature's nodes would make, bits/dim.

    By the exact divergence: Hutchinson's noise under the logarithm of the mean would raise it
    above the likelihood, and it would bound nothing.
    """
    ode = config.eval.ode
    images = min(ode.images, config.eval.images or this.data.test.size)
    name = "ODE, normal dequantisation, exact divergence"
    result, evaluations, seconds = flow(config, this, "normal", True, ode.samples, images, name)
    rows = bounds(name, "the ODE", result["log_w"], evaluations, seconds, this)
    return rows, float(elbo.bits_per_dim(result["quadrature"].mean(), this.data.spec.shape))


def flow(config, this, kind, exact, samples, images, name):
    """({"log_w", "quadrature", …: [samples, images]}, evaluations per image, seconds)."""
    ode, model = config.eval.ode, this.model
    start = time.monotonic()

    def log_weight(params, rng, batch, _):
        ends = model.gamma(params, jnp.array([0.0, 1.0]))
        z, gamma_0, nats = likelihood.dequantise(
            kind, rng.keys(randomness.DECODE), batch["image"], ends[0], model.vocab_size
        )
        result = likelihood.flow_log_density(
            lambda *args: model.eps_hat(params, *args),
            z,
            model.told(batch),
            (gamma_0, ends[1]),
            rng.keys(randomness.NOISE),
            ode.nodes,
            ode.tolerance,
            exact,
        )
        return result | {"log_w": result["log_density"] + nats}

    result = passes(log_weight, config, this, samples, name, images)
    likelihood.require_solved(result["steps"], ode.tolerance)
    # A step asks for six evaluations, a node for one and products with its Jacobian.
    products = math.prod(model.shape) if exact else 1
    evaluations = samples * (6.0 * result["steps"].mean() + (ode.nodes + 1) * (1 + products))
    return result, float(evaluations), time.monotonic() - start


# ---- what is written --------------------------------------------------------------------


def write(workdir, heading, text, rows, series, checks, step):
    """Writes eval.md, eval.json and eval_images.csv; returns their names."""
    (workdir / "eval.md").write_text(f"{heading}\n\n{text}")
    more = {name: [row.json() for row in some] for name, some in series.items()}
    if len(rows) > 1:
        more |= {"rows": [row.json() for row in rows]}
    more |= {"checks": checks} if checks else {}
    evaluate.write(workdir / "eval.json", rows[0].estimate, step, more)
    write_images(workdir / "eval_images.csv", rows + series.get("depth", []))
    return ["eval.md", "eval.json", "eval_images.csv"]


def draw(workdir, config, this, rows, profile, strip, series):
    """Writes profile.csv and the pictures; returns their names."""
    spec = this.data.spec
    (continuous,) = (row for row in rows if row.name == elbo_name(0))
    gamma = this.model.gamma(this.state.ema, jnp.asarray(EDGES, jnp.float32))
    columns = profile.summary(
        gamma.reshape(len(EDGES), -1).mean(axis=1),  # the mean of a multivariate one, where the context is 0
        continuous.estimate.mean["prior"] + continuous.estimate.mean.get("context", 0.0),
        spec.shape,
        spec.vocab_size,
    )
    write_columns(workdir / "profile.csv", columns)
    figures.save_density(workdir / "density.png", columns, continuous.estimate)
    figures.save_distortion(workdir / "distortion.png", columns, *strip, spec)
    if "depth" not in series:
        (workdir / "depth.png").unlink(missing_ok=True)  # it is of another evaluation
        return ["profile.csv", "density.png", "distortion.png"]
    *finite, infinite = series["depth"]
    figures.save_depth(
        workdir / "depth.png",
        depth_list(config),
        [row.estimate.mean["bpd"] for row in series["depth"]],
        *zip(*(table.drop_of(row, infinite) for row in finite)),
    )
    return ["profile.csv", "density.png", "distortion.png", "depth.png"]


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
