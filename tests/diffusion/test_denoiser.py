"""The parameterisations of one network agree, and `categorical` gives the posterior mean."""

import jax.numpy as jnp
import numpy as np
import pytest

from vdm.diffusion import denoiser, process
from vdm.diffusion.denoiser import Categorical, Eps, V, X


@pytest.mark.parametrize("gamma", [-8.0, 0.0, 4.0])
def test_readings_agree(gamma):
    """From the ε, x or v that made z_t, each parameterisation recovers ε, and x is recovered from ε."""
    draw = np.random.default_rng(0)
    x, eps = (
        jnp.asarray(draw.uniform(-1, 1, (2, 4, 4, 1)), jnp.float32),
        jnp.asarray(draw.normal(size=(2, 4, 4, 1)), jnp.float32),
    )
    gamma = jnp.full((2, 1, 1, 1), gamma)
    z_t = process.diffuse(x, gamma, eps)
    v = process.alpha(gamma) * eps - process.sigma(gamma) * x
    close = dict(atol=2e-5 / float(process.sigma(gamma)[0, 0, 0, 0]))
    for reading, output in ((Eps(), eps - z_t), (X(), x), (V(), v)):
        found = reading.eps_hat(lambda _: output, z_t, gamma, {}, 256)
        np.testing.assert_allclose(found, eps, **close)
    close = dict(atol=2e-6 / float(process.alpha(gamma)[0, 0, 0, 0]))
    np.testing.assert_allclose(denoiser.x_from_eps(eps, z_t, gamma), x, **close)


def test_levels_give_the_posterior_mean_of_independent_values():
    """If the network's output is the log-probabilities of the data, x̂ is E[x|z_t] by Bayes' rule."""
    draw = np.random.default_rng(0)
    vocab_size, gamma = 5, -0.5
    probabilities = draw.dirichlet(np.ones(vocab_size), size=(3, 3, 2))
    levels = (2 * np.arange(vocab_size) + 1) / vocab_size - 1
    z_t = draw.normal(size=(2, 3, 3, 2))

    alpha, sigma2 = np.sqrt(1 / (1 + np.exp(gamma))), 1 / (1 + np.exp(-gamma))
    joint = probabilities * np.exp(-((z_t[..., None] - alpha * levels) ** 2) / (2 * sigma2))
    x_hat = (joint @ levels) / joint.sum(-1)
    want = (z_t - alpha * x_hat) / np.sqrt(sigma2)

    output = np.broadcast_to(np.log(probabilities), (2, *probabilities.shape))
    output = jnp.asarray(output.reshape(2, 3, 3, 2 * vocab_size), jnp.float32)
    z_t, gamma = jnp.asarray(z_t, jnp.float32), jnp.full((2, 1, 1, 1), gamma)
    got = Categorical().eps_hat(lambda _: output, z_t, gamma, {}, vocab_size)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_guidance_goes_on_from_no_condition_beyond_the_condition():
    """(1 + w) ε̂(c) − w ε̂(∅); without guidance, ε̂(c) alone."""
    of = {"c": jnp.float32(3.0), "none": jnp.float32(1.0)}
    assert denoiser.guided(of.get, "c", "none", 0.5) == 3.0 + 0.5 * (3.0 - 1.0)
    assert denoiser.guided(of.get, "c", "none", 0.0) == 3.0
