"""Dequantisation: the points' positions and their density."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.diffusion import process
from vdm.diffusion.dequantisation import dequantise, start


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_dequantisation_stays_in_the_cell_and_knows_its_density(kind):
    """z/α lies in its level's cell, and a histogram agrees with the density q."""
    levels = jnp.full((20_000, 1), 2)
    keys = jax.random.split(jax.random.key(0), 20_000)
    z, gamma, nats = dequantise(kind, keys, levels, jnp.float32(-3.0), 3)
    offset = np.asarray(z[:, 0] / process.alpha(gamma) - process.scale(levels[0], 3)) * 3.0
    assert np.all(np.abs(offset) <= 1.0 + 1e-5)
    edges = np.linspace(-1.0, 1.0, 11)
    width = 0.2 * float(process.alpha(gamma)) / 3.0
    total = 0.0
    counts, _ = np.histogram(offset, edges)
    for low, high, count in zip(edges, edges[1:], counts):
        inside = (offset >= low) & (offset < high)
        expected = 20_000 * width * np.mean(np.exp(-np.asarray(nats)[inside]))
        assert abs(count - expected) < 5.0 * math.sqrt(expected)
        total += expected
    assert total == pytest.approx(20_000, rel=5e-3)


@pytest.mark.parametrize("vocab_size", [3, 256])
def test_uniform_noise_is_taken_for_normal_noise_of_its_variance(vocab_size):
    """σ²/α² is the variance of uniform noise on ± 1/V, 1/(3 V²), unless γ_0 has more noise: then γ is γ_0."""
    gamma = np.float64(start("uniform", jnp.float32(-30.0), vocab_size))
    sigma2, alpha2 = 1.0 / (1.0 + np.exp(-gamma)), 1.0 / (1.0 + np.exp(gamma))
    assert sigma2 / alpha2 == pytest.approx(1.0 / (3.0 * vocab_size**2), rel=1e-5)
    assert start("uniform", jnp.float32(2.0), vocab_size) == 2.0
    assert start("normal", jnp.float32(-30.0), vocab_size) == -30.0


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'gaussian'; accepted: 'normal', 'latent', 'uniform'"):
        start("gaussian", jnp.float32(-9.0), 256)
