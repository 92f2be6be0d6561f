"""The profile: its distribution of times, and its error bars."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from vdm.contract import Denoising
from vdm.evaluation.elbo import make_elbo
from vdm.evaluation.profile import BINS, Profile, of_time

PARAMS = {"schedule": {}, "net": {}}


@pytest.mark.parametrize("images, low, high", [(40, 0.4, 0.6), (200_000, 0.05, 0.08)])
def test_profile_puts_times_where_the_spread_is(images, low, high):
    """If a term varies only for t > ½, nine tenths of the times and half of the uniform tenth go there, once
    there are enough draws; one draw per part says nothing."""
    profile, t = Profile(images), (np.arange(images) + 0.5) / images
    noise = np.where(t > 0.5, np.random.default_rng(0).normal(size=images), 0.0)
    profile.add({"t": t, "time_weight": np.ones(images), "diffusion": 1.0 + noise, "error": t})
    cdf = profile.cdf()
    assert cdf[0] == 0 and cdf[-1] == 1 and np.all(np.diff(cdf) > 0)
    assert low <= cdf[BINS // 2] <= high


def test_the_profiles_error_bars_are_its_spread():
    """Over evaluations with different noise, each of two sets with times from Profile.cdf."""
    log_p = exact.log_probabilities((2, 2, 1), 5)
    images, _ = exact.images(log_p, 512)
    model, data = exact.model(log_p, -8.0, 5.0), exact.split(images, 5)
    values, errors = [], []
    for seed in range(5):
        config = exact.config()
        config.seed = seed
        _, profile = make_elbo(model, config, data)(PARAMS, 20)
        columns = profile.summary(np.linspace(-8.0, 5.0, BINS + 1), 0.0, (2, 2, 1), 5)
        values.append(columns["per_t"])
        errors.append(columns["per_t_se"])
    spread, se = np.std(values, axis=0, ddof=1), np.mean(errors, axis=0)
    some = se > 0.1 * se.max()
    # The error includes images and noise, the spread only noise, which is most of the error here.
    assert 0.6 < np.sqrt(np.mean(spread[some] ** 2) / np.mean(se[some] ** 2)) < 1.2


def test_its_columns_are_those_of_its_draws():
    """From random draws and weights, two per image: bits by t and by γ, the rate, the error of x̂ in levels,
    and the standard error that the delete-one jackknife gives for a ratio of means."""
    random, images, shape = np.random.default_rng(1), 20_000, (2, 1, 1)
    t, weight = random.uniform(size=(2, images)), random.uniform(0.5, 2.0, size=(2, images))
    nats = random.gamma(2.0, size=(2, images)) * weight
    error = random.gamma(1.0, size=(2, images))
    profile = Profile(images)
    for k in range(2):
        draw = {"t": t[k], "time_weight": weight[k], "diffusion": nats[k], "error": error[k]}
        profile.add(draw)
    gamma = np.linspace(-6.0, 4.0, BINS + 1) + 0.5 * np.sin(np.arange(BINS + 1))
    columns = profile.summary(gamma, 0.25, shape, 16)
    bits = nats / (2.0 * np.log(2.0))  # an image has two values
    for part in (0, BINS // 3, BINS - 1):
        here = np.floor(t * BINS) == part
        assert columns["per_t"][part] == pytest.approx((bits * here).sum() * BINS / (2 * images))
        slope = (gamma[part + 1] - gamma[part]) * BINS
        assert columns["per_gamma"][part] == pytest.approx(columns["per_t"][part] / slope)
        squared = (error * weight * here).sum() / (weight * here).sum() / 2.0
        assert columns["rmse"][part] == pytest.approx(np.sqrt(squared) * 8.0)
        # The weighted mean of the draws in this part, times the mean weight of the part.
        y, w = (np.sum(values * here, axis=0) for values in (bits * BINS / 2.0, weight))
        left_out = (y.sum() - y) / (w.sum() - w) * w.mean()
        jackknife = np.sqrt((images - 1) / images * np.sum((left_out - left_out.mean()) ** 2))
        assert columns["per_t_se"][part] == pytest.approx(jackknife, rel=0.02)
    assert columns["rate_edges"][-1] == 0.25
    assert columns["rate_edges"][0] == pytest.approx(0.25 + bits.mean(), rel=1e-6)


def test_the_error_is_that_of_x_hat():
    """‖x − x̂‖², with x̂ = (z − σ ε̂)/α, in float64."""
    random, gamma = np.random.default_rng(0), np.array([-3.0, 0.5, 2.0])
    x, eps, eps_hat = random.normal(size=(3, 3, 2, 2, 1))
    over = gamma[:, None, None, None]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(over))), np.sqrt(1 / (1 + np.exp(-over)))
    x_hat = (alpha * x + sigma * eps - sigma * eps_hat) / alpha
    drawn = Denoising(gamma, np.ones(3), gamma, np.ones(3), x, eps, None, eps, eps_hat, None, None)
    found = of_time(jax.tree.map(jnp.float32, drawn))
    np.testing.assert_allclose(found["error"], np.square(x - x_hat).sum(axis=(1, 2, 3)), rtol=1e-5)
