"""Importance weights and the ODE where each value has its own γ, with and without a context."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from vdm.contract import Ability
from vdm.diffusion.schedule import Schedule
from vdm.evaluation import elbo, ode
from vdm.evaluation.importance_weighted import Chain
from vdm.methods.multivariate import MuLAN, Multivariate
from vdm.run import Run

pytestmark = pytest.mark.usefixtures("single")

SHAPE, LEVELS, ENDS = (2, 2, 1), 4, (-9.0, 8.0)
LOG_P = exact.log_probabilities(SHAPE, LEVELS)
IMAGES, TRUTH = exact.images(LOG_P, 128)


class Bent(Schedule):
    """γ_i(t) rises with a different power of t for each value."""

    per_value = True
    spread: float = 1.5

    def __call__(self, t):
        power = 1.0 + self.spread * jnp.arange(math.prod(self.shape)).reshape(self.shape) / 3.0
        t = t.reshape(*t.shape, 1, 1, 1)
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t**power


def run_of(schedule, context=0):
    model = exact.model(LOG_P, *ENDS, schedule=schedule)
    params = {"schedule": {}, "net": {}}
    if context:
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        model = MuLAN(**fields, context=context)
        params["context"] = model.posterior.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
        params["schedule"] = bent(
            model.schedule.init(jax.random.key(1), jnp.zeros(1), jnp.zeros((1, context)))
        )
    return Run(exact.split(IMAGES, LEVELS), model, types.SimpleNamespace(step=0, ema=params))


def bent(params):
    """Parameters with which the schedule depends on the context and is not a straight line."""
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(2)
    return tree.unflatten(
        [value + 3.0 * random.normal(size=value.shape).astype(np.float32) for value in leaves]
    )


def config(**changes):
    return exact.config(
        passes=40, chain__timesteps=12, chain__samples=8, ode__samples=4, ode__images=64, ode__nodes=64,
        ode__tolerance=1e-6, **changes,
    )  # fmt: skip


def gap(row, truth=TRUTH):
    """Mean excess of an estimate over the truth, with its standard error over images."""
    above = row.estimate.values["bpd"] - truth[: row.estimate.images]
    return above.mean(), above.std(ddof=1) / math.sqrt(len(above))


@pytest.mark.slow
def test_all_are_the_likelihood_where_the_denoiser_is_optimal():
    """Each value's integral over its own γ is then the same however γ rises, and so are ELBO and ODE. The
    chain of few steps is another model, and the mean over its paths is its ELBO."""
    run = run_of(Bent)
    assert Ability.ONE_GAMMA not in run.model.abilities
    few = config()
    continuous, _ = elbo.elbo_row(few, run, run.model)
    mean, se = gap(continuous)
    assert abs(mean) < 3.5 * se < 0.3
    chain = Chain().measure(few, run, [continuous])
    assert "yes" in chain.checks[0], chain.checks
    gaps = [gap(row) for row in chain.series]
    assert [mean for mean, _ in gaps] == sorted((mean for mean, _ in gaps), reverse=True)
    assert all(mean > 3.0 * se for mean, se in gaps) and gaps[-1][0] < 0.4 * gaps[0][0]

    flow = ode.ODE().measure(few, run, [continuous])
    assert [row.name.split(",")[1] for row in flow.rows] == [" normal dequantisation"] * 3
    assert flow.rows[0].bounds == "the ODE from γ = -9.00"
    for row in flow.rows:
        mean, se = gap(row)
        assert abs(mean) < 3.5 * se + 1e-3 and se < 5e-3, row.name
    assert "yes" in flow.checks[0]


@pytest.mark.slow
def test_a_context_costs_its_weight():
    """E[log p(c)/q(c|x)] is −KL, in nats. It vanishes with more draws, as the weights have the mean 1."""
    run = run_of(Multivariate, context=2)
    gammas = [run.model.gamma(run.state.ema, jnp.full(1, 0.5), jnp.full((1, 2), c)) for c in (-1.0, 1.0)]
    assert np.ptp(gammas[0]) > 0.5 and np.abs(gammas[0] - gammas[1]).max() > 0.5
    few = config()
    x = (2.0 * IMAGES + 1.0) / LEVELS - 1.0
    q = run.model.q(run.state.ema, jnp.asarray(x, jnp.float32))
    mean, log_variance = (np.asarray(part, np.float64) for part in q)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1.0 - log_variance).sum(axis=1) / (4 * math.log(2.0))
    assert kl.mean() > 0.02

    weighted, _ = ode.weighted_flow_rows(few, run)
    off, se = gap(weighted[0], TRUTH + kl)
    assert abs(off) < 3.5 * se < 0.8 * kl.mean()  # so a missing KL would show
    off, se = gap(weighted[-1])
    assert -3.5 * se < off < 0.6 * kl.mean()
    continuous, _ = elbo.elbo_row(few, run, run.model)
    chain = Chain().measure(few, run, [continuous])
    assert "yes" in chain.checks[0], chain.checks


@pytest.mark.slow
def test_one_gamma_for_each_value_is_one_gamma_for_all():
    """For the path, drawn from the same keys, and for the flow, solved along t instead of γ."""
    rows = {}
    for name, schedule in {"all": exact.FixedLinear, "each": functools.partial(Bent, spread=0.0)}.items():
        run, few = run_of(schedule), config()
        continuous, _ = elbo.elbo_row(few, run, run.model)
        rows[name] = [
            Chain().measure(few, run, [continuous]).series[0],
            ode.flow_row(few, run, "normal"),
        ]
    for one, other in zip(rows["all"], rows["each"]):
        np.testing.assert_allclose(
            one.estimate.values["bpd"], other.estimate.values["bpd"], rtol=2e-3, atol=2e-3, err_msg=one.name
        )
