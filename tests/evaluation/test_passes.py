"""The draws of several passes over the same images: normal, uniform, and spread apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm.runtime import randomness
from vdm.runtime.randomness import QuasiRng


def spread(passes, number, images=16, seed=0):
    return QuasiRng(jax.random.key(seed), jnp.arange(images), *map(jnp.int32, (number, images, passes)))


def test_noise_is_normal_and_its_passes_lie_apart():
    """Each pass alone is standard normal; the passes of one value are spread over its quantiles."""
    noise = jnp.stack([spread(8, k, images=500).normal(1, (8,)) for k in range(8)])
    for one in noise:
        assert stats.kstest(np.asarray(one).ravel(), "norm").pvalue > 1e-3
    quantiles = np.sort(stats.norm.cdf(np.asarray(noise, np.float64)), axis=0)
    widest = np.diff(quantiles, axis=0, append=quantiles[:1] + 1.0).max(axis=0)
    assert widest.max() < 0.25  # by the golden ratio; chance gives 0.34 on average, up to 0.8
    # Values start independently of each other.
    assert abs(np.corrcoef(noise[0, :, 0], noise[0, :, 1])[0, 1]) < 0.2


def test_times_cover_each_stratum_once():
    """The strata of one image over its passes, and of all images over all passes."""
    times = np.stack([spread(5, k).uniform(randomness.TIME) for k in range(5)])
    assert np.all(np.diff(np.sort(times, axis=0), axis=0) == pytest.approx(0.2, abs=1e-6))
    assert np.all(np.diff(np.sort(times.ravel())) == pytest.approx(1 / 80, abs=1e-6))
