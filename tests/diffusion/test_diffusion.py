"""The model as a whole: its loss against its own distributions, and its gradients' signs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
import exact
from vdm import model
from vdm.data import dataset as data
from vdm.diffusion import encoder, sampler
from vdm.runtime.randomness import Rng

SPEC = data.Spec((4, 4, 1), 17, 10)


def small(**changes):
    """A small VDM, and a batch of 64 random pictures."""
    config = default.get_config()
    config.model.net.update(dict(name="mlp", depth=1, width=16, fourier=0, dropout=0.0))
    config.update_from_flattened_dict(changes)
    draw = np.random.default_rng(0)
    batch = {
        "image": draw.integers(0, 17, (64, 4, 4, 1)).astype(np.uint8),
        "label": draw.integers(0, 10, 64).astype(np.int32),
        "augmented": np.zeros(64, np.float32),
    }
    made = model.build(config, SPEC)
    return made, jax.jit(made.init)(jax.random.key(0), batch), batch


def rng(number=0, size=64):
    return Rng(jax.random.key(number), jnp.arange(size), size)


def mean_terms(made, params, batch, draws):
    """Each term's mean over the batch and many draws, with its standard error."""
    loss = jax.jit(lambda number: made.loss(params, rng(number), batch, False))
    terms = [loss(number) for number in range(draws)]
    values = {n: np.array([t[n].mean() for t in terms], np.float64) for n in terms[0]}
    return {n: (v.mean(), v.std(ddof=1) / np.sqrt(draws)) for n, v in values.items()}


def test_finite_depth_loss_approaches_continuous_time():
    """T = 2000 agrees with T = 0 within error bars, for a denoiser that is not optimal."""
    names = dict(draws=300)
    continuous = mean_terms(*small(), **names)
    deep = mean_terms(*small(**{"model.timesteps": 2000}), **names)
    shallow = mean_terms(*small(**{"model.timesteps": 5}), **names)
    (a, se_a), (b, se_b) = continuous["diffusion"], deep["diffusion"]
    assert abs(a - b) < 4 * np.hypot(se_a, se_b) + 0.005 * a
    assert shallow["diffusion"][0] > a + 10 * np.hypot(se_a, shallow["diffusion"][1])


def test_stratified_and_independent_times_have_one_mean():
    stratified = mean_terms(*small(), draws=300)["diffusion"]
    independent = mean_terms(*small(**{"model.times": "iid"}), draws=300)["diffusion"]
    assert abs(stratified[0] - independent[0]) < 4 * np.hypot(stratified[1], independent[1])
    assert stratified[1] < independent[1]


def test_gradient_of_the_end_points_has_the_right_sign():
    """A longer road costs more diffusion, a lower γ_0 less reconstruction, a higher γ_1 less
    prior; the gradient agrees with finite differences of the loss on the same noise."""
    made, params, batch = small(
        **{"model.schedule.gamma_min": -4.0, "model.schedule.gamma_max": 2.0}
    )

    @functools.partial(jax.jit, static_argnums=0)
    def term(name, start, width):
        schedule = {"params": {"start": start, "width": width}}
        changed = {**params, "schedule": schedule}
        return made.loss(changed, rng(), batch, False)[name].mean()

    def gradient(name):
        return jax.jit(jax.grad(lambda *ends: term(name, *ends), argnums=(0, 1)))(-4.0, 6.0)

    start, width = gradient("reconstruction")
    assert start > 0 and width == 0
    start, width = gradient("prior")
    assert start < 0 and width < 0
    start, width = gradient("diffusion")
    assert width > 0
    for name in ("reconstruction", "prior", "diffusion"):
        h = 1e-2
        numeric = (term(name, -4.0 + h, 6.0) - term(name, -4.0 - h, 6.0)) / (2 * h)
        np.testing.assert_allclose(gradient(name)[0], numeric, rtol=2e-2, atol=1e-2)


def test_fixed_end_points_get_no_gradient_from_a_learned_interior():
    made, params, batch = small(**{"model.schedule.name": "learned_net"})

    def ends(schedule):
        return made.gamma({**params, "schedule": schedule}, jnp.array([0.0, 1.0]))

    jacobian = jax.jacobian(ends)(params["schedule"])
    for leaf in jax.tree.leaves(jacobian):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-4)


@pytest.mark.parametrize("parameterisation", ["eps", "x", "v", "levels"])
def test_every_parameterisation_trains_and_samples(parameterisation):
    made, params, batch = small(
        **{"model.parameterisation": parameterisation, "model.sample_steps": 5}
    )
    loss = lambda p: sum(t.mean() for t in made.loss(p, rng(), batch, True).values())
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    samples = made.sample(params, rng(size=3), {k: v[:3] for k, v in batch.items()})
    assert samples.shape == (3, 4, 4, 1) and samples.dtype == np.uint8 and samples.max() < 17


def test_sampler_with_the_exact_denoiser_draws_the_data():
    """For Gaussian data x ~ N(m, s²) and its own optimal x̂, samples have that mean and
    variance, up to the error of 200 steps, and noise of z_0 beside them."""
    m, s2, count = 0.3, 0.04, 20_000

    def predict_x(z_t, gamma):
        alpha, sigma2 = encoder.alpha(gamma), jax.nn.sigmoid(gamma)
        return (m * sigma2 + alpha * s2 * z_t) / (alpha**2 * s2 + sigma2)

    gammas = jnp.linspace(-10.0, 6.0, 201)
    z_1 = jax.random.normal(jax.random.key(0), (count, 1, 1, 1))
    keys = jax.random.split(jax.random.key(1), count)
    z_0 = np.asarray(jax.jit(lambda: sampler.ancestral(predict_x, gammas, z_1, keys))(), np.float64)
    assert abs(z_0.mean() - m) < 4 * np.sqrt(s2 / count) + 0.003
    assert abs(z_0.var() - s2) < 4 * s2 * np.sqrt(2 / count) + 0.03 * s2


@pytest.mark.parametrize("order, sooner", [(1, 2.0), (2, 4.0)])
def test_solvers_converge_to_the_flow_of_gaussian_data(order, sooner):
    """The flow of N(m, s²) keeps each z at its quantile; with twice the steps the error falls to a
    half (DDIM) or a quarter (DPM-Solver++ 2M)."""
    m, s2 = 0.3, 0.04

    def moments(gamma):
        alpha, sigma2 = encoder.alpha(gamma), jax.nn.sigmoid(gamma)
        return alpha * m, jnp.sqrt(alpha**2 * s2 + sigma2)

    def predict_x(z_t, gamma):
        mean, deviation = moments(gamma)
        return m + encoder.alpha(gamma) * s2 / deviation**2 * (z_t - mean)

    z_1 = jnp.linspace(-2.0, 2.0, 9).reshape(9, 1, 1, 1)
    (mean_1, deviation_1), (mean_0, deviation_0) = moments(6.0), moments(-8.0)
    want = mean_0 + (z_1 - mean_1) * deviation_0 / deviation_1

    def error(steps):
        gammas = jnp.linspace(-8.0, 6.0, steps + 1)
        return float(jnp.abs(sampler.solve(predict_x, gammas, z_1, order) - want).max())

    errors = [error(steps) for steps in (40, 80, 160)]
    for coarse, fine in zip(errors, errors[1:]):
        assert 0.75 * sooner < coarse / fine < 1.5 * sooner
    assert errors[0] < 0.05


@pytest.mark.parametrize("name", ["ddim", "dpm2m"])
def test_few_steps_of_a_solver_draw_the_data(name):
    """Of independent values, whose optimal denoiser is known: 20 steps give their probabilities."""
    log_p = exact.log_probabilities((2, 2, 1), 5)
    made = exact.model(log_p, -9.0, 5.0)
    made = dataclasses.replace(made, sampler=name, sample_steps=20)
    count = 4_000
    drawn = jax.jit(lambda: made.sample({"schedule": {}, "net": {}}, rng(size=count), {}))()
    share = (drawn[..., None] == np.arange(5)).mean(axis=0)
    noise = np.sqrt(np.exp(log_p) / count)
    assert np.abs(share - np.exp(log_p)).max() < 4 * noise.max() + 0.02


def test_labels_and_flags_reach_the_denoiser():
    for condition in ("label", "augmented"):
        made, params, batch = small(**{"model.condition": condition})
        params = jax.tree.map(lambda v: v + 0.1, params)
        before = made.loss(params, rng(), batch, False)["diffusion"]
        other = {**batch, "label": (batch["label"] + 1) % 10, "augmented": batch["augmented"] + 1}
        assert np.abs(made.loss(params, rng(), other, False)["diffusion"] - before).max() > 1e-3
