"""The bound's terms against the distributions that define them, enumeration and limits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_helpers import gaussian_kl, rng
import exact
from vdm.contract import bits_per_dim
from vdm.diffusion.denoiser import Eps
from vdm.diffusion.schedule import FixedLinear

NOTHING = {"schedule": {}, "net": {}}


@dataclasses.dataclass(frozen=True)
class Says:
    """A network that returns these numbers for any input."""

    output: np.ndarray

    def predict(self, *args):
        return self.output


@pytest.mark.parametrize("timesteps", [1, 5, 1000])
def test_model_diffusion_term_is_the_kl_of_the_two_posteriors(timesteps):
    """For one step the term is T KL(q(z_s|z_t, x) ‖ q(z_s|z_t, x̂(ε̂))), for any x and ε̂."""
    draw = np.random.default_rng(0)
    x, output = draw.uniform(-1, 1, (3, 4, 4, 2)), draw.normal(size=(3, 4, 4, 2))
    made = exact.model(np.zeros((4, 4, 2, 2)), -13.3, 5.0, timesteps)
    made = dataclasses.replace(made, net=Says(jnp.float32(output)), parameterisation=Eps())
    nothing = lambda eps_0, gamma_0: jnp.zeros(3)
    terms, denoising = made.bound(NOTHING, rng(0, 3), {}, jnp.float32(x), nothing)

    step = np.minimum(np.floor(np.float64(denoising.t) * timesteps) + 1, timesteps)
    gamma_s, gamma_t = (-13.3 + 18.3 * (step - back) / timesteps for back in (1, 0))
    s, t = (g[:, None, None, None] for g in (gamma_s, gamma_t))
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * t))) for sign in (1, -1))
    z_t = alpha * x + sigma * np.float64(denoising.eps)
    x_hat = (z_t - sigma * (z_t + output)) / alpha

    def posterior(x):
        """From Bayes' rule in float64; see test_process.py."""
        a2s, s2s, a2t = 1 / (1 + np.exp(s)), 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(t))
        ratio2, fresh = a2t / a2s, a2t * (np.exp(t) - np.exp(s))
        precision = ratio2 / fresh + 1 / s2s
        mean = (np.sqrt(ratio2) / fresh * z_t + np.sqrt(a2s) / s2s * x) / precision
        return mean, 1 / precision

    (mean_q, var), (mean_p, _) = posterior(x), posterior(x_hat)
    want = timesteps * gaussian_kl(mean_q, var, mean_p, var).sum((1, 2, 3))
    np.testing.assert_allclose(terms["diffusion"], want, rtol=1e-4)


def test_finite_depth_approaches_continuous_time():
    """If ε − ε̂ is a smooth function of γ, the sum over T steps differs from the integral by O(1/T)."""
    low, high = -6.0, 4.0

    def squared_error(gamma):
        return 1.0 / (1.0 + np.exp(-gamma)) + 0.1

    schedule = FixedLinear(shape=(1, 1, 1), gamma_min=low, gamma_max=high)
    grid = np.linspace(low, high, 200_001)
    exact = np.trapezoid(0.5 * squared_error(grid), grid)
    errors = []
    for timesteps in (100, 400, 1600):
        t = jnp.float32((np.arange(timesteps) + 0.5) / timesteps)
        _, gamma, weight = map(np.float64, schedule.at({}, t, timesteps))
        np.testing.assert_allclose(gamma, np.linspace(low, high, timesteps + 1)[1:], atol=2e-6)
        errors.append(np.mean(0.5 * weight * squared_error(gamma)) - exact)
    assert errors[0] > errors[1] > errors[2] > 0
    for coarse, fine in zip(errors, errors[1:]):
        assert 3.8 < coarse / fine < 4.5  # first order in 1/T
    assert errors[2] < 0.005 * exact


def test_reconstruction_against_enumeration():
    """E[−log p(x|z_0)] by quadrature over z_0 for each level, against an average of draws."""
    vocab_size, gamma_0, draws = 5, -2.0, 40_000
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    levels = (2 * np.arange(vocab_size) + 1) / vocab_size - 1
    alpha, sigma = np.sqrt(1 / (1 + np.exp(gamma_0))), np.sqrt(1 / (1 + np.exp(-gamma_0)))
    truth = []
    for i in range(vocab_size):
        z = alpha * levels[i] + sigma * nodes
        likelihood = np.exp(-((z[:, None] - alpha * levels) ** 2) / (2 * sigma**2))
        nats = -np.log(likelihood[:, i] / likelihood.sum(-1))
        truth.append((weights * nats).sum() / weights.sum())

    made = exact.model(np.zeros((1, 1, 1, vocab_size)), gamma_0, 4.0)
    batch = {"image": jnp.tile(jnp.arange(vocab_size), draws).reshape(-1, 1, 1, 1)}
    draw = jax.jit(lambda: made.draw(NOTHING, rng(0, vocab_size * draws), batch).terms["reconstruction"])
    got = np.asarray(draw(), np.float64).reshape(draws, vocab_size)
    assert np.all(np.abs(got.mean(0) - truth) < 4 * got.std(0) / math.sqrt(draws))


def test_bits_per_dim():
    """A uniform choice among V levels costs log2 V bits per value, for any shape."""
    for shape, vocab_size in (((8, 8, 1), 17), ((32, 32, 3), 256), ((1, 1, 2), 2)):
        nats = math.prod(shape) * math.log(vocab_size)
        assert bits_per_dim(nats, shape) == pytest.approx(math.log2(vocab_size))
