"""The chain's log weights against brute-force integration."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_helpers import brute_force, rng
import exact
from vdm.diffusion import decoder, importance_weights, process
from vdm.evaluation.importance_weighted import importance_bound
from weight_helpers import assert_weights_of_samples


def test_path_against_brute_force():
    """For each of three levels, E[w] = p(x), and ELBO ≤ the K-sample bound ≤ log p(x), rising with K. The
    chain has only three steps, so every gap is real."""
    log_q = np.log(np.array([0.7, 0.1, 0.2]))
    gammas = np.array([-2.0, 0.0, 2.0, 4.0])
    truth = brute_force(log_q, gammas)
    assert np.exp(truth).sum() == pytest.approx(1.0, abs=1e-6)
    model = exact.model(log_q.reshape(1, 1, 1, 3), -2.0, 4.0, timesteps=3)
    levels = jnp.repeat(jnp.arange(3), 32_768).reshape(-1, 1, 1, 1)

    @jax.jit
    def log_weights(key):
        keys = jax.random.split(key, levels.shape[0])
        eps_hat = lambda z, gamma: model.eps_hat({"net": {}}, z, gamma, None)
        x, steps = process.scale(levels, 3), jnp.asarray(gammas, jnp.float32)
        log_p = decoder.log_likelihood(levels, steps[0], 3)
        target = lambda x, eps, gamma_t, gamma_s: (x, eps)
        return importance_weights.log_weight(eps_hat, x, log_p, steps, keys, target)

    log_w = np.asarray(log_weights(jax.random.key(0)), np.float64).reshape(3, -1).T
    w = np.exp(log_w - truth)
    assert np.all(np.abs(w.mean(axis=0) - 1.0) < 4.0 * w.std(axis=0) / math.sqrt(len(w)))

    bounds = [importance_bound(log_w, k) for k in (1, 4, 32)]
    means = np.array([bound.mean(axis=0) for bound in bounds])
    errors = np.array([bound.std(axis=0) / math.sqrt(len(bound)) for bound in bounds])
    assert np.all(np.diff(means, axis=0) > 3.0 * errors[:-1])  # the gaps are large here
    assert np.all(means < truth + 3.0 * errors)
    assert np.all(truth - means[-1] < 0.2 * (truth - means[0]) + 3.0 * errors[-1])


def test_weights_of_samples_against_brute_force():
    """Paths drawn from the model give x with probability p(x). The mean of log w over them is above log p(x);
    over paths drawn from q it is below."""
    log_q, count = np.log(np.array([0.7, 0.1, 0.2])), 60_000
    truth = brute_force(log_q, np.array([-2.0, 1.0, 4.0]))
    model = exact.model(log_q.reshape(1, 1, 1, 3), -2.0, 4.0, timesteps=2)
    params, draws = {"schedule": {}, "net": {}}, rng(0, count)
    image, above = jax.jit(lambda: model.sample_and_log_weight(params, draws, {}))()
    below = jax.jit(lambda batch: model.log_weight(params, rng(1, count), batch))({"image": image})
    drawn = np.asarray(image).ravel()
    assert_weights_of_samples(model, params, np.arange(3).reshape(3, 1, 1, 1), count)
    for x, log_p in enumerate(truth):
        share, p = np.mean(drawn == x), math.exp(log_p)
        assert abs(share - p) < 4.0 * math.sqrt(p * (1.0 - p) / count)
        upper, lower = (np.asarray(log_w, np.float64)[drawn == x] for log_w in (above, below))
        errors = [bound.std() / math.sqrt(len(bound)) for bound in (upper, lower)]
        assert lower.mean() + 4.0 * errors[1] < log_p < upper.mean() - 4.0 * errors[0]  # the gaps are large
