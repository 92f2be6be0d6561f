"""The mean of a normal distribution restricted to the levels, against the sum over all levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.methods.discretised_normal import OUTSIDE, restricted_mean


def by_sum(mean, deviation, vocab_size):
    """The mean as a sum over all levels, in float64."""
    x = (2.0 * np.arange(vocab_size) + 1.0) / vocab_size - 1.0
    logits = -0.5 * ((x - mean[..., None]) / deviation[..., None]) ** 2
    weight = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weight @ x / weight.sum(axis=-1)


@pytest.mark.parametrize("vocab_size", [2, 17, 256])
def test_it_is_the_sum_over_all_levels(vocab_size):
    """In units of the distance between levels: the closed form is exact except near the ends."""
    apart = 2.0 / vocab_size
    means = np.linspace(-1.0, 1.0, 401)[:, None]
    deviations = apart * np.geomspace(0.05, 8.0, 60)
    mean, deviation = (np.broadcast_to(v, (401, 60)) for v in (means, deviations))
    got = restricted_mean(jnp.float32(mean), jnp.float32(deviation**2), vocab_size)
    error = np.abs(got - by_sum(mean, deviation, vocab_size)) / apart
    few = deviations <= apart
    assert error[:, few].max() < 1e-4
    inside = (1.0 - np.abs(means) > 5.0 * deviations) & ~few
    assert error[inside].max(initial=0.0) < 1e-4
    assert error.max() < 0.05


@pytest.mark.parametrize("vocab_size", [2, 17, 256])
def test_means_beyond_the_ends(vocab_size):
    """In units of the distance between levels: the largest error is below the docstring's 1/3."""
    apart = 2.0 / vocab_size
    deviation = apart * np.geomspace(1.0001, 20.0, 40)
    mean = 1.0 + np.linspace(0.0, OUTSIDE, 200)[:, None] * deviation
    deviation = np.broadcast_to(deviation, mean.shape)
    got = restricted_mean(jnp.float32(mean), jnp.float32(deviation**2), vocab_size)
    assert 0.05 < (np.abs(got - by_sum(mean, deviation, vocab_size)) / apart).max() < 1 / 3


@pytest.mark.parametrize("mean", [-30.0, -1.01, 0.0, 1.0, 30.0])
@pytest.mark.parametrize("deviation", [1e-3, 0.1, 2.0])
def test_far_away_it_and_its_gradient_are_finite_and_it_stays_among_the_levels(mean, deviation):
    value, gradient = jax.value_and_grad(lambda v: restricted_mean(*v, 256))(
        jnp.array([mean, deviation**2], jnp.float32)
    )
    assert abs(value) <= 1.0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("vocab_size", [2, 17, 256])
def test_its_gradient_is_that_of_the_sum(vocab_size):
    """Against finite differences of the sum in float64, at deviations where restricted_mean is the sum."""
    apart = 2.0 / vocab_size
    mean, deviation = np.meshgrid(np.linspace(-1.1, 1.1, 401), apart * np.geomspace(0.1, 0.99, 30))
    mean, deviation = (np.float64(np.float32(v)) for v in (mean, deviation))
    of = lambda m, v: restricted_mean(m, v, vocab_size)
    got = jax.grad(lambda m, v: of(m, v).sum(), (0, 1))(jnp.float32(mean), jnp.float32(deviation**2))
    step = 1e-5
    by_mean = by_sum(mean + step * apart, deviation, vocab_size) - by_sum(
        mean - step * apart, deviation, vocab_size
    )
    wide, narrow = (np.sqrt(deviation**2 + sign * step * apart**2) for sign in (1, -1))
    by_variance = by_sum(mean, wide, vocab_size) - by_sum(mean, narrow, vocab_size)
    for found, want in zip(got, (by_mean / (2 * step * apart), by_variance / (2 * step * apart**2))):
        # A float32 mean is off by 6e-8, which changes the gradient where it is steep.
        np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-3 * np.abs(want).max())
