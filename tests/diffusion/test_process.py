"""The forward process against float64 NumPy written from the definitions, and against sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_helpers import gaussian_kl
from vdm.diffusion import process

GAMMAS = np.linspace(-20.0, 20.0, 41)


def alpha2(gamma):
    return 1.0 / (1.0 + np.exp(np.float64(gamma)))


def sigma2(gamma):
    return 1.0 / (1.0 + np.exp(-np.float64(gamma)))


def test_alpha_and_sigma_keep_float32_precision():
    gamma = jnp.asarray(GAMMAS, jnp.float32)
    np.testing.assert_allclose(process.alpha(gamma), np.sqrt(alpha2(GAMMAS)), rtol=3e-6)
    np.testing.assert_allclose(process.sigma(gamma), np.sqrt(sigma2(GAMMAS)), rtol=3e-6)


@pytest.mark.parametrize("gap", [1e-3, 0.1, 5.0, 30.0])
def test_transition_and_posterior_against_bayes_rule_in_float64(gap):
    """Precisions add: 1/var(z_s|z_t,x) = α²_{t|s}/σ²_{t|s} + 1/σ_s²."""
    gamma_s = np.float32(GAMMAS[GAMMAS + gap <= 20.0])
    gamma_t = np.float32(gamma_s + np.float32(gap))
    s, t = np.float64(gamma_s), np.float64(gamma_t)
    ratio2 = alpha2(t) / alpha2(s)
    # σ_t² − α²_{t|s} σ_s², with σ² = α² e^γ to avoid cancellation in float64.
    fresh = alpha2(t) * (np.exp(t) - np.exp(s))
    z_s, z_t, x = 0.3, -0.7, 0.9

    mean, variance = process.transition(z_s, jnp.asarray(gamma_s), jnp.asarray(gamma_t))
    np.testing.assert_allclose(mean, np.sqrt(ratio2) * z_s, rtol=1e-5)
    np.testing.assert_allclose(variance, fresh, rtol=1e-5)

    precision = ratio2 / fresh + 1.0 / sigma2(s)
    want = (np.sqrt(ratio2) / fresh * z_t + np.sqrt(alpha2(s)) / sigma2(s) * x) / precision
    mean, variance = process.posterior(z_t, x, jnp.asarray(gamma_s), jnp.asarray(gamma_t))
    np.testing.assert_allclose(variance, 1.0 / precision, rtol=1e-5)
    np.testing.assert_allclose(mean, want, rtol=1e-5, atol=1e-6)


def test_chain_of_transitions_samples_the_marginal():
    """Draws through q(z_s|x) and q(z_t|z_s) have the mean and variance of q(z_t|x)."""
    draws, x = 200_000, 0.8
    gamma_s, gamma_t = jnp.float32(-1.5), jnp.float32(0.7)
    first, second = jax.random.normal(jax.random.key(0), (2, draws))
    z_s = process.diffuse(x, gamma_s, first)
    mean, variance = process.transition(z_s, gamma_s, gamma_t)
    z_t = np.asarray(mean + jnp.sqrt(variance) * second, np.float64)
    mean, variance = map(float, process.marginal(x, gamma_t))
    assert abs(z_t.mean() - mean) < 4 * np.sqrt(variance / draws)
    assert abs(z_t.var() - variance) < 4 * variance * np.sqrt(2 / draws)


def test_posterior_by_sampling():
    """Among draws of (z_s, z_t), z_s regressed on z_t has the posterior's mean and variance."""
    draws, x = 200_000, -0.4
    gamma_s, gamma_t = jnp.float32(-0.5), jnp.float32(1.0)
    first, second = jax.random.normal(jax.random.key(1), (2, draws))
    z_s = process.diffuse(x, gamma_s, first)
    mean, variance = process.transition(z_s, gamma_s, gamma_t)
    z_t = np.asarray(mean + jnp.sqrt(variance) * second, np.float64)
    posterior_mean, posterior_variance = process.posterior(z_t, x, gamma_s, gamma_t)
    residual = np.asarray(z_s, np.float64) - np.asarray(posterior_mean, np.float64)
    spread = np.sqrt(float(posterior_variance) / draws)
    assert abs(residual.mean()) < 4 * spread
    assert abs((residual * z_t).mean()) < 4 * spread * np.sqrt((z_t**2).mean())
    assert abs(residual.var() - float(posterior_variance)) < 4 * np.sqrt(2 / draws) * float(
        posterior_variance
    )


def test_kl_to_a_standard_gaussian():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 1))
    for gamma in (-2.0, 3.0, 5.0):
        want = gaussian_kl(np.sqrt(alpha2(gamma)) * x, sigma2(gamma), 0.0, 1.0).sum((1, 2, 3))
        np.testing.assert_allclose(
            process.kl_to_standard(jnp.float32(x), jnp.float32(gamma)), want, rtol=1e-4
        )


def test_levels_are_cell_centres():
    np.testing.assert_allclose(process.scale(np.arange(4), 4), [-0.75, -0.25, 0.25, 0.75])


@pytest.mark.parametrize("vocab_size", [2, 17, 256])
def test_unscale_is_the_nearest_level(vocab_size):
    """For points between levels, and beyond the first and the last."""
    levels = np.arange(vocab_size)
    centres = np.asarray(process.scale(levels, vocab_size), np.float64)
    np.testing.assert_allclose(centres, (2.0 * levels + 1.0) / vocab_size - 1.0, atol=1e-7)
    x = np.random.default_rng(0).uniform(-1.5, 1.5, 500)
    nearest = np.abs(x[:, None] - centres).argmin(axis=1)
    np.testing.assert_array_equal(process.unscale(jnp.float32(x), vocab_size), nearest)
