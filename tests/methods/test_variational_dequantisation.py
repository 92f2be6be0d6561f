"""Variational dequantisation against the exact mass of a cell, on one value."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import make_config, perturbed
from diffusion_helpers import SPEC, rng
import exact
from vdm import run as run_lib
from vdm.diffusion import process
from vdm.errors import UserError
from vdm.methods.variational_dequantisation import Cells, Dequantised, spline

P = np.array([0.6, 0.1, 0.3])
X = np.array([-2 / 3, 0.0, 2 / 3])
PARAMS = {"schedule": {}, "net": {}}


def made(bins=16, layers=1):
    """A VDM of one value with the optimal denoiser, and a γ_s above γ_0."""
    return Dequantised(exact.model(np.log(P).reshape(1, 1, 1, 3), -9.0, 9.0), layers, bins, 8)


def log_p(z, gamma):
    """The log density of z_s, a mixture of normals, in float64."""
    alpha, sigma = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
    each = np.exp(-0.5 * ((z[..., None] - alpha * X) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return np.log(each @ P)


def mass(gamma):
    """The log-probability of the cell of each level."""
    alpha = math.sqrt(1 / (1 + math.exp(gamma)))
    points = alpha * (X[:, None] + np.linspace(-1, 1, 20_001) / 3)
    return np.log(np.trapezoid(np.exp(log_p(points, gamma)), points, axis=1))


def bound(model, params, gamma, count=4_000):
    """E_q[log p(z) − log q(z)] of each level, over a grid of the uniform input; float64 except for q."""
    v = ((np.arange(count) + 0.5) / count).astype(np.float32)
    found, apply = [], jax.jit(model.cells.apply)
    for level in X:
        x = jnp.full((count, 1, 1, 1), level, jnp.float32)
        u, log_q = apply(params["cells"], x, jnp.asarray(v).reshape(-1, 1, 1, 1))
        alpha = math.sqrt(1 / (1 + math.exp(gamma)))
        z = alpha * (level + np.asarray(u, np.float64).ravel() / 3)
        found.append((log_p(z, gamma) - np.asarray(log_q) + math.log(alpha / 3)).mean())
    return np.array(found)


def test_spline_is_the_integral_of_its_slope(single):
    heights = np.random.default_rng(0).gamma(1.0, size=6)
    v = np.linspace(0.0, 1.0, 5_001)
    out, log_slope = spline(jnp.asarray(v, jnp.float32), jnp.broadcast_to(heights, (5_001, 6)))
    slope = np.interp(v, np.arange(6) / 5, heights)
    slope /= np.trapezoid(slope, v)
    np.testing.assert_allclose(np.exp(log_slope), slope, rtol=1e-4)
    truth = np.concatenate([[0.0], np.cumsum(0.5 * (slope[1:] + slope[:-1])) / 5_000])
    np.testing.assert_allclose(out, truth, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_density_is_that_of_the_change_of_variables(layers, single):
    """log q(u|x) = −log |det du/dv|, with an explicit Jacobian."""
    cells, shape = Cells(layers, 4, 8), (3, 2, 2)
    x, v = (jax.random.uniform(jax.random.key(k), (1, *shape)) for k in (1, 2))
    params, apply = jax.jit(cells.init)(jax.random.key(0), x, v), jax.jit(cells.apply)
    u, log_q = apply(params, x, v)
    np.testing.assert_allclose(u, 2 * v - 1, atol=1e-6)
    np.testing.assert_allclose(log_q, -12 * math.log(2.0), rtol=1e-6)
    params = perturbed(params, 0.2)
    flat = lambda v: cells.apply(params, x, v.reshape(x.shape))[0].ravel()
    jacobian = jax.jit(jax.jacrev(flat))(v.ravel())
    u, log_q = apply(params, x, v)
    assert np.all(np.abs(u) < 1)
    np.testing.assert_allclose(-np.linalg.slogdet(np.asarray(jacobian, np.float64))[1], log_q[0], rtol=1e-4)
    crossed = np.abs(jacobian) > 0
    assert crossed.sum() == 12 if layers == 1 else crossed.sum() > 24  # further layers depend on other values


def test_terms_are_a_bound_on_the_density_and_tight_where_the_denoiser_is_optimal(single):
    """Their sum has the mean E_q[log q(z) − log p(z)], under a q that is not uniform."""
    model, count = made(), 30_000
    batch = {"image": jnp.tile(jnp.arange(3), count).reshape(-1, 1, 1, 1)}
    params = PARAMS | {"cells": perturbed(jax.jit(model.init)(jax.random.key(0), batch)["cells"], 0.5)}
    terms = jax.jit(lambda batch: model.draw(params, rng(0, 3 * count), batch).terms)(batch)
    nats = np.asarray(sum(terms.values()), np.float64).reshape(-1, 3)
    error = nats.std(axis=0) / math.sqrt(count)
    gamma = float(model.gamma_s(params))
    assert gamma > -9.0
    truth = -bound(model, params, gamma)
    assert np.all(error < 0.03) and np.all(np.abs(nats.mean(axis=0) - truth) < 4.0 * error + 2e-3)


@pytest.mark.slow
def test_bound_is_below_the_mass_of_the_cell_and_tight_as_the_flow_grows(single):
    batch = {"image": jnp.tile(jnp.arange(3), 100).reshape(-1, 1, 1, 1)}
    gamma, gaps = float(made().gamma_s(PARAMS)), []
    for bins in (1, 5, 32):
        model = made(bins)
        params = jax.jit(model.init)(jax.random.key(0), batch)["cells"]
        rate = optax.adam(optax.cosine_decay_schedule(0.02, 400))

        @jax.jit
        def train(params, batch):
            def loss(cells, number):
                return sum(
                    model.draw(PARAMS | {"cells": cells}, rng(number, 300), batch).terms.values()
                ).mean()

            def step(carry, number):
                cells, state = carry
                updates, state = rate.update(jax.grad(loss)(cells, number), state)
                return (optax.apply_updates(cells, updates), state), None

            return jax.lax.scan(step, (params, rate.init(params)), jnp.arange(400))[0][0]

        gaps.append(mass(gamma) - bound(model, {"cells": train(params, batch)}, gamma))
    gaps = np.array(gaps)
    assert np.all(gaps > -1e-4)
    assert np.all(gaps[0] > 5e-3)  # one bin can hardly bend the density
    assert np.all(gaps[1] < 0.5 * gaps[0]) and np.all(gaps[2] < 0.1 * gaps[0]), gaps


def test_flow_starts_where_the_cells_say(single):
    model = made()
    batch = {"image": jnp.tile(jnp.arange(3), 2).reshape(-1, 1, 1, 1)}
    params = PARAMS | {"cells": perturbed(jax.jit(model.init)(jax.random.key(0), batch)["cells"], 0.5)}
    flows = {kind: model.flow(params, rng(0, 6), batch, kind) for kind in model.flow_kinds}
    assert list(flows) == ["uniform", "normal", "variational"]
    ours, uniform = flows["variational"], flows["uniform"]
    np.testing.assert_allclose(ours.ends[0], uniform.ends[0])
    x = process.scale(batch["image"], 3)
    u = (ours.z / process.alpha(ours.ends[0]) - x) * 3
    assert np.all(np.abs(u) < 1) and not np.allclose(ours.z, uniform.z)
    fresh = PARAMS | {"cells": jax.jit(model.init)(jax.random.key(0), batch)["cells"]}
    np.testing.assert_allclose(
        model.flow(fresh, rng(0, 6), batch, "variational").nats, uniform.nats, rtol=1e-5
    )


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"model.bins": 0}, "config.model.bins is 0; accepted: 1 or more"),
        ({"model.schedule.name": "multivariate"}, "needs the same γ for all values"),
    ],
)
def test_what_it_cannot_be_is_refused(fields, said):
    with pytest.raises(UserError, match=said):
        run_lib.build_model(make_config({"model.name": "dequantised"} | fields), SPEC)
