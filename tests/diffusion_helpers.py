"""Helpers for tests: a small VDM with parameters and a batch, and likelihoods computed without vdm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config
from vdm import run as run_lib
from vdm.data.dataset import Spec
from vdm.runtime.randomness import Rng

SPEC = Spec((4, 4, 1), 17, 10)


def small(**fields):
    """(a small VDM with these config fields, its parameters, a batch of 64 random images)."""
    net = {"name": "mlp", "depth": 1, "width": 16, "fourier": 0, "dropout": 0.0}
    made = run_lib.build_model(
        make_config({f"model.net.{name}": value for name, value in net.items()} | fields), SPEC
    )
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 17, (64, 4, 4, 1)).astype(np.uint8),
        "label": random.integers(0, 10, 64).astype(np.int32),
        "augmented": np.zeros(64, np.float32),
    }
    return made, jax.jit(made.init)(jax.random.key(0), batch), batch


def rng(number=0, size=64):
    return Rng(jax.random.key(number), jnp.arange(size), size)


def gaussian_kl(mean_q, var_q, mean_p, var_p):
    """KL(N(mean_q, var_q) ‖ N(mean_p, var_p)) per value, float64."""
    return 0.5 * (np.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1.0)


def brute_force(log_q, gammas, points=3001):
    """log p(x) of each level under a chain on one value, by sums over a grid of z in float64.

    Independent of vdm: posterior, denoiser and decoder are computed here from α and σ.
    """
    levels = np.array([(2 * v + 1) / len(log_q) - 1 for v in range(len(log_q))])
    z = np.linspace(-8.0, 8.0, points)
    alpha2 = 1.0 / (1.0 + np.exp(np.asarray(gammas, np.float64)))
    alpha, sigma2 = np.sqrt(alpha2), 1.0 - alpha2

    def softmax(logits):
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return p / p.sum(axis=-1, keepdims=True)

    def likelihoods(i):
        return -0.5 * (z[:, None] - alpha[i] * levels) ** 2 / sigma2[i]

    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    for t in range(len(gammas) - 1, 0, -1):
        s = t - 1
        x_hat = softmax(likelihoods(t) + log_q) @ levels
        ratio = alpha[t] / alpha[s]
        fresh = sigma2[t] - ratio**2 * sigma2[s]
        mean = ratio * sigma2[s] / sigma2[t] * z + alpha[s] * fresh / sigma2[t] * x_hat
        variance = fresh * sigma2[s] / sigma2[t]
        kernel = np.exp(-0.5 * (z[None, :] - mean[:, None]) ** 2 / variance)
        density = density @ (kernel / np.sqrt(2 * np.pi * variance)) * (z[1] - z[0])
    assert density.sum() * (z[1] - z[0]) == pytest.approx(1.0, abs=1e-6)
    return np.log(density @ softmax(likelihoods(0)) * (z[1] - z[0]))
