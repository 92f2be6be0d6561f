"""A custom estimator: the two-sided certificate (bidirectional Monte Carlo: Grosse et al. 2015). For an image
that the model has drawn, its latents are an exact draw of p(z|x). With this draw among K importance weights,
the mean of log (w_1 + … + w_K)/K is at least log p(x); with K fresh draws it is at most log p(x).

python -m vdm.main --workdir=/tmp/digits --mode=eval \\
    --config.eval.estimators=examples.certificate:Certificate --config.eval.certificate.samples=64
"""

import dataclasses
import time

import jax
import jax.numpy as jnp

from vdm.component import accept
from vdm.contract import Ability
from vdm.estimate import combine
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.passes import run_passes
from vdm.evaluation.table import Row, difference


@dataclasses.dataclass(frozen=True)
class Certificate(Estimator):
    timesteps: int = 50  # T, for a model of variable depth
    samples: int = 16  # K
    images: int = 48

    needs = frozenset({Ability.LOG_WEIGHT})

    def check(self) -> None:
        for name in ("timesteps", "samples", "images"):
            accept(name, getattr(self, name) >= 1, "1 or more")

    def measure(self, config, run, done):
        model, began = run.model, time.monotonic()
        model = model if model.depth is None else model.at_depth(self.timesteps)

        def nats(params, rng, batch, _):
            image, exact = model.sample_and_log_weight(params, rng, batch)
            other = lambda k: model.log_weight(
                params, rng._replace(number=rng.number + 1 + k), {**batch, "image": image}
            )
            log_w = jax.lax.map(other, jnp.arange(self.samples))
            mean = lambda log_w: jax.nn.logsumexp(log_w, axis=0) - jnp.log(self.samples)
            return {"upper": -mean(log_w), "lower": -mean(log_w.at[0].set(exact))}

        count = min(self.images, run.data.test.size)
        found = run_passes(nats, config, run, 1, "certificate", count)
        cost = self.samples * (model.depth or 1), time.monotonic() - began
        of = f"{count} samples of the model, K = {self.samples}"

        def row(side):
            bits = combine([(1, {"bpd": found[side][0]})], run.data.spec.shape)
            name = f"{side} bound, {of}"
            return print_row(Row(name, "the model itself", bits, *cost, True, from_below=side == "lower"))

        lower, upper = row("lower"), row("upper")
        apart, se = difference(upper, lower)
        return Result(
            [lower, upper], checks=[f"The two sides of {of} differ by {apart:.4f} ± {se:.4f} bits/dim."]
        )
