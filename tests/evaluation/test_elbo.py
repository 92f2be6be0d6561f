"""Evaluation by the ELBO: mean, error bars, units, and invariance to the schedule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

import exact
from vdm.diffusion.schedule import Cosine, FixedLinear, LearnedNet, Schedule
from vdm.diffusion.times import IID
from vdm.estimate import combine
from vdm.evaluation.elbo import make_elbo
from vdm.evaluation.passes import Pass, over_split
from vdm.runtime.randomness import Rng

PARAMS = {"schedule": {}, "net": {}}
SHAPE = (2, 2, 1)


@pytest.fixture(scope="module")
def digits_like():
    """Log-probabilities, 512 images drawn from them, and the true bits/dim of each."""
    log_p = exact.log_probabilities(SHAPE, 5)
    return log_p, *exact.images(log_p, 512)


# ---- error bars -------------------------------------------------------------------------


def estimates(model, images, sets, length, spread_out=True):
    """Estimates, each from two sets of draws that are evenly spread or fully independent."""

    def draw(params, rng, batch, _):
        if spread_out:
            return model.draw(params, rng, batch).terms
        key = jax.random.fold_in(rng.key, rng.number)
        independent = Rng(key, rng.index, rng.images)
        return model.draw(params, independent, batch, times=lambda rng: IID().draw(rng, None)).terms

    one_pass = over_split(draw, exact.config(), exact.split(images, 5))

    def one_set(number):
        drawn = [
            one_pass(PARAMS, Pass(number, k, length), np.float32(0), len(images), tqdm(disable=True))
            for k in range(length)
        ]
        return length, jax.tree.map(lambda *terms: sum(terms), *drawn)

    pairs = [(one_set(2 * i), one_set(2 * i + 1)) for i in range(sets // 2)]
    return [combine(pair, SHAPE) for pair in pairs]


def test_the_noise_is_estimated_as_it_is(digits_like):
    """The spread over 24 evaluations is the noise that a single evaluation estimates."""
    log_p, images, _ = digits_like
    found = estimates(exact.model(log_p, -8.0, 5.0), images, 48, 10)
    spread = np.std([estimate.mean["bpd"] for estimate in found], ddof=1)
    noise = math.sqrt(np.mean([estimate.noise["bpd"] ** 2 for estimate in found]))
    assert noise / 1.5 < spread < 1.5 * noise  # the spread is known to ± 15%


def test_spread_draws_beat_independent_ones(digits_like):
    """At the same number of network evaluations; both have the same mean."""
    log_p, images, _ = digits_like
    model, data = exact.model(log_p, -8.0, 5.0), exact.split(images, 5)
    independent = estimates(model, images, 8, 10, spread_out=False)
    noise_iid = math.sqrt(np.mean([estimate.noise["bpd"] ** 2 for estimate in independent]))
    estimate, _ = make_elbo(model, exact.config(), data)(PARAMS, 80)
    assert estimate.noise["bpd"] < 0.6 * (noise_iid / 2.0)  # four times the passes halve it
    mean_iid = np.mean([estimate.mean["bpd"] for estimate in independent])
    assert abs(estimate.mean["bpd"] - mean_iid) < 3.0 * noise_iid / 2.0


def test_target_is_met_or_the_budget_spent(digits_like):
    log_p, images, _ = digits_like
    model, data = exact.model(log_p, -8.0, 5.0), exact.split(images, 5)
    evaluate = make_elbo(model, exact.config(max_passes=60), data)
    first, _ = evaluate(PARAMS, 4)
    target = 0.6 * first.noise["bpd"]
    met, _ = evaluate(PARAMS, 4, target_se=target)
    assert met.noise["bpd"] <= target and 4 < met.passes < 60
    assert evaluate(PARAMS, 4, target_se=1e-9)[0].passes == 60


# ---- the number -------------------------------------------------------------------------


@pytest.mark.parametrize("shape, vocab_size", [((1, 1, 2), 3), ((3, 2, 1), 17), ((2, 2, 3), 256)])
def test_units_for_any_shape_and_vocab_size(shape, vocab_size):
    """Independent uniform values hold log2 V bits each, for any shape."""
    log_p = np.full((*shape, vocab_size), -math.log(vocab_size))
    images, truth = exact.images(log_p, 512)
    np.testing.assert_allclose(truth, math.log2(vocab_size))
    model = exact.model(log_p, -2.0 * math.log(vocab_size) - 5.0, 8.0)
    estimate, _ = make_elbo(model, exact.config(), exact.split(images, vocab_size))(PARAMS, 40)
    assert abs(estimate.mean["bpd"] - math.log2(vocab_size)) < 3.5 * estimate.noise["bpd"]
    assert estimate.noise["bpd"] < 0.03 * math.log2(vocab_size)


class Cubic(Schedule):
    """A γ(t) that rises slowly at first."""

    def __call__(self, t):
        return self.gamma_min + (self.gamma_max - self.gamma_min) * (0.2 * t + 0.8 * t**3)


@pytest.mark.slow
def test_no_schedule_between_the_same_ends_changes_the_elbo(digits_like):
    """VDM sec. 5.1: in continuous time the diffusion term depends only on the end points, for any denoiser of
    z and γ. The denoiser here is wrong for these images but optimal for another distribution, whose reverse
    process it makes exact, so the ELBO is the log-likelihood under that distribution."""
    log_p, images, truth = digits_like
    wrong = np.roll(log_p, 1, axis=-1)
    chosen = np.take_along_axis(wrong[None], images[..., None].astype(int), axis=-1)
    want = -chosen.mean() / math.log(2.0)
    assert want > truth.mean() + 0.1
    config, data = exact.config(), exact.split(images, 5)
    found = {}
    for schedule in (FixedLinear, LearnedNet, Cosine, Cubic):
        model = exact.model(wrong, -8.0, 5.0, schedule=schedule)
        params = {"schedule": model.schedule.init(jax.random.key(0), jnp.zeros(1)), "net": {}}
        estimate, _ = make_elbo(model, config, data)(params, 60)
        found[schedule.__name__] = (estimate.mean["bpd"], estimate.noise["bpd"])
    for bpd, noise in found.values():
        assert abs(bpd - want) < 3.5 * noise and noise < 0.02 * want, found
    # Another end point gives another model, which the same check detects.
    shorter = exact.model(wrong, -8.0, -4.0)
    estimate, _ = make_elbo(shorter, config, data)(PARAMS, 60)
    assert abs(estimate.mean["bpd"] - want) > 5.0 * estimate.noise["bpd"]
