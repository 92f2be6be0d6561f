"""Times: no density of times changes an average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config
from diffusion_helpers import rng, small
from vdm import objective, optimizer as optimizer_lib, step
from vdm.diffusion import times
from vdm.evaluation.profile import UNIFORM
from vdm.runtime import devices, randomness
from vdm.runtime.randomness import Rng


def test_stratified_times_cover_each_stratum_once():
    t, weight = times.Stratified().draw(rng(size=16), None)
    assert sorted(np.floor(np.asarray(t) * 16).astype(int)) == list(range(16)) and weight == 1.0


def test_independent_times_are_those_of_each_key():
    t, weight = times.IID().draw(rng(size=16), None)
    u = [jax.random.uniform(key) for key in rng(size=16).keys(randomness.TIME)]
    np.testing.assert_array_equal(t, u)
    assert weight == 1.0


def test_warped_times_leave_every_average():
    """E_u[f(t)/q(t)] = ∫ f for any distribution; the times still reach from 0 to 1."""
    rng = np.random.default_rng(0)
    share = rng.gamma(0.3, size=10) + 0.02
    cdf = jnp.asarray(np.concatenate([[0.0], np.cumsum(share) / share.sum()]), jnp.float32)
    u = (jnp.arange(200_000) + 0.5) / 200_000
    t, weight = times.warp(u, cdf)
    assert np.all(np.diff(np.asarray(t)) >= 0) and 0 <= t[0] < 1e-4 and 1 - 1e-4 < t[-1] <= 1
    np.testing.assert_allclose(np.mean(np.cos(3.0 * t) * weight), np.sin(3.0) / 3.0, atol=1e-4)
    identity, ones = times.warp(u, jnp.asarray(UNIFORM))
    np.testing.assert_allclose(identity, u, atol=1e-6)
    np.testing.assert_allclose(ones, 1.0, rtol=1e-5)


def moments_of(made, params, batch, steps=50):
    """The running moments after some training steps with fixed parameters."""

    def once(moments, number):
        draw = made.draw(params, rng(number), batch, times=lambda rng: made.times.draw(rng, moments))
        d = draw.denoising
        new = made.times.observe(d.t, draw.terms["diffusion"] / d.time_weight)
        return made.times.remember(moments, new), None

    return jax.jit(lambda: jax.lax.scan(once, made.times.init(), jnp.arange(steps))[0])()


def test_importance_keeps_the_mean_and_lowers_the_noise():
    """For the diffusion term, over many draws of the times and noise of a batch."""
    made, params, batch = small(**{"model.times": "importance", "model.schedule.name": "linear_beta"})
    cdf = times.cdf(moments_of(made, params, batch))
    assert np.diff(cdf).max() > 3.0 / times.PARTS
    found = {}
    for name, given in dict(importance=times.distributed(cdf), stratified=None).items():
        one = lambda n, given: made.draw(params, rng(n), batch, times=given).terms["diffusion"].mean()
        numbers = jnp.arange(1_000, 1_300)
        values = np.asarray(jax.jit(lambda: jax.lax.map(lambda n: one(n, given), numbers))(), np.float64)
        found[name] = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    (mean, noise), (want, wide) = found["importance"], found["stratified"]
    assert abs(mean - want) < 4 * np.hypot(noise, wide)
    assert noise < 0.7 * wide


def test_moments_are_sums_by_part():
    draw = np.random.default_rng(0)
    t, loss = draw.uniform(size=500).astype(np.float32), draw.gamma(2.0, size=500).astype(np.float32)
    edges = np.linspace(0, 1, times.PARTS + 1)
    want = [np.histogram(t, edges, weights=loss**power)[0] for power in range(3)]
    np.testing.assert_allclose(times.moments(t, loss), want, rtol=1e-4)


def test_before_the_first_draw_times_are_uniform():
    np.testing.assert_allclose(times.cdf(jnp.zeros((3, times.PARTS))), UNIFORM, atol=1e-6)


def test_a_step_remembers_its_own_draws():
    """A training step returns the moments of its own draws beside the parameters."""
    changes = {"model.times": "importance", "model.net.dropout": 0.0}
    made, params, batch = small(**changes)
    config = make_config()
    optimizer = optimizer_lib.build(config.optimizer, 10, made.roles(params))
    minimised = objective.build(config.objective, made)
    state = step.make_init(made, minimised, optimizer, 0, batch)()
    one_step = step.make_step(made, minimised, optimizer, config, (4, 4, 1))
    mapped = jax.pmap(
        one_step,
        axis_name=devices.AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.devices()[:1],
    )
    data = {"root": randomness.root(config.seed)}
    after, _ = mapped(state, data, {name: values[None, None] for name, values in batch.items()})
    assert float(after.moments[0].sum()) == 64.0
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), 0)
    draws = Rng(root, jnp.arange(64), 64)

    @jax.jit
    def moments():
        uniform = times.distributed(jnp.asarray(UNIFORM))
        draw = made.draw(state.params, draws, batch, train=True, times=uniform)
        return times.moments(draw.denoising.t, draw.terms["diffusion"])

    np.testing.assert_allclose(after.moments, moments(), rtol=1e-3)


def test_importance_is_unbiased_at_any_moment_of_training():
    """The mean of f(t)/q(t) over a fine grid of strata is ∫ f, in float64: before the first step, after one
    and after many; also if losses are zero, rare and large, or nonzero only at early times."""
    made, random, size = times.Importance(), np.random.default_rng(0), 32
    losses = {
        "as of an ELBO": lambda t: random.gamma(0.5, size=size) * np.exp(6.0 * t),
        "zero": np.zeros_like,
        "rare and large": lambda t: 1e6 * (random.uniform(size=size) < 0.02),
        "early alone": lambda t: np.where(t < 0.03, random.normal(size=size) ** 2, 0.0),
    }
    functions = {
        np.cos: np.sin(1.0),
        np.square: 1.0 / 3.0,
        lambda t: np.exp(3.0 * t): (np.exp(3.0) - 1.0) / 3.0,
    }
    fine = jax.jit(lambda state: made.draw(rng(size=100_000), state))
    draw = jax.jit(lambda number, state: made.draw(rng(number, size), state))
    for loss in losses.values():
        state = made.init()
        for number in range(201):
            if number in (0, 1, 7, 200):
                t, weight = (np.asarray(value, np.float64) for value in fine(state))
                assert t.min() >= 0.0 and t.max() <= 1.0 and weight.max() < 34.0
                for f, integral in functions.items():
                    assert np.mean(f(t) * weight) == pytest.approx(integral, rel=2e-4)
            t, _ = draw(number, state)
            state = made.remember(state, made.observe(t, jnp.float32(loss(np.asarray(t)))))


def test_times_are_in_proportion_to_the_deviation_of_their_part():
    """Neyman's allocation in float64, for parts of equal counts whose means and deviations are unrelated;
    mixed with a uniform share, 1/10 by default."""
    random = np.random.default_rng(2)
    count = np.full(times.PARTS, 1e6)
    mean, deviation = random.uniform(1.0, 9.0, times.PARTS), random.uniform(0.1, 2.0, times.PARTS)
    moments = np.stack([count, count * mean, count * (mean**2 + deviation**2)])
    for given, uniform in (({}, 0.1), ({"uniform": 0.03}, 0.03)):
        found = np.diff(np.asarray(times.cdf(jnp.float32(moments), **given), np.float64))
        want = (1.0 - uniform) * deviation / deviation.sum() + uniform / times.PARTS
        np.testing.assert_allclose(found, want, rtol=5e-3)


def test_what_was_measured_fades_with_the_steps():
    """After 30 steps with the same moments, the state is their sum weighted by 0.995^k."""
    made, moments = times.Importance(), times.moments(jnp.array([0.1, 0.9]), jnp.array([1.0, 3.0]))
    state = made.init()
    for _ in range(30):
        state = made.remember(state, moments)
    np.testing.assert_allclose(state, moments * (1 - 0.995**30) / 0.005, rtol=1e-4)
