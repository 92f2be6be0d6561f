"""The estimator "chain": importance-weighted bounds on log p(x), over a model's latents or the path of its
chain.

A draw gives, for an image x, the log weight log w = log p(x, z)/q(z|x) of a random z ~ q(z|x). As
E[w] = p(x), the mean of log w is at most log p(x). The mean of log (w_1 + … + w_K)/K is at most log p(x),
too, and rises towards it with K (Burda et al. 2016).
"""

from collections.abc import Sequence
import dataclasses
import time
from typing import ClassVar

from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm.contract import Ability
from vdm.errors import require
from vdm.estimate import combine
from vdm.evaluation.depth import depth_row
from vdm.evaluation.elbo import OWN, chain_name
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.passes import run_passes
from vdm.evaluation.table import Row, agreement_line, samples_line
from vdm.run import Run


def importance_bound(
    log_weights: Float[np.ndarray, "draws ..."], samples: int
) -> Float[np.ndarray, "groups ..."]:
    """log (w_1 + … + w_K)/K of each group of K = `samples` draws, float64.

    The last draws are dropped if they do not fill a group.
    """
    log_weights = np.asarray(log_weights, np.float64)
    groups = log_weights[: len(log_weights) // samples * samples]
    groups = groups.reshape(-1, samples, *log_weights.shape[1:])
    top = groups.max(axis=1)
    return top + np.log(np.mean(np.exp(groups - top[:, None]), axis=1))


def bound_rows(
    key: str,
    name: str,
    bounds: str,
    log_weights: Float[np.ndarray, "draws images"],
    evaluations: float,
    seconds: float,
    shape: tuple[int, ...],
) -> list[Row]:
    """The bounds with K = 1, 2, 4, … samples, and with all.

    Args:
      key, name: names of the estimator for Row.id and Row.name.
      bounds: name of the model whose negative log-likelihood the rows bound from above.
      log_weights: in nats.
      evaluations: number of network evaluations per image over all draws.
      seconds: duration of all draws.
      shape: shape of an image.
    """
    total = len(log_weights)
    rows = []
    for k in sorted({*(2**i for i in range(total.bit_length())), total}):
        groups = -importance_bound(log_weights, k)
        estimate = combine([(1, {"bpd": group}) for group in groups], shape)
        estimate = dataclasses.replace(estimate, passes=len(groups) * k)
        rows.append(Row(f"{name}, K = {k}", bounds, estimate, evaluations, seconds, id=f"{key}_K{k}"))
    return rows


@dataclasses.dataclass(frozen=True)
class Chain(Estimator):
    """Importance-weighted bounds; config.eval.chain has its fields."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.LOG_WEIGHT})

    def check_config(self, config: ConfigDict) -> None:
        for name, value in config.eval.chain.items():
            require(value >= 1, f"config.eval.chain.{name} is {value}; accepted: 1 or more.")

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        """The bounds with K = 1, 2, 4, … samples, up to config.eval.chain.samples.

        A model of variable depth is evaluated as a chain of config.eval.chain.timesteps steps, and compared
        with the ELBO of that chain. For any other model, the weights are those of its latents.
        """
        steps, samples = config.eval.chain.timesteps, config.eval.chain.samples
        if run.model.depth is not None:
            model, elbo = run.model.at_depth(steps), depth_row(config, run, steps, done)
            name, bounds, evaluations = (
                f"importance-weighted, T = {steps}",
                chain_name(steps),
                samples * steps,
            )
        else:
            model, elbo = run.model, done[0]
            name, bounds, evaluations = "importance-weighted", OWN, samples
        start = time.monotonic()

        def log_weight(params, rng, batch, _):
            return {"log_w": model.log_weight(params, rng, batch)}

        log_w = run_passes(log_weight, config, run, samples, name)["log_w"]
        seconds = time.monotonic() - start
        key = "importance_weighted" + (f"_T{steps}" if run.model.depth is not None else "")
        weighted = bound_rows(key, name, bounds, log_w, evaluations, seconds, run.data.spec.shape)
        print_row(weighted[-1])
        checks = [
            agreement_line("The mean over paths is the ELBO", weighted[0], elbo),
            samples_line(weighted),
        ]
        return Result([elbo, weighted[-1]], weighted, checks)
