"""The three terms against the distributions they are made of, enumeration, and limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.contract import bits_per_dim
from vdm.diffusion import decoder


def gaussian_kl(mean_q, var_q, mean_p, var_p):
    """KL(N(mean_q, var_q) ‖ N(mean_p, var_p)) per value, float64."""
    return 0.5 * (np.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1.0)


@pytest.mark.parametrize("timesteps", [1, 5, 1000])
def test_diffusion_term_is_the_kl_of_the_two_posteriors(timesteps):
    """½ T expm1(γ_t − γ_s) ‖ε − ε̂‖² = T KL(q(z_s|z_t, x) ‖ q(z_s|z_t, x̂(ε̂)))."""
    draw = np.random.default_rng(0)
    x = draw.uniform(-1, 1, (3, 4, 4, 2))
    eps, eps_hat = draw.normal(size=(2, *x.shape))
    step = draw.integers(1, timesteps + 1, 3)
    gamma_s, gamma_t = (-13.3 + 18.3 * (step - back) / timesteps for back in (1, 0))
    s, t = (g[:, None, None, None] for g in (gamma_s, gamma_t))

    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * t))) for sign in (1, -1))
    z_t = alpha * x + sigma * eps
    x_hat = (z_t - sigma * eps_hat) / alpha

    def posterior(x):
        """From Bayes' rule in float64; see test_encoder.py."""
        a2s, s2s, a2t = 1 / (1 + np.exp(s)), 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(t))
        ratio2, fresh = a2t / a2s, a2t * (np.exp(t) - np.exp(s))
        precision = ratio2 / fresh + 1 / s2s
        mean = (np.sqrt(ratio2) / fresh * z_t + np.sqrt(a2s) / s2s * x) / precision
        return mean, 1 / precision

    (mean_q, var), (mean_p, _) = posterior(x), posterior(x_hat)
    want = timesteps * gaussian_kl(mean_q, var, mean_p, var).sum((1, 2, 3))
    weight = elbo.step_weight(*map(jnp.float32, (gamma_s, gamma_t)), timesteps)
    got = elbo.diffusion(jnp.float32(eps), jnp.float32(eps_hat), weight[:, None, None, None])
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_finite_depth_approaches_continuous_time():
    """With ε − ε̂ a smooth function of γ, the sum over T steps tends to the integral as 1/T."""
    low, high = -6.0, 4.0

    def squared_error(gamma):
        return 1.0 / (1.0 + np.exp(-gamma)) + 0.1

    grid = np.linspace(low, high, 200_001)
    exact = np.trapezoid(0.5 * squared_error(grid), grid)
    errors = []
    for timesteps in (100, 400, 1600):
        gamma = np.linspace(low, high, timesteps + 1)
        weight = elbo.step_weight(jnp.float32(gamma[:-1]), jnp.float32(gamma[1:]), timesteps)
        eps = jnp.sqrt(jnp.float32(squared_error(gamma[1:])))[:, None]
        errors.append(float(elbo.diffusion(eps, 0 * eps, weight[:, None]).mean()) - exact)
    assert errors[0] > errors[1] > errors[2] > 0
    for coarse, fine in zip(errors, errors[1:]):
        assert 3.8 < coarse / fine < 4.5  # first order in 1/T
    assert errors[2] < 0.005 * exact


def test_prior_is_the_kl_to_a_standard_gaussian():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 3, 1))
    for gamma in (-2.0, 3.0, 5.0):
        alpha2, sigma2 = 1 / (1 + np.exp(gamma)), 1 / (1 + np.exp(-gamma))
        want = gaussian_kl(np.sqrt(alpha2) * x, sigma2, 0.0, 1.0).sum((1, 2, 3))
        np.testing.assert_allclose(elbo.prior(jnp.float32(x), jnp.float32(gamma)), want, rtol=1e-4)


@pytest.mark.parametrize("vocab_size", [2, 17, 256])
@pytest.mark.parametrize("gamma_0", [-13.3, -5.0, 2.0])
def test_decoder_is_a_distribution(vocab_size, gamma_0):
    """Over all levels the probabilities sum to one, and are those of float64."""
    z_0 = np.float32(np.random.default_rng(0).normal(size=64))
    every = jnp.broadcast_to(jnp.arange(vocab_size), (64, vocab_size))
    log_prob = jax.jit(decoder.log_prob, static_argnums=3)
    got = log_prob(every, jnp.asarray(z_0)[:, None], jnp.float32(gamma_0), vocab_size)
    assert got.max() <= 0.0
    np.testing.assert_allclose(np.exp(np.float64(got)).sum(-1), 1.0, rtol=2e-4)

    gamma = np.float64(np.float32(gamma_0))
    levels = (2 * np.arange(vocab_size) + 1) / vocab_size - 1
    logits = -0.5 * np.exp(-gamma) * (z_0[:, None] * np.sqrt(1 + np.exp(gamma)) - levels) ** 2
    top = logits.max(-1, keepdims=True)
    want = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    # Rounding z_0/α_0 (below 4) to float32 by up to 2^-23 moves the logits of levels that are
    # neighbours apart by e^-γ times the distance of the levels times that.
    near = want > -20
    rounding = np.exp(-gamma) * (2 / vocab_size) * 2.0**-23
    np.testing.assert_allclose(got[near], want[near], atol=1e-4 + 2 * rounding)


@pytest.mark.parametrize("gamma_0", [-7.0, 2.0])
def test_decoders_gradient_is_that_of_all_levels_at_once(gamma_0):
    """By z_0 and by γ_0, against autodiff of the softmax over all logits."""
    draw = np.random.default_rng(0)
    levels = jnp.asarray(draw.integers(0, 256, (40,)))
    x = (2.0 * levels + 1.0) / 256 - 1.0
    z_0 = x + 0.05 * jnp.float32(draw.normal(size=40))

    def plain(z_0, gamma_0):
        log_p = jax.nn.log_softmax(decoder.logits(z_0, gamma_0, 256))
        return jnp.take_along_axis(log_p, levels[:, None], axis=-1).sum()

    def ours(z_0, gamma_0):
        return decoder.log_prob(levels, z_0, gamma_0, 256).sum()

    got, want = (jax.grad(f, (0, 1))(z_0, jnp.float32(gamma_0)) for f in (ours, plain))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-3)


def test_reconstruction_against_enumeration():
    """E[−log p(x|z_0)] by quadrature over z_0 for each level, against an average of draws."""
    vocab_size, gamma_0, draws = 5, -2.0, 40_000
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    levels = (2 * np.arange(vocab_size) + 1) / vocab_size - 1
    alpha, sigma = np.sqrt(1 / (1 + np.exp(gamma_0))), np.sqrt(1 / (1 + np.exp(-gamma_0)))
    exact = []
    for i in range(vocab_size):
        z = alpha * levels[i] + sigma * nodes
        likelihood = np.exp(-((z[:, None] - alpha * levels) ** 2) / (2 * sigma**2))
        nats = -np.log(likelihood[:, i] / likelihood.sum(-1))
        exact.append((weights * nats).sum() / weights.sum())

    x_levels = jnp.tile(jnp.arange(vocab_size), draws)[:, None, None, None]
    eps = jax.random.normal(jax.random.key(0), x_levels.shape)
    got = elbo.reconstruction(x_levels, eps, jnp.float32(gamma_0), vocab_size)
    got = np.asarray(got, np.float64).reshape(draws, vocab_size)
    assert np.all(np.abs(got.mean(0) - exact) < 4 * got.std(0) / math.sqrt(draws))


def test_bits_per_dim():
    """A uniform choice among V levels costs log2 V bits for each value, whatever the shape."""
    for shape, vocab_size in (((8, 8, 1), 17), ((32, 32, 3), 256), ((1, 1, 2), 2)):
        nats = math.prod(shape) * math.log(vocab_size)
        assert bits_per_dim(nats, shape) == pytest.approx(math.log2(vocab_size))
