"""The samplers against data whose optimal denoiser is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_helpers import rng
import exact
from vdm.diffusion import process, sampler


def test_sampler_with_the_exact_denoiser_draws_the_data():
    """For Gaussian data x ~ N(m, s²) and its optimal x̂, samples have this mean and variance, up to the error
    of 200 steps and the noise in z_0."""
    m, s2, count = 0.3, 0.04, 20_000

    def predict_x(z_t, gamma):
        alpha, sigma2 = process.alpha(gamma), jax.nn.sigmoid(gamma)
        return (m * sigma2 + alpha * s2 * z_t) / (alpha**2 * s2 + sigma2)

    @jax.jit
    def sample():
        gammas = jnp.linspace(-10.0, 6.0, 201)
        z_1 = jax.random.normal(jax.random.key(0), (count, 1, 1, 1))
        return sampler.Ancestral().sample(predict_x, gammas, z_1, jax.random.split(jax.random.key(1), count))

    z_0 = np.asarray(sample(), np.float64)
    assert abs(z_0.mean() - m) < 4 * np.sqrt(s2 / count) + 0.003
    assert abs(z_0.var() - s2) < 4 * s2 * np.sqrt(2 / count) + 0.03 * s2


@pytest.mark.parametrize("order, sooner", [(1, 2.0), (2, 4.0)])
def test_solvers_converge_to_the_flow_of_gaussian_data(order, sooner):
    """The flow of N(m, s²) keeps each z at its quantile. Doubling the steps divides the error by two (DDIM)
    or four (DPM-Solver++ 2M)."""
    m, s2 = 0.3, 0.04

    def moments(gamma):
        alpha, sigma2 = process.alpha(gamma), jax.nn.sigmoid(gamma)
        return alpha * m, jnp.sqrt(alpha**2 * s2 + sigma2)

    def predict_x(z_t, gamma):
        mean, deviation = moments(gamma)
        return m + process.alpha(gamma) * s2 / deviation**2 * (z_t - mean)

    @jax.jit
    def all_errors():
        z_1 = jnp.linspace(-2.0, 2.0, 9).reshape(9, 1, 1, 1)
        (mean_1, deviation_1), (mean_0, deviation_0) = moments(6.0), moments(-8.0)
        want = mean_0 + (z_1 - mean_1) * deviation_0 / deviation_1

        def error(steps):
            gammas = jnp.linspace(-8.0, 6.0, steps + 1)
            return jnp.abs(sampler.solve(predict_x, gammas, z_1, order) - want).max()

        return [error(steps) for steps in (40, 80, 160)]

    errors = list(map(float, all_errors()))
    for coarse, fine in zip(errors, errors[1:]):
        assert 0.75 * sooner < coarse / fine < 1.5 * sooner
    assert errors[0] < 0.05


@pytest.mark.parametrize("solver", [sampler.DDIM(), sampler.DPM2M()])
def test_few_steps_of_a_solver_draw_the_data(solver):
    """For independent values, whose optimal denoiser is known, 20 steps reproduce the probabilities."""
    log_p = exact.log_probabilities((2, 2, 1), 5)
    made = exact.model(log_p, -9.0, 5.0)
    made = dataclasses.replace(made, sampler=solver, sample_steps=20)
    count = 4_000
    drawn = np.asarray(jax.jit(lambda: made.sample({"schedule": {}, "net": {}}, rng(size=count), {}))())
    share = (drawn[..., None] == np.arange(5)).mean(axis=0)
    noise = np.sqrt(np.exp(log_p) / count)
    assert np.abs(share - np.exp(log_p)).max() < 4 * noise.max() + 0.02


def test_dpm2m_is_its_algorithm():
    """Three steps with a nonlinear denoiser, against alg. 2 of Lu et al. 2022 in float64, whose first step is
    of first order: λ = −γ/2, D = (1 + 1/(2r)) x̂ − 1/(2r) x̂', r = h'/h."""
    gammas, z = np.array([-5.0, -2.5, 0.5, 4.0]), np.array([0.3, -1.2])
    predict = lambda z, gamma: np.tanh(z + 0.2 * gamma)
    alpha, sigma = (lambda g: np.sqrt(1 / (1 + np.exp(g)))), (lambda g: np.sqrt(1 / (1 + np.exp(-g))))
    want, last, last_h = z, None, None
    for s, t in zip(gammas[-2::-1], gammas[:0:-1]):
        h, x = 0.5 * (t - s), predict(want, t)
        mixed = x if last is None else x + 0.5 * h / last_h * (x - last)
        want, last, last_h = sigma(s) / sigma(t) * want - alpha(s) * np.expm1(-h) * mixed, x, h
    found = sampler.solve(
        lambda z, gamma: jnp.tanh(z + 0.2 * gamma), jnp.float32(gammas), jnp.float32(z), order=2
    )
    np.testing.assert_allclose(found, want, rtol=1e-5)
