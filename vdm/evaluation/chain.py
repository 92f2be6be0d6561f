"""The estimator "chain": bounds by importance weights on the model's latents, or on the path of its chain."""

from collections.abc import Sequence
import dataclasses
import time
from typing import ClassVar

from ml_collections import ConfigDict

from vdm.contract import Ability
from vdm.errors import require
from vdm.evaluation.depth import depth_row
from vdm.evaluation.elbo import OWN, chain_name
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.importance import bound_rows
from vdm.evaluation.passes import run_passes
from vdm.evaluation.table import Row, agreement_line, samples_line
from vdm.run import Run


@dataclasses.dataclass(frozen=True)
class Chain(Estimator):
    """Bounds by importance weights; config.eval.chain."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.LOG_WEIGHT})

    def check_config(self, config: ConfigDict) -> None:
        for name, value in config.eval.chain.items():
            require(value >= 1, f"config.eval.chain.{name} is {value}; accepted: 1 or more.")

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        """The bounds with K = 1, 2, 4, … samples, up to config.eval.chain.samples.

        A model of any depth is taken as a chain of config.eval.chain.timesteps steps, and its ELBO is that
        chain's; any other model has latents of its own.
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
        weighted = bound_rows(name, bounds, log_w, evaluations, seconds, run.data.spec.shape)
        print_row(weighted[-1])
        checks = [
            agreement_line("Paths have the ELBO for their mean", weighted[0], elbo),
            samples_line(weighted),
        ]
        return Result([elbo, weighted[-1]], weighted, checks)
