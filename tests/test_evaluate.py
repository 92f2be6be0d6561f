"""Evaluation: its mean, its two error bars, its units, and that no schedule changes it."""

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tqdm import tqdm

import exact
from vdm.diffusion import schedule
from vdm.evaluation import evaluate
from vdm.evaluation.profile import BINS, Profile
from vdm.runtime.randomness import Rng, Spread

PARAMS = {"schedule": {}, "net": {}}


@pytest.fixture(scope="module")
def digits_like():
    """An optimal denoiser, 512 pictures and their true bits/dim."""
    log_p = exact.log_probabilities((2, 2, 1), 5)
    return log_p, *exact.pictures(log_p, 512)


def spread(passes, number, images=16, seed=0):
    return Spread(jax.random.key(seed), jnp.arange(images), *map(jnp.int32, (number, images, passes)))


# ---- the draws --------------------------------------------------------------------------


def test_spread_noise_is_normal_and_its_passes_lie_apart():
    """Each pass alone is standard normal; the passes of one value are spread over its quantiles."""
    noise = jnp.stack([spread(8, k, images=500).normal(1, (8,)) for k in range(8)])
    for one in noise:
        assert stats.kstest(np.asarray(one).ravel(), "norm").pvalue > 1e-3
    quantiles = np.sort(stats.norm.cdf(np.asarray(noise, np.float64)), axis=0)
    widest = np.diff(quantiles, axis=0, append=quantiles[:1] + 1.0).max(axis=0)
    assert widest.max() < 0.25  # by the golden ratio; chance gives 0.34 on average, up to 0.8
    # Values start independently of each other.
    assert abs(np.corrcoef(noise[0, :, 0], noise[0, :, 1])[0, 1]) < 0.2


def test_spread_times_cover_each_stratum_once():
    """Of one image over its passes, and of all images over all passes."""
    strata = np.stack([spread(5, k).strata() for k in range(5)])
    assert np.all(np.diff(np.sort(strata, axis=0), axis=0) == pytest.approx(0.2, abs=1e-6))
    assert len(np.unique(np.floor(strata * 80 + 1e-3))) == 80


@pytest.mark.parametrize("images, low, high", [(40, 0.4, 0.6), (200_000, 0.05, 0.08)])
def test_profile_puts_times_where_the_spread_is(images, low, high):
    """A term that varies in t > ½ only: nine tenths of the times and half a tenth go there, once
    enough draws have been seen; one draw a part tells nothing."""
    profile, t = Profile(images), (np.arange(images) + 0.5) / images
    noise = np.where(t > 0.5, np.random.default_rng(0).normal(size=images), 0.0)
    draw = {"t": t, "weight": np.ones(images), "diffusion": 1.0 + noise, "error": t}
    profile.add(draw)
    cdf = profile.cdf()
    assert cdf[0] == 0 and cdf[-1] == 1 and np.all(np.diff(cdf) > 0)
    assert low <= cdf[BINS // 2] <= high


def test_the_profiles_error_bars_are_its_spread(digits_like):
    """Over evaluations of other noise, each of two sets under the times of Profile.cdf."""
    log_p, images, _ = digits_like
    made, data = exact.model(log_p, -8.0, 5.0), exact.split(images, 5)
    found, told = [], []
    for seed in range(5):
        config = exact.config()
        config.seed = seed
        _, profile = evaluate.make_evaluator(made, config, data)(PARAMS, 20)
        columns = profile.summary(np.linspace(-8.0, 5.0, BINS + 1), 0.0, (2, 2, 1), 5)
        found.append(columns["per_t"])
        told.append(columns["per_t_se"])
    seen, told = np.std(found, axis=0, ddof=1), np.mean(told, axis=0)
    some = told > 0.1 * told.max()
    # Told are images and noise, seen is noise alone: most of it here, and never more of it.
    assert 0.6 < np.sqrt(np.mean(seen[some] ** 2) / np.mean(told[some] ** 2)) < 1.2


# ---- error bars -------------------------------------------------------------------------


def test_combine_by_hand():
    """Two sets of 1 and 3 passes over two images: means, spread and both errors, in bits/dim."""
    nat = math.log(2.0) * 4  # of one bit/dim for four dimensions
    sets = [(1, {"a": np.array([2.0, 4.0]) * nat}), (3, {"a": np.array([12.0, 12.0]) * nat})]
    estimate = evaluate.combine(sets, (2, 2, 1))
    np.testing.assert_allclose(estimate.values["bpd"], [3.5, 4.0])
    # One degree of freedom: Σ n (m − mean)²/passes is 0.75 and 0; over two images.
    assert estimate.noise["bpd"] == pytest.approx(math.sqrt((0.75 + 0.0) / 2 / 2))
    assert estimate.se["bpd"] == pytest.approx(0.25)
    assert math.isnan(evaluate.combine(sets[:1], (2, 2, 1)).noise["bpd"])


def estimates(made, images, sets, length, spread_out=True):
    """Estimates of two sets of draws each: spread evenly, or independent draws of everything."""

    def draw(params, rng, batch, _):
        if spread_out:
            return made.loss(params, rng, batch, False)
        key = jax.random.fold_in(rng.key, rng.number)
        independent = dataclasses.replace(made, times="iid")
        return independent.loss(params, Rng(key, rng.index, rng.images), batch, False)

    one_pass = evaluate.over_split(draw, exact.config(), exact.split(images, made.vocab_size))

    def one_set(number):
        drawn = [
            one_pass(PARAMS, (number, k, length), np.float32(0), len(images), tqdm(disable=True))
            for k in range(length)
        ]
        return length, jax.tree.map(lambda *terms: sum(terms), *drawn)

    pairs = [(one_set(2 * i), one_set(2 * i + 1)) for i in range(sets // 2)]
    return [evaluate.combine(pair, made.shape) for pair in pairs]


def test_the_noise_told_is_the_noise_there_is(digits_like):
    """Over 24 evaluations the spread of the result is what one evaluation tells of itself."""
    log_p, images, _ = digits_like
    found = estimates(exact.model(log_p, -8.0, 5.0), images, 48, 10)
    seen = np.std([estimate.mean["bpd"] for estimate in found], ddof=1)
    told = math.sqrt(np.mean([estimate.noise["bpd"] ** 2 for estimate in found]))
    assert told / 1.5 < seen < 1.5 * told  # it is known to ± 15%


def test_spread_draws_beat_independent_ones(digits_like):
    """At the same number of network evaluations; and both have the same mean."""
    log_p, images, _ = digits_like
    made, data = exact.model(log_p, -8.0, 5.0), exact.split(images, 5)
    independent = estimates(made, images, 8, 10, spread_out=False)
    told_iid = math.sqrt(np.mean([estimate.noise["bpd"] ** 2 for estimate in independent]))
    estimate, _ = evaluate.make_evaluator(made, exact.config(), data)(PARAMS, 80)
    assert estimate.noise["bpd"] < 0.6 * (told_iid / 2.0)  # of four times the passes
    mean_iid = np.mean([estimate.mean["bpd"] for estimate in independent])
    assert abs(estimate.mean["bpd"] - mean_iid) < 3.0 * told_iid / 2.0


def test_target_is_met_or_the_budget_spent(digits_like):
    log_p, images, _ = digits_like
    made, data = exact.model(log_p, -8.0, 5.0), exact.split(images, 5)
    evaluator = evaluate.make_evaluator(made, exact.config(max_passes=60), data)
    first, _ = evaluator(PARAMS, 4)
    target = 0.6 * first.noise["bpd"]
    met, _ = evaluator(PARAMS, 4, target_se=target)
    assert met.noise["bpd"] <= target and 4 < met.passes < 60
    assert evaluator(PARAMS, 4, target_se=1e-9)[0].passes == 60


# ---- the number -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, vocab_size", [((1, 1, 2), 3), ((3, 2, 1), 17), ((2, 2, 3), 256)]
)
def test_units_for_any_shape_and_vocab_size(shape, vocab_size):
    """Independent uniform values hold log2 V bits each, whatever the shape."""
    log_p = np.full((*shape, vocab_size), -math.log(vocab_size))
    images, truth = exact.pictures(log_p, 512)
    np.testing.assert_allclose(truth, math.log2(vocab_size))
    made = exact.model(log_p, -2.0 * math.log(vocab_size) - 5.0, 8.0)
    config = exact.config()
    estimate, _ = evaluate.make_evaluator(made, config, exact.split(images, vocab_size))(PARAMS, 40)
    assert abs(estimate.mean["bpd"] - math.log2(vocab_size)) < 3.5 * estimate.noise["bpd"]
    assert estimate.noise["bpd"] < 0.03 * math.log2(vocab_size)


class Cubic(nn.Module):
    gamma_min: float
    gamma_max: float

    def __call__(self, t):
        return self.gamma_min + (self.gamma_max - self.gamma_min) * (0.2 * t + 0.8 * t**3)


def test_no_schedule_between_the_same_ends_changes_the_elbo(digits_like):
    """VDM sec. 5.1: in continuous time the diffusion term depends on the end points alone, for
    any denoiser of z and γ: here for a wrong one, so that the integral is none of data."""
    log_p, images, truth = digits_like
    wrong = np.roll(log_p, 1, axis=-1)
    config, data = exact.config(), exact.split(images, 5)
    found = {}
    for made in (schedule.FixedLinear, schedule.LearnedNet, schedule.Cosine, Cubic):
        model = exact.model(wrong, -8.0, 5.0, made=made)
        params = {"schedule": model.schedule.init(jax.random.key(0), jnp.zeros(1)), "net": {}}
        estimate, _ = evaluate.make_evaluator(model, config, data)(params, 60)
        found[made.__name__] = (estimate.mean["bpd"], estimate.noise["bpd"])
    mean = np.mean([bpd for bpd, _ in found.values()])
    assert mean > truth.mean() + 0.1
    for bpd, noise in found.values():
        assert abs(bpd - mean) < 3.5 * noise and noise < 0.02 * mean, found
    # Another end point is another model: the same check sees it.
    shorter = exact.model(wrong, -8.0, -3.0)
    estimate, _ = evaluate.make_evaluator(shorter, config, data)(PARAMS, 60)
    assert abs(estimate.mean["bpd"] - mean) > 5.0 * estimate.noise["bpd"]
