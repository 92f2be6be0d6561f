"""The naive predictor: its exact likelihood, and the data's conditional mean where it is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import make_config
from vdm import run as run_lib
from vdm.data.dataset import Spec
from vdm.diffusion import process
from vdm.runtime.randomness import Rng

LEVELS = 3


NET = {"name": "mlp", "depth": 1, "width": 32, "fourier": 0, "dropout": 0.0}


def made(shape, **changes):
    """A small predictor for images of the given shape, and its perturbed parameters."""
    net = {f"model.net.{name}": value for name, value in NET.items()}
    predictor = run_lib.build_model(
        make_config({"model.name": "naive"} | net | changes), Spec(shape, LEVELS, 4)
    )
    batch = {
        "image": np.zeros((2, *shape), np.uint8),
        "label": np.zeros(2, np.int32),
        "augmented": np.zeros(2, np.float32),
    }
    params = jax.jit(predictor.init)(jax.random.key(0), batch)
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    pushed = [v + 0.3 * random.normal(size=v.shape).astype(np.float32) for v in leaves]
    return predictor, tree.unflatten(pushed)


def rng(size):
    return Rng(jax.random.key(0), jnp.arange(size), size)


@pytest.mark.parametrize("shape", [(2, 2, 1), (3, 1, 1), (2, 1, 2)])
def test_probabilities_sum_to_one(shape):
    predictor, params = made(shape)
    images = np.array(list(itertools.product(range(LEVELS), repeat=int(np.prod(shape))))).reshape(-1, *shape)
    batch = {"image": images.astype(np.uint8)}
    terms = jax.jit(lambda: predictor.draw(params, rng(len(images)), batch).terms)()
    log_p = -np.asarray(sum(terms.values()), np.float64)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-5)
    assert log_p.std() > 0.1
    upper = np.asarray(terms["upper"])
    same = {tuple(image[: shape[0] // 2].ravel()): nats for image, nats in zip(images, upper)}
    for image, nats in zip(images, upper):  # nats depend on the upper half alone
        assert nats == pytest.approx(same[tuple(image[: shape[0] // 2].ravel())], abs=1e-5)


@pytest.mark.slow
def test_it_learns_the_average_of_all_answers():
    """Given the upper value, the lower is one of two levels with known probabilities. The prediction is their
    mean, a level that never occurs."""
    predictor, params = made((2, 1, 1))
    random = np.random.default_rng(0)
    upper = random.integers(0, 3, 300)
    p_high = np.array([0.2, 0.5, 0.7])  # the probability of level 2; the other level is 0
    lower = 2 * (random.uniform(size=300) < p_high[upper])
    images = np.stack([upper, lower], axis=1).reshape(-1, 2, 1, 1).astype(np.uint8)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        terms = lambda p: predictor.draw(p, rng(300), {"image": images}, train=True).terms
        loss = lambda p: sum(t.mean() for t in terms(p).values())
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=600))((params, optimizer.init(params)))
    x = np.asarray(process.scale(np.arange(3), LEVELS))
    given = jnp.zeros((3, 2, 1, 1)).at[:, 0, 0, 0].set(x)
    average = jax.jit(lambda given, time: predictor.average(params, given, time, None))
    found = average(given, 1.0)[:, 1, 0, 0]
    means = np.array([x[lower[upper == u]].mean() for u in range(3)])
    np.testing.assert_allclose(found, means, atol=0.02)
    assert np.abs(means - x[0]).min() > 0.2 and np.abs(means - x[2]).min() > 0.2  # far from both levels
    first = average(jnp.zeros((1, 2, 1, 1)), 0.0)[0, 0, 0, 0]
    assert float(first) == pytest.approx(x[upper].mean(), abs=0.02)


def test_samples_are_all_one_average_unless_labels_differ():
    for condition, count in (("none", 1), ("label", 4)):
        predictor, params = made((4, 2, 1), **{"model.condition": condition})
        batch = {"label": np.arange(8) % 4, "augmented": np.zeros(8, np.float32)}
        drawn = np.asarray(jax.jit(lambda: predictor.sample(params, rng(8), batch))())
        assert drawn.shape == (8, 4, 2, 1) and drawn.dtype == np.uint8 and drawn.max() < LEVELS
        assert len({bytes(one) for one in drawn}) <= count
