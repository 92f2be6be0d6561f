"""A schedule learned for least variance: its gradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import make_config, slow
from diffusion_helpers import rng, small
from vdm import objective, optimizer as optimizer_lib
from vdm.diffusion.schedule import Piecewise
from vdm.errors import UserError
from vdm.methods.least_variance import LeastVariance, Squared
from vdm.parameters import Role, alike

DIMS = 16


def trained_like(**changes):
    """A small VDM with perturbed parameters: its network is not zero, and its schedule is not linear."""
    made, params, batch = small(**changes)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [v + 0.1 * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves)]
    return made, tree.unflatten(moved), batch


def along(direction, step, params):
    """`params` with the schedule moved by `step` in a direction."""
    moved = jax.tree.map(lambda v, d: v + step * d, params["schedule"], direction)
    return params | {"schedule": moved}


def minimised(made, params, rng, batch):
    """The terms of the objective "least_variance" for one draw."""
    chosen = LeastVariance()
    return chosen(None, chosen.draw(made, params, rng, batch, None))


@pytest.mark.parametrize("name", [slow("learned_net"), "piecewise"])
def test_gradient_is_that_of_the_variance(name):
    """Against finite differences along a random direction of the interior. The gradient is exactly that of
    the mean square on the same draws. It is that of their variance within the noise of the draws, because
    the mean does not depend on the interior."""
    made, params, batch = trained_like(
        **{"model.schedule.name": name, "model.schedule.gamma_min": -4.0, "model.schedule.gamma_max": 3.0}
    )
    numbers = jnp.arange(200)
    random = np.random.default_rng(1)
    direction = jax.tree.map(lambda v: random.normal(size=v.shape).astype(np.float32), params["schedule"])

    @jax.jit
    def nats(step):
        moved = along(direction, step, params)
        loss = lambda n: made.draw(moved, rng(n), batch).terms["diffusion"]
        return jax.lax.map(loss, numbers) / DIMS

    def one_gradient(n):
        mean = lambda p: minimised(made, p, rng(n), batch)["diffusion"].mean()
        found = jax.grad(mean)(params)["schedule"]
        return sum(jnp.vdot(d, g) for d, g in zip(jax.tree.leaves(direction), jax.tree.leaves(found)))

    per_draw = np.asarray(jax.jit(lambda: jax.lax.map(one_gradient, numbers))(), np.float64)
    h = 0.005
    up, here, down = (np.asarray(nats(jnp.float32(step)), np.float64) for step in (h, 0.0, -h))

    of_square = (np.mean(up**2) - np.mean(down**2)) / (2 * h)
    assert per_draw.mean() == pytest.approx(of_square, rel=0.02)
    # The two differ only by twice the mean times the change of the mean in these draws.
    moved = (up - down).mean(axis=1) / (2 * h)
    noise = 2 * here.mean() * moved.std(ddof=1) / np.sqrt(len(moved))
    of_variance = (np.var(up) - np.var(down)) / (2 * h)
    assert abs(per_draw.mean() - of_variance) < 4 * noise
    assert abs(of_variance) > 8 * noise  # so that the line above can fail


@pytest.mark.slow
def test_ends_and_network_keep_the_gradient_of_the_elbo():
    made, params, batch = trained_like(
        **{"model.schedule.name": "learned_net", "model.schedule.learn_ends": True}
    )

    def gradient(terms):
        return jax.jit(jax.value_and_grad(lambda p: sum(t.mean() for t in terms(p).values())))(params)

    value, found = gradient(lambda p: minimised(made, p, rng(), batch))
    want_value, want = gradient(lambda p: made.draw(p, rng(), batch, train=True).terms)
    assert float(value) == pytest.approx(float(want_value), rel=1e-6)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(same, found["net"], want["net"])
    inner, outer = (g["schedule"]["params"] for g in (found, want))
    jax.tree.map(same, inner.pop("ends"), outer.pop("ends"))
    assert not np.allclose(inner["Positive_1"]["kernel"], outer["Positive_1"]["kernel"], rtol=0.1)


def test_at_finite_depth_the_interior_is_trained_for_the_elbo():
    """In a chain, the interior changes the ELBO: its gradient is the ELBO's; least variance is refused."""
    made, params, batch = trained_like(**{"model.schedule.name": "learned_net", "model.timesteps": 10})
    random = np.random.default_rng(0)
    direction = jax.tree.map(lambda v: random.normal(size=v.shape).astype(np.float32), params["schedule"])

    @jax.jit
    def loss(step):
        return made.draw(along(direction, step, params), rng(), batch).terms["diffusion"].mean()

    h = 0.002
    numeric = (float(loss(h)) - float(loss(-h))) / (2 * h)
    assert float(jax.jit(jax.grad(loss))(0.0)) == pytest.approx(numeric, rel=0.03)
    section = make_config({"objective.name": "least_variance"}).objective
    with pytest.raises(UserError, match="needs continuous time"):
        objective.build(section, made)


def test_the_interior_is_clipped_apart():
    """However large the interior's gradient, the network and the end points take the same steps."""
    schedule = Piecewise(shape=(4, 4, 1), learn_ends=True)

    params = {
        "net": {"kernel": jnp.ones(4)},
        "schedule": {"params": {"share": jnp.ones(3), "ends": {"start": jnp.ones(())}}},
    }

    roles = {"net": alike(params["net"], Role()), "schedule": schedule.roles(params["schedule"])}
    section = make_config({"optimizer.clip": 1.0}).optimizer
    optimizer = optimizer_lib.build(section, 100, roles)

    @jax.jit
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


def test_gradient_of_the_variance_by_enumeration():
    """For L = ½ γ′(t) f(γ(t), s) with a known f, and equally likely s = ±1 and t on a fine grid: the gradient
    of the interior is that of Var[L/d], by finite differences of its enumeration in float64."""
    shape, low, high, parts, count = (2, 1, 1), -6.0, 4.0, 5, 4000
    schedule = Piecewise(shape=shape, gamma_min=low, gamma_max=high, parts=parts)
    raw = np.random.default_rng(3).normal(size=parts)
    t, s = (v.reshape(-1) for v in np.meshgrid((np.arange(count) + 0.5) / count, [-1.0, 1.0]))

    def moments(raw):
        share = np.exp(raw) / np.exp(raw).sum()
        part = np.floor(t * parts).astype(int)
        at = np.concatenate([[0.0], np.cumsum(share)])[part] + share[part] * (t * parts - part)
        gamma, slope = low + (high - low) * at, (high - low) * parts * share[part]
        loss = 0.5 * slope * np.exp(0.3 * gamma) * (1.5 + s) / 2.0
        return loss.mean(), loss.var()

    def mean(share):
        squared = Squared(schedule)
        _, gamma, weight = squared.at({"params": {"share": share}}, jnp.float32(t), 0)
        return jnp.mean(0.5 * weight * jnp.exp(0.3 * gamma) * (1.5 + s))

    found = jax.jit(jax.grad(mean))(jnp.float32(raw))
    steps = 1e-4 * np.eye(parts)
    change = np.array([np.subtract(moments(raw + step), moments(raw - step)) for step in steps]) / 2e-4
    assert np.abs(change[:, 0]).max() < 1e-6  # the mean does not depend on the interior
    np.testing.assert_allclose(found, change[:, 1], rtol=2e-3, atol=1e-4)
