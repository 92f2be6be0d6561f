"""The probability-flow ODE against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.diffusion import process
from vdm.errors import UserError
from vdm.evaluation import ode, ode_solver


def mixture(means, scale, weights):
    """The log density at noise level γ of a 2-D mixture of Gaussians, and its optimal denoiser."""
    means, weights = jnp.asarray(means), jnp.asarray(weights)

    def log_density(z, gamma):
        variance = process.alpha(gamma) ** 2 * scale**2 + process.sigma(gamma) ** 2
        square = jnp.sum((z[None] - process.alpha(gamma) * means) ** 2, axis=-1)
        log_n = -0.5 * square / variance - jnp.log(2.0 * jnp.pi * variance)
        return jax.nn.logsumexp(log_n + jnp.log(weights))

    def eps_hat(z, gamma, condition):
        score = jax.vmap(jax.grad(log_density))(z, gamma)
        return -process.sigma(gamma)[:, None] * score

    return log_density, eps_hat


@pytest.mark.parametrize("exact_divergence", [True, False])
def test_flow_gives_the_density_of_a_mixture(exact_divergence):
    log_density, eps_hat = mixture([[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], 0.15, [0.5, 0.3, 0.2])
    ends = jnp.array([-6.0, 14.0])
    z = 0.7 * jax.random.normal(jax.random.key(0), (64, 2))
    keys = jax.random.split(jax.random.key(1), 64)
    solve = jax.jit(
        lambda z: ode_solver.flow_log_density(eps_hat, z, None, ends, keys, 256, 1e-6, exact_divergence)
    )
    found = solve(z)
    truth = jax.vmap(log_density, (0, None))(z, ends[0])
    above = np.asarray(found["log_density"] - truth)
    if exact_divergence:
        assert np.abs(above).max() < 5e-3, above
    else:
        assert above.std() > 0.05  # the probes add noise
        assert abs(above.mean()) < 3.5 * above.std() / 8.0


def test_flow_of_a_gaussian_is_linear():
    """ε̂ = σ (z − α μ)/(α² s² + σ²): the flow scales z − α μ by the ratio of the marginals' standard
    deviations. So its density is known exactly, including the mismatch with N(0, I) at γ_1."""
    mu, s, ends = 0.3, 0.2, jnp.array([-5.0, 1.0])

    def variance(gamma):
        return process.alpha(gamma) ** 2 * s**2 + process.sigma(gamma) ** 2

    def eps_hat(z, gamma, condition):
        gamma = gamma[:, None]
        return process.sigma(gamma) * (z - process.alpha(gamma) * mu) / variance(gamma)

    z_0 = jnp.linspace(-1.0, 1.5, 12).reshape(4, 3)
    found = ode_solver.flow_log_density(
        eps_hat, z_0, None, ends, jax.random.split(jax.random.key(0), 4), 64, 1e-6, True
    )
    ratio = np.sqrt(float(variance(ends[1]) / variance(ends[0])))
    alpha = np.asarray(process.alpha(ends), np.float64)
    z_1 = alpha[1] * mu + ratio * (np.asarray(z_0, np.float64) - alpha[0] * mu)
    truth = (-0.5 * z_1**2 - 0.5 * np.log(2 * np.pi) + np.log(ratio)).sum(axis=1)
    np.testing.assert_allclose(found["log_density"], truth, atol=2e-4)


def test_clenshaw_curtis_is_exact_for_polynomials():
    points, weights = ode_solver.clenshaw_curtis(8)
    for power in range(9):
        assert weights @ points**power == pytest.approx(1.0 / (power + 1), abs=1e-12)
    np.testing.assert_allclose(points[::2], ode_solver.clenshaw_curtis(4)[0], atol=1e-15)


def test_an_unsolved_ode_is_refused():
    with pytest.raises(UserError, match="1e-09: set a larger value"):
        ode.require_solved(np.array([20, ode_solver.MAX_STEPS]), 1e-9)
