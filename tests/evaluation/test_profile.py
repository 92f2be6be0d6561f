"""The profile: where it puts times, and its error bars."""

import numpy as np
import pytest

import exact
from vdm.evaluation.elbo import make_elbo
from vdm.evaluation.profile import BINS, Profile

PARAMS = {"schedule": {}, "net": {}}


@pytest.mark.parametrize("images, low, high", [(40, 0.4, 0.6), (200_000, 0.05, 0.08)])
def test_profile_puts_times_where_the_spread_is(images, low, high):
    """A term that varies in t > ½ only: nine tenths of the times and half a tenth go there, once there are
    enough draws; one draw a part says nothing."""
    profile, t = Profile(images), (np.arange(images) + 0.5) / images
    noise = np.where(t > 0.5, np.random.default_rng(0).normal(size=images), 0.0)
    profile.add({"t": t, "time_weight": np.ones(images), "diffusion": 1.0 + noise, "error": t})
    cdf = profile.cdf()
    assert cdf[0] == 0 and cdf[-1] == 1 and np.all(np.diff(cdf) > 0)
    assert low <= cdf[BINS // 2] <= high


def test_the_profiles_error_bars_are_its_spread():
    """Over evaluations of other noise, each of two sets under the times of Profile.cdf."""
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
    # The error counts images and noise, the spread noise alone: most of it here, and never more of it.
    assert 0.6 < np.sqrt(np.mean(spread[some] ** 2) / np.mean(se[some] ** 2)) < 1.2
