"""The likelihood of an external diffusion model, by every estimator of this project, in one table.

  from vdm import likelihood

  report = likelihood.judge(eps_hat, gamma, images)   # eps_hat(z, γ, labels), γ(t), uint8 images
  print(report)

docs/guide/trust.md has the conventions, examples, and the mistakes that a report detects.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from vdm import config as config_lib
from vdm.component import Refused
from vdm.contract import bits_per_dim
from vdm.data import dataset
from vdm.diffusion import process
from vdm.diffusion.dequantisation import normal_entropy
from vdm.errors import UserError, require
from vdm.estimate import Estimate
from vdm.evaluation import audit, estimator as estimators_lib
from vdm.evaluation.audit import Images
from vdm.evaluation.table import Row, tables
from vdm.methods.external_denoiser import Curve, Denoiser, External, Scaling, on_host
from vdm.reporting.text import estimate_table
from vdm.run import Run
from vdm.runtime import devices

__all__ = ["Report", "Table", "cascade", "judge", "on_host", "table_of_alphas", "table_of_betas"]


ROUNDED = 0.01  # tolerance, in steps of a Table, within which γ counts as one of its values


class _State(NamedTuple):
    """Takes the place of step.State."""

    ema: Any
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of `judge`, which print as tables and checks.

    Attributes:
      rows: the rows of the table, the model's own ELBO first; `rows[i].estimate` has the bits/dim of each
        image and term.
      depth: the ELBO at each T.
      checks: lines that say whether the numbers are consistent; a line about an inconsistency contains NO.
      shape: the shape of an image.
      vocab_size: the number of levels.
      entropy: the entropy of the noise of normal dequantisation in the units of the denoiser, bits/dim; None
        for a cascade.
      stage: the number of the stage in a cascade.
    """

    rows: Sequence[Row]
    depth: Sequence[Row]
    checks: Sequence[str]
    shape: tuple[int, int, int]
    vocab_size: int
    entropy: float | None = None
    stage: int = 0

    def __str__(self) -> str:
        series = {"depth": list(self.depth)} if self.depth else {}
        terms = estimate_table(self.rows[0].estimate)
        return f"{terms}\n\n{tables(list(self.rows), series, list(self.checks))}"

    def row(self, name: str) -> Row:
        """The row with this id, or whose name begins with `name`.

        Raises:
          UserError: there is no such row.
        """
        every = [*self.rows, *self.depth]
        found = [row for row in every if row.key == name or row.name.startswith(name)]
        names = ", ".join(repr(row.name) for row in every)
        require(found, f"there is no row {name!r}; accepted: the start of one of {names}.")
        return found[0]

    def claim(self, name: str, bits_per_dim: Float[np.ndarray, "images"], of: str = "") -> str:
        """A line that states whether an external number agrees with a row, or the mistake that explains the
        difference.

        Args:
          name: the name of the external number.
          bits_per_dim: the external number for each image, in the order of the images.
          of: the start of the row's name; the first row by default.

        Raises:
          UserError: the number of images differs from the row's, or there is no such row.
        """
        claim, row = np.asarray(bits_per_dim, np.float64), self.row(of)
        count = row.estimate.images
        require(claim.shape == (count,), f"the claim has shape {claim.shape}; accepted: ({count},).")
        ours = row.estimate.values
        return audit.claim_line(name, claim, row.name, ours, self.shape, self.vocab_size, self.entropy)


@dataclasses.dataclass(frozen=True)
class Table:
    """The schedule of a model in discrete time: γ at its times, linearly interpolated.

    Attributes:
      values: γ, increasing.
    """

    values: tuple[float, ...]

    @property
    def timesteps(self) -> int:
        """T of the chain with these times: one less than their number."""
        return len(self.values) - 1

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        places = jnp.arange(len(self.values), dtype=jnp.float32)
        return jnp.interp(t * self.timesteps, places, jnp.asarray(self.values, jnp.float32))

    def index(self, gamma: Float[Array, "*any"]) -> Float[Array, "*any"]:
        """The position of γ in the table, 0 … T. For a γ of the table it is an integer, even if γ was
        rounded, so that a network that truncates the position gets the right step."""
        places = jnp.arange(len(self.values), dtype=jnp.float32)
        found = jnp.interp(gamma, jnp.asarray(self.values, jnp.float32), places)
        whole = jnp.round(found)
        return jnp.where(jnp.abs(found - whole) < ROUNDED, whole, found)


def table_of_alphas(alphas_cumprod: Float[np.ndarray, "T"]) -> Table:
    """The Table of a decreasing ᾱ: z = ᾱ^½ x + (1 − ᾱ)^½ ε (Ho et al. 2020, eq. 4).

    Raises:
      UserError: ᾱ does not decrease, or is not between 0 and 1.
    """
    found = np.asarray(alphas_cumprod, np.float64)
    inside = found.ndim == 1 and len(found) > 1 and np.all((found > 0) & (found < 1))
    require(
        inside and np.all(np.diff(found) < 0),
        "ᾱ must be a decreasing list of numbers between 0 and 1; was β, or α of each step, given instead?",
    )
    return Table(tuple(np.log1p(-found) - np.log(found)))


def table_of_betas(betas: Float[np.ndarray, "T"]) -> Table:
    """The Table of β, the variance that each step adds: ᾱ is the cumulative product of 1 − β.

    Raises:
      UserError: β is not between 0 and 1.
    """
    found = np.asarray(betas, np.float64)
    require(found.ndim == 1 and np.all((found > 0) & (found < 1)), "β must be numbers between 0 and 1.")
    return table_of_alphas(np.cumprod(1.0 - found))


def judge(
    denoiser: Denoiser,
    schedule: Callable[[Array], Array] | Table,
    images: Images,
    *,
    predicts: str = "eps",
    levels: int = 256,
    data_range: tuple[float, float] | None = None,
    labels: Int[np.ndarray, "images"] | None = None,
    timesteps: int | None = None,
    train_images: Images | None = None,
    estimators: str = "depth,chain,ode",
    stage: int = 0,
    **fields: Any,
) -> Report:
    """Evaluates a diffusion model by all estimators, with z = α x + σ ε, α² = sigmoid(−γ), σ² = sigmoid(γ).

    Args:
      denoiser: (z [batch, height, width, channels], γ [batch], labels [batch] or None) → ε̂, x̂ or v̂, in the
        shape of z; in JAX, or in any framework by `on_host`.
      schedule: γ(t) for t from 0 (data) to 1 (noise), increasing, in JAX; or a Table.
      images: uint8 images whose likelihood is estimated.
      predicts: "eps", "x" or "v" = α ε − σ x.
      levels: V; the images have values 0 … V − 1.
      data_range: the values of levels 0 and V − 1 in the units of the denoiser's x, such as (−1, 1) for DDPM.
        By default (−1 + 1/V, 1 − 1/V), as in this project.
      labels: one for each image; the bound is then on −log p(x|label).
      timesteps: T of the model, 0 for T → ∞. By default the T of a Table, and otherwise 0.
      train_images: training images, to search for copies of the test images.
      estimators: estimators besides the ELBO, separated by commas (docs/guide/trust.md).
      stage: the number of the stage in a cascade, 0, 1, …, so that stages have independent noise.
      **fields: fields of config.eval, such as passes=50, batch_size=64, depths="10,100", chain__samples=8.

    Raises:
      UserError: an argument is not accepted.
    """
    images = np.asarray(images)
    require(
        images.dtype == np.uint8 and images.ndim == 4 and len(images) > 1,
        f"the images are {images.dtype} {images.shape}; accepted: uint8 [images, height, width, channels].",
    )
    require(
        2 <= levels <= 256 and images.max() < levels,
        f"levels is {levels}, and an image has {images.max()}; accepted: 2 to 256, more than any value.",
    )
    if labels is not None:
        labels = np.asarray(labels, np.int32)
        wrong = f"labels have shape {labels.shape}; accepted: ({len(images)},)."
        require(labels.shape == (len(images),), wrong)
    own = schedule.timesteps if isinstance(schedule, Table) else 0
    scaling = Scaling() if data_range is None else Scaling.of_range(*data_range, levels)
    spec = dataset.Spec(images.shape[1:], levels, 0 if labels is None else int(np.max(labels)) + 1)
    no_net: Any = None
    model = External(
        schedule=Curve.of(spec.shape, lambda t: scaling.ours(schedule(t))),
        net=no_net,
        shape=spec.shape,
        vocab_size=levels,
        classes=spec.classes,
        timesteps=own if timesteps is None else timesteps,
        denoise=denoiser,
        predicts=predicts,
        scaling=scaling,
        labelled=labels is not None,
    )
    try:
        model.check()
    except Refused as refused:
        raise UserError(f"{refused.field} is {predicts!r}; accepted: {refused.accepted}.") from None
    split = dataset.in_memory(images, labels)
    config = _config(estimators, len(images), **fields)
    config.seed = stage
    state: Any = _State({"schedule": {}, "net": {}})
    run = Run(dataset.Data(split, split, spec), model, state)
    estimators_lib.check(config)
    measured = estimators_lib.measure(config, run, estimators_lib.choose(config, model))
    continuous = next(row for row in measured.rows if row.depth == 0)
    checks = [
        *measured.checks,
        audit.slope_line(model, run.state.ema),
        audit.scale_line(config, run, continuous.estimate.mean["bpd"]),
        audit.twice_line(images, train_images),
    ]
    if any(row.name.startswith("ODE") for row in measured.rows):
        batch = split.read(np.arange(min(len(images), 32)))
        checks.insert(-1, audit.derivative_line(model, run.state.ema, batch, levels))
    gamma_0 = float(model.gamma(run.state.ema, jnp.zeros(())))
    # The noise of z in the units of the denoiser, whose data are a x + b.
    _, theirs = scaling.theirs(jnp.zeros(()), jnp.float32(gamma_0))
    wider = math.log(float(process.sigma(theirs)) / float(process.sigma(jnp.float32(gamma_0))))
    entropy = float(bits_per_dim(normal_entropy(gamma_0, levels) + wider, (1,)))
    series = measured.series.get("depth", [])
    return Report(measured.rows, series, checks, spec.shape, levels, entropy, stage)


def cascade(stages: Mapping[str, Report]) -> Report:
    """Adds up the ELBOs of the stages of a multi-scale model: of the coarse scale, then of each finer scale
    given the coarser one. Bits of all stages are counted per value of the last stage, which is the image.

    Args:
      stages: {name: report} of the stages, all of the same images; the terms of the sum have these names.

    Raises:
      UserError: the stages have different numbers of images, or share their noise.
    """
    reports = list(stages.values())
    numbers = [report.stage for report in reports]
    require(
        len(set(numbers)) == len(numbers),
        f"the stages are numbered {numbers}, and those of the same number share their noise; judge each "
        "stage with its own number, judge(…, stage=1).",
    )
    counts = sorted({report.rows[0].estimate.images for report in reports})
    require(len(counts) == 1, f"the stages have {counts} images; accepted: the same number in each.")
    whole = math.prod(reports[-1].shape)
    share = {name: math.prod(report.shape) / whole for name, report in stages.items()}
    found = {name: report.rows[0].estimate for name, report in stages.items()}
    values = {name: share[name] * estimate.values["bpd"] for name, estimate in found.items()}
    noise = {name: share[name] * estimate.noise["bpd"] for name, estimate in found.items()}
    total = {"bpd": np.sum(list(values.values()), axis=0)}
    all_noise = {"bpd": math.sqrt(sum(one**2 for one in noise.values())), **noise}
    estimate = Estimate(total | values, all_noise, min(one.passes for one in found.values()))
    evaluations, seconds = (
        sum(getattr(report.rows[0], name) for report in reports) for name in ("evaluations", "seconds")
    )
    row = Row("ELBO of all stages", "the cascade", estimate, evaluations, seconds, id="elbo_stages")
    checks = [f"{name}: {line}" for name, report in stages.items() for line in report.checks]
    return Report([row], [], checks, reports[-1].shape, reports[-1].vocab_size)


def _config(chosen: str, images: int, **fields: Any) -> Any:
    """The config that the estimators read."""
    config = config_lib.complete({})
    few = {"batch_size": devices.multiple(120), "estimators": chosen, "ode__images": min(48, images)}
    given = {name.replace("__", "."): value for name, value in (few | fields).items()}
    flat = config_lib.flat(config.eval)
    for name, value in given.items():
        require(name in flat, f"{name} is not a field of config.eval; accepted: {', '.join(flat)}.")
        section, _, field = name.rpartition(".")
        (config.eval[section] if section else config.eval)[field] = value
    return config
