"""The estimator "ode": the likelihood of the probability-flow ODE."""

from collections.abc import Sequence
import dataclasses
import time
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm.contract import Ability, bits_per_dim
from vdm.diffusion.dequantisation import start
from vdm.errors import UserError, require
from vdm.evaluation import ode_solver
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.importance_weighted import bound_rows
from vdm.evaluation.passes import run_passes
from vdm.evaluation.table import Row, agreement_line, difference, samples_line
from vdm.reporting.text import fixed
from vdm.run import Run
from vdm.runtime import randomness


@dataclasses.dataclass(frozen=True)
class ODE(Estimator):
    """The likelihood of the probability-flow ODE; config.eval.ode has its fields."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.FLOW})

    def check_config(self, config: ConfigDict) -> None:
        section = config.eval.ode
        for name in ("samples", "images"):
            require(section[name] >= 1, f"config.eval.ode.{name} is {section[name]}; accepted: 1 or more.")
        require(
            section.nodes >= 4 and section.nodes % 4 == 0,
            f"config.eval.ode.nodes is {section.nodes}; accepted: a multiple of 4.",
        )
        require(
            0 < section.tolerance < 1,
            f"config.eval.ode.tolerance is {section.tolerance}; accepted: between 0 and 1, such as 1e-5.",
        )

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        try:
            flows = [flow_row(config, run, kind) for kind in run.model.flow_kinds]
            weighted, quadrature = weighted_flow_rows(config, run)
        except UserError as error:  # so that the other estimators' numbers are not lost
            return Result([], checks=[f"No row of the ODE: {error}"])
        checks = [
            *(gain_line(row, flows[0]) for row in flows[1:]),
            agreement_line("The mean of Hutchinson's divergence is the exact one", flows[-1], weighted[0]),
            samples_line(weighted),
            "In the ODE, each image's steps keep the local error of z within "
            f"{config.eval.ode.tolerance}; half the nodes would change an image by "
            f"{quadrature:.4f} bits/dim on average, which estimates the quadrature's error but does not "
            "bound it.",
        ]
        return Result([*flows, *weighted[:1], *weighted[1:][-1:]], weighted, checks)


def flow_row(config: ConfigDict, run: Run, kind: str) -> Row:
    """The likelihood with one `kind` of dequantisation, from one point for each image, with Hutchinson's
    estimate of the divergence.

    Raises:
      UserError: the ODE of an image was not solved.
    """
    name = _name(kind)
    result, evaluations, seconds = _flow(config, run, kind, False, 1, None, name)
    (row,) = _rows(f"ode_{kind}", kind, name, result, evaluations, seconds, run)
    return row


def weighted_flow_rows(config: ConfigDict, run: Run) -> tuple[list[Row], float]:
    """The bounds with K = 1, 2, 4, … samples up to config.eval.ode.samples, on the first images.

    The dequantisation is the last of Model.flow_kinds. The divergence is exact: Hutchinson's noise in the
    logarithm of a mean would raise the value above the likelihood, so that it would not be a bound.

    Returns:
      The bounds, and the mean difference that half the quadrature's nodes would make, in bits/dim.

    Raises:
      UserError: the ODE of an image was not solved.
    """
    section = config.eval.ode
    images = min(section.images, config.eval.images or run.data.test.size)
    kind = run.model.flow_kinds[-1]
    name = f"{_name(kind)}, exact divergence"
    result, evaluations, seconds = _flow(config, run, kind, True, section.samples, images, name)
    rows = _rows(f"ode_{kind}_exact", kind, name, result, evaluations, seconds, run)
    return rows, float(bits_per_dim(result["quadrature"].mean(), run.data.spec.shape))


def gain_line(row: Row, first: Row) -> str:
    """The difference between two kinds of dequantisation, image by image."""
    mean, se = difference(row, first)
    return f"{row.name} is {mean:+.4f} ± {fixed(se)} bits/dim above {first.name}, image by image."


def _name(kind):
    return "ODE of the latents" if kind == "latent" else f"ODE, {kind} dequantisation"


def _rows(key, kind, name, result, evaluations: float, seconds: float, run: Run) -> list[Row]:
    gamma_0 = jnp.mean(run.model.gamma(run.state.ema, jnp.zeros(())))
    bounds = f"the ODE from γ = {float(start(kind, gamma_0, run.data.spec.vocab_size)):.2f}"
    rows = bound_rows(key, name, bounds, result["log_w"], evaluations, seconds, run.data.spec.shape)
    print_row(rows[-1])
    return rows


def _flow(
    config: ConfigDict, run: Run, kind: str, exact: bool, samples: int, images: int | None, name: str
) -> tuple[dict[str, Float[np.ndarray, "samples images"]], float, float]:
    """Solves the ODE of each image, from `samples` points of its cell.

    Returns:
      The results of flow_log_density with the log weights "log_w"; evaluations per image; seconds.

    Raises:
      UserError: the ODE of an image was not solved.
    """
    section, model = config.eval.ode, run.model
    began = time.monotonic()

    def log_weight(params, rng, batch, _):
        flow = model.flow(params, rng, batch, kind)
        result = ode_solver.flow_log_density(
            flow.eps_hat,
            flow.z,
            flow.given,
            flow.ends,
            rng.keys(randomness.NOISE),
            section.nodes,
            section.tolerance,
            exact,
            flow.curve,
        )
        size = jnp.full(len(flow.z), flow.z[0].size, jnp.float32)
        return result | {"log_w": result["log_density"] + flow.nats, "size": size}

    result = run_passes(log_weight, config, run, samples, name, images)
    require_solved(result["steps"], section.tolerance)
    # A step needs six evaluations; a node needs one, and products with the Jacobian.
    products = result["size"].mean() if exact else 1
    evaluations = samples * (6.0 * result["steps"].mean() + (section.nodes + 1) * (1 + products))
    return result, float(evaluations), time.monotonic() - began


def require_solved(steps: np.ndarray, tolerance: float) -> None:
    """Raises UserError if the ODE of an image was not solved within ode_solver.MAX_STEPS."""
    require(
        np.max(steps) < ode_solver.MAX_STEPS,
        f"the ODE of an image was not solved in {ode_solver.MAX_STEPS} steps; config.eval.ode.tolerance"
        f" is {tolerance}: set a larger value.",
    )
