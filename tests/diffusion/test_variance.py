"""The schedule that is learned for least variance: its gradient against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from test_diffusion import rng, small
from vdm import step

DIMS = 16


def trained_like(**changes):
    """A small VDM whose network says something, its schedule not straight."""
    made, params, batch = small(**changes)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [v + 0.1 * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves)]
    return made, tree.unflatten(moved), batch


def along(direction, step, params):
    """`params` with the schedule moved by `step` in a direction."""
    moved = jax.tree.map(lambda v, d: v + step * d, params["schedule"], direction)
    return params | {"schedule": moved}


@pytest.mark.parametrize("name", ["min_variance", "piecewise"])
def test_gradient_is_that_of_the_variance(name):
    """Along a random direction of the interior, against finite differences: of the mean square on the
    same draws, which it is exactly, and of their variance, which it is within the noise of the
    draws, as the mean stays the same."""
    made, params, batch = trained_like(
        **{"model.schedule.name": name, "model.schedule.gamma_min": -4.0, "model.schedule.gamma_max": 3.0}
    )
    numbers = jnp.arange(200)
    draw = np.random.default_rng(1)
    direction = jax.tree.map(lambda v: draw.normal(size=v.shape).astype(np.float32), params["schedule"])

    @jax.jit
    def nats(step):
        moved = along(direction, step, params)
        loss = lambda n: made.loss(moved, rng(n), batch, False)["diffusion"]  # noqa: E731
        return jax.lax.map(loss, numbers) / DIMS

    def one_gradient(n):
        mean = lambda p: made.loss(p, rng(n), batch, False)["diffusion"].mean()  # noqa: E731
        found = jax.grad(mean)(params)["schedule"]
        return sum(jnp.vdot(d, g) for d, g in zip(jax.tree.leaves(direction), jax.tree.leaves(found)))

    per_draw = np.asarray(jax.jit(lambda: jax.lax.map(one_gradient, numbers))(), np.float64)
    h = 0.005
    up, here, down = (np.asarray(nats(jnp.float32(step)), np.float64) for step in (h, 0.0, -h))

    of_square = (np.mean(up**2) - np.mean(down**2)) / (2 * h)
    assert per_draw.mean() == pytest.approx(of_square, rel=0.02)
    # Twice the mean times what the mean moves by, in these draws, is all that the two differ by.
    moved = (up - down).mean(axis=1) / (2 * h)
    noise = 2 * here.mean() * moved.std(ddof=1) / np.sqrt(len(moved))
    of_variance = (np.var(up) - np.var(down)) / (2 * h)
    assert abs(per_draw.mean() - of_variance) < 4 * noise
    assert abs(of_variance) > 8 * noise  # so that the line before says something


def test_ends_and_network_keep_the_gradient_of_the_elbo():
    changes = {"model.schedule.learn_ends": True}
    made, params, batch = trained_like(**{"model.schedule.name": "min_variance"} | changes)
    plain = dataclasses.replace(made, schedule=dataclasses.replace(made.schedule, min_variance=False))

    def gradient(model):
        return jax.jit(
            jax.value_and_grad(lambda p: sum(t.mean() for t in model.loss(p, rng(), batch, True).values()))
        )(params)

    (value, found), (want_value, want) = gradient(made), gradient(plain)
    assert float(value) == pytest.approx(float(want_value), rel=1e-6)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731
    jax.tree.map(same, found["net"], want["net"])
    inner, outer = (g["schedule"]["params"] for g in (found, want))
    jax.tree.map(same, inner.pop("ends"), outer.pop("ends"))
    assert not np.allclose(inner["Positive_1"]["kernel"], outer["Positive_1"]["kernel"], rtol=0.1)


def test_at_finite_depth_the_interior_is_trained_for_the_elbo():
    made, params, batch = trained_like(**{"model.schedule.name": "min_variance", "model.timesteps": 10})
    draw = np.random.default_rng(0)
    direction = jax.tree.map(lambda v: draw.normal(size=v.shape).astype(np.float32), params["schedule"])

    @jax.jit
    def loss(step):
        return made.loss(along(direction, step, params), rng(), batch, False)["diffusion"].mean()

    h = 0.002
    numeric = (float(loss(h)) - float(loss(-h))) / (2 * h)
    assert float(jax.grad(loss)(0.0)) == pytest.approx(numeric, rel=0.03)


def test_the_interior_is_clipped_apart():
    """However large its gradient is, the network's steps are the same; and so for end points."""
    config = default.get_config()
    config.optimizer.clip = 1.0
    optimizer = step.make_optimizer(config.optimizer, 100)
    params = {
        "net": {"kernel": jnp.ones(4)},
        "schedule": {"params": {"share": jnp.ones(3), "ends": {"start": jnp.ones(())}}},
    }

    def after(scale):
        state, now = optimizer.init(params), params
        for large in (scale, 0.0):
            grads = jax.tree.map(lambda v: 2.0 * v, params)
            grads["schedule"]["params"]["share"] = jnp.full(3, large)
            updates, state = optimizer.update(grads, state, now)
            now = optax.apply_updates(now, updates)
        return now

    small, large = after(0.0), after(1e6)
    np.testing.assert_array_equal(small["net"]["kernel"], large["net"]["kernel"])
    inner, outer = (one["schedule"]["params"] for one in (small, large))
    assert inner["ends"]["start"] == outer["ends"]["start"] != 1.0
    assert np.all(np.isfinite(outer["share"])) and not np.array_equal(inner["share"], outer["share"])
