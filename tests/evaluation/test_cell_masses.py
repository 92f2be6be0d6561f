"""The bounds of the ODE against the exact probability of each level, for a denoiser that is not optimal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm.diffusion import dequantisation
from vdm.evaluation import ode_solver

LEVELS, HIGH = 5, 6.0
DRAWS = 10_000


def eps_hat(z, gamma, sigma, module):
    """ε̂ of one value: a smooth function of z and γ that fits no data."""
    return 0.9 * sigma * z + 0.3 * module.tanh(2.0 * z - 0.1 * gamma)


def flow(z, low):
    """Carries z from γ = `low` to HIGH by RK4 in float64, with 1,000 steps of dz/dγ = ½ σ (ε̂ − σ z)."""
    steps = 1000
    width = (HIGH - low) / steps

    def slope(z, gamma):
        sigma = 1.0 / np.sqrt(1.0 + np.exp(-gamma))
        return 0.5 * sigma * (eps_hat(z, gamma, sigma, np) - sigma * z)

    for i in range(steps):
        gamma = low + i * width
        a = slope(z, gamma)
        b = slope(z + 0.5 * width * a, gamma + 0.5 * width)
        c = slope(z + 0.5 * width * b, gamma + 0.5 * width)
        z = z + width / 6.0 * (a + 2.0 * b + 2.0 * c + slope(z + width * c, gamma + width))
    return z


def exact_log_density(z, low, h=1e-4):
    """log p(z) = log N(F(z)) + log F'(z), with F' by finite differences of the float64 flow."""
    slope = (flow(z + h, low) - flow(z - h, low)) / (2.0 * h)
    return stats.norm.logpdf(flow(z, low)) + np.log(slope)


def exact_bounds(kind, low):
    """E_q[log p(z) − log q(z)] for each cell by the midpoint rule, with q uniform on the cell or N(α x, σ²)
    truncated to it."""
    points, alpha, sigma = 400, 1.0 / np.sqrt(1.0 + np.exp(low)), 1.0 / np.sqrt(1.0 + np.exp(-low))
    away = alpha * ((2.0 * np.arange(points) + 1.0) / points - 1.0) / LEVELS  # from a cell's middle
    q = np.ones(points) if kind == "uniform" else np.exp(-0.5 * (away / sigma) ** 2)
    q /= q.sum()
    middles = alpha * ((2.0 * np.arange(LEVELS) + 1.0) / LEVELS - 1.0)
    log_p = exact_log_density(middles[:, None] + away, low)
    return (log_p - np.log(q / (away[1] - away[0]))) @ q


def exact_masses(low):
    """The probability of each cell. In one dimension the flow preserves order, so this is the mass of N(0, 1)
    between the cell's borders at HIGH."""
    borders = 2.0 * np.arange(LEVELS + 1) / LEVELS - 1.0
    return np.diff(stats.norm.cdf(flow(borders / np.sqrt(1.0 + np.exp(low)), low)))


@pytest.fixture(scope="module")
def solve():
    """(z, γ where the flow starts) → log p(z) and its change with half the nodes, float64."""

    def denoiser(z, gamma, condition):
        gamma = gamma[:, None, None, None]
        return eps_hat(z, gamma, jnp.sqrt(jax.nn.sigmoid(gamma)), jnp)

    @jax.jit
    def density(z, start):
        z = z[:, None, None, None]
        keys = jax.random.split(jax.random.key(0), len(z))
        found = ode_solver.flow_log_density(
            denoiser, z, None, (start, HIGH), keys, 64, 1e-6, exact_divergence=True
        )
        return found["log_density"], found["quadrature"]

    return lambda z, start: [np.asarray(value, np.float64) for value in density(jnp.float32(z), start)]


def draw(kind, gamma_0):
    """Points of each cell: z [levels · draws], the γ of z, and −log q(z)."""
    levels = jnp.repeat(jnp.arange(LEVELS), DRAWS // LEVELS)[:, None, None, None]
    keys = jax.random.split(jax.random.key(3), len(levels))
    z, start, nats = dequantisation.dequantise(kind, keys, levels, jnp.float32(gamma_0), LEVELS)
    return np.asarray(z, np.float64).ravel(), float(start), np.asarray(nats, np.float64)


# Uniform noise in a cell has the variance of the model's noise at γ = −2 log(V√3) = −4.32.
@pytest.mark.slow
@pytest.mark.parametrize(
    "gamma_0, uniform_start",
    [(-6.5, -2.0 * np.log(5.0 * np.sqrt(3.0))), (-3.0, -3.0)],
)
def test_the_bounds_are_below_the_exact_masses(solve, gamma_0, uniform_start):
    """The density integrates to P over each cell, and E[log w] lies below log P, where quadrature puts it.
    Normal noise uses the flow from γ_0; uniform noise uses another flow, from its own starting γ."""
    for kind, low in (("normal", gamma_0), ("uniform", uniform_start)):
        assert float(dequantisation.start(kind, jnp.float32(gamma_0), LEVELS)) == pytest.approx(low, rel=1e-6)
        masses, alpha = exact_masses(low), 1.0 / np.sqrt(1.0 + np.exp(low))
        grid = alpha * ((2.0 * np.arange(LEVELS * 400) + 1.0) / (LEVELS * 400) - 1.0)
        log_p, _ = solve(grid, low)
        integral = np.exp(log_p).reshape(LEVELS, -1).mean(axis=1) * 2.0 * alpha / LEVELS
        np.testing.assert_allclose(integral, masses, rtol=5e-4)
        z, start, nats = draw(kind, gamma_0)
        assert start == pytest.approx(low, rel=1e-6)
        log_w = (solve(z, low)[0] + nats).reshape(LEVELS, -1)
        se = log_w.std(axis=1, ddof=1) / np.sqrt(log_w.shape[1])
        bounds = exact_bounds(kind, low)
        assert np.all(bounds < np.log(masses))
        assert np.all(np.abs(log_w.mean(axis=1) - bounds) < 4.0 * se + 2e-4) and se.max() < 0.02
        if kind == "uniform":
            w = np.exp(log_w)
            errors = w.std(axis=1, ddof=1) / np.sqrt(w.shape[1])
            assert np.all(np.abs(w.mean(axis=1) - masses) < 4.0 * errors) and np.all(errors < 0.02 * masses)
    if gamma_0 < uniform_start:
        apart = np.abs(np.log(exact_masses(gamma_0)) - np.log(exact_masses(uniform_start)))
        assert apart.max() > 0.05, "the two flows are different models"


def test_the_density_is_that_of_a_fine_rule(solve):
    """By finite differences of the float64 flow. The change with half the nodes is the error of 32 nodes."""
    z = np.linspace(-0.9, 0.9, 50)
    log_p, quadrature = solve(z, -6.5)
    assert np.abs(log_p - exact_log_density(z, -6.5)).max() < 2e-4
    assert quadrature.max() < 1e-3
