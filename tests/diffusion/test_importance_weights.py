"""The chain's log weight against brute-force integration."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from vdm.diffusion import decoder, process
from vdm.evaluation.importance import importance_bound


def brute_force(log_q, gammas, points=3001):
    """log p(x) of each level under a chain on one value, float64, by sums over a grid of z.

    Written apart from vdm: its own posterior, denoiser and decoder, from α and σ.
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


def test_path_against_brute_force():
    """E[w] = p(x); ELBO ≤ the K-sample bound ≤ log p(x), rising with K; all of it for each of three levels,
    under a denoiser that is wrong, so that every gap is real."""
    log_q = np.log(np.array([0.7, 0.1, 0.2]))
    gammas = np.array([-2.0, 0.0, 2.0, 4.0])
    truth = brute_force(log_q, gammas)
    assert np.exp(truth).sum() == pytest.approx(1.0, abs=1e-6)
    model = exact.model(log_q.reshape(1, 1, 1, 3), -2.0, 4.0, timesteps=3)
    levels = jnp.repeat(jnp.arange(3), 32_768).reshape(-1, 1, 1, 1)

    @jax.jit
    def log_weights(key):
        keys = jax.random.split(key, levels.shape[0])
        eps_hat = lambda *args: model.eps_hat({"net": {}}, *args)  # noqa: E731
        x, steps = process.scale(levels, 3), jnp.asarray(gammas, jnp.float32)
        log_p = decoder.log_likelihood(levels, steps[0], 3)
        target = lambda eps, gamma_s, gamma_t: (x, eps)
        return importance_weights.log_weight(eps_hat, x, log_p, None, steps, keys, target)

    log_w = np.asarray(log_weights(jax.random.key(0)), np.float64).reshape(3, -1).T
    w = np.exp(log_w - truth)
    assert np.all(np.abs(w.mean(axis=0) - 1.0) < 4.0 * w.std(axis=0) / math.sqrt(len(w)))

    bounds = [importance_bound(log_w, k) for k in (1, 4, 32)]
    means = np.array([bound.mean(axis=0) for bound in bounds])
    errors = np.array([bound.std(axis=0) / math.sqrt(len(bound)) for bound in bounds])
    assert np.all(np.diff(means, axis=0) > 3.0 * errors[:-1])  # the gaps are large here
    assert np.all(means < truth + 3.0 * errors)
    assert np.all(truth - means[-1] < 0.2 * (truth - means[0]) + 3.0 * errors[-1])
