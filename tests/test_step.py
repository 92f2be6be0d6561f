"""The training step: the average of the parameters, and several steps in one call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import TINY_FIELDS, make_config
from vdm import run as run_lib, sample, step as step_lib
from vdm.runtime import randomness
from vdm.runtime.devices import AXIS

LARGEST = 0.3  # largest decay of the average: (1 + n)/(10 + n) exceeds it from n = 3 on
DATA = {"root": randomness.root(0)}


def made(seed=0):
    """The config and the Parts of a tiny run, and the jitted training step."""
    # Not "categorical", whose large logits round differently when XLA fuses other operations.
    changes = {
        "optimizer.warmup": 0,
        "train.ema": LARGEST,
        "model.parameterisation.name": "eps",
        "seed": seed,
    }
    config = make_config(TINY_FIELDS | changes, "configs/digits.py")
    parts = run_lib.build(config)
    step = step_lib.make_step(parts.model, parts.objective, parts.optimizer, config, parts.data.spec.shape)
    mapped = jax.vmap(step, in_axes=(None, None, 0), axis_name=AXIS)
    return config, parts, jax.jit(lambda *args: jax.tree.map(lambda v: v[0], mapped(*args)))


@pytest.fixture(scope="module")
def built(single):
    """The Parts of a tiny run, and (state, data, batch) → (state, metrics)."""
    return made()[1:]


def batch_of(parts, steps, size=16):
    """Successive batches, one for each of `steps` steps."""
    chosen = parts.data.train.read(np.arange(steps * size))
    return {
        name: jnp.asarray(chosen[name]).reshape(1, steps, size, *chosen[name].shape[1:])
        for name in ("image", "label")
    }


def float64(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_the_average_is_its_recursion(built):
    """e ← d e + (1 − d) p with d = min(largest, (1 + n)/(10 + n)) after n steps, from n = 0."""
    parts, step = built
    state = parts.init()
    expected, batches = float64(state.params), batch_of(parts, 6)
    for n in range(6):
        state, _ = step(state, DATA, jax.tree.map(lambda v: v[:, n : n + 1], batches))
        keep = min(LARGEST, (1 + n) / (10 + n))
        expected = [keep * e + (1 - keep) * p for e, p in zip(expected, float64(state.params))]
        for found, wanted in zip(float64(state.ema), expected):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    moved = [np.abs(e - p).max() for e, p in zip(float64(state.ema), float64(state.params))]
    assert max(moved) > 1e-4, "the average is not the parameters"
    assert int(state.step) == 6


def weights(steps, largest):
    """The weights in the average: of the parameters after each step, and of the initial parameters."""
    keep = np.asarray([float(step_lib.ema_decay(jnp.asarray(n), largest)) for n in range(steps)])
    after = np.append(np.cumprod(keep[::-1])[::-1][1:], 1.0)
    return (1 - keep) * after, np.prod(keep)


def test_the_average_is_of_the_last_tenth():
    """Below the largest decay, a step's weight grows with the eighth power of its number, so that the last
    tenth has 1 − 0.9⁹ = 61% of the weight. At the largest decay, the average is an ordinary EMA."""
    of_step, of_start = weights(1_000, 0.99999)
    assert of_step.sum() + of_start == pytest.approx(1.0, abs=1e-5) and of_start < 1e-15
    assert of_step[-100:].sum() == pytest.approx(1 - 0.9**9, abs=0.01)
    slope = np.log(of_step[800] / of_step[400]) / np.log(806 / 406)
    assert slope == pytest.approx(8.0, abs=0.1)
    of_step, _ = weights(1_000, 0.9)
    np.testing.assert_allclose(of_step[-50:], 0.1 * 0.9 ** np.arange(50)[::-1], rtol=1e-4)


@pytest.mark.slow
def test_steps_in_one_call_are_the_steps_one_by_one(built):
    """Each step has the same metrics, and the state is the same: noise depends only on the step."""
    parts, step = built
    batches = batch_of(parts, 3)
    together, metrics = step(parts.init(), DATA, batches)
    state, apart = parts.init(), []
    for n in range(3):
        state, one = step(state, DATA, jax.tree.map(lambda v: v[:, n : n + 1], batches))
        apart.append(one)
    for name, values in metrics.items():
        np.testing.assert_allclose(values, [one[name][0] for one in apart], rtol=1e-4)
    for found, wanted in zip(float64(together.params), float64(state.params)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert set(metrics) == {"reconstruction", "prior", "diffusion", "loss", "draw_sd", "grad_norm"}


def test_noise_depends_on_the_step_alone(built):
    """The same parameters and images get the same noise at the same step, and other noise at another."""
    parts, step = built
    state, batch = parts.init(), batch_of(parts, 1)
    losses = [float(step(state._replace(step=jnp.int32(n)), DATA, batch)[1]["loss"][0]) for n in (0, 0, 7)]
    assert losses[0] == losses[1] != losses[2]


def test_all_seeds_have_the_same_programs(single):
    """A seed is an argument of the compiled functions, so that the cache serves every seed."""
    steps, samplers = set(), set()
    for seed in (0, 1):
        config, parts, step = made(seed)
        root, index = randomness.root(seed), np.arange(4, dtype=np.int32)
        steps.add(step.lower(parts.like, {"root": root}, batch_of(parts, 1)).as_text())
        sampler = jax.jit(sample.of_device(parts.model, config, parts.data.spec))
        samplers.add(sampler.lower(parts.like.params, root, index).as_text())
    assert len(steps) == len(samplers) == 1
    assert np.any(randomness.root(0) != randomness.root(1))
