"""Diagonal Gaussians: KL, log density and draws."""

import math

import numpy as np
import pytest
from scipy import stats

from vdm import gaussian

COUNT = 20_000


@pytest.mark.parametrize("standard", [True, False])
def test_kl_is_the_integral(standard):
    """In three dimensions: KL(q ‖ p) = ∫ q (log q − log p), log_prob is SciPy's, draws have q's moments."""
    random = np.random.default_rng(0)
    q = gaussian.Gaussian(*random.normal(size=(2, 4, 3)).astype(np.float32))
    p = (
        gaussian.STANDARD
        if standard
        else gaussian.Gaussian(*random.normal(size=(2, 4, 3)).astype(np.float32))
    )
    z = np.linspace(-25.0, 25.0, 20_001)[:, None, None]
    log_q, log_p = (stats.norm.logpdf(z, of.mean, np.exp(0.5 * of.log_variance)) for of in (q, p))
    want = np.sum(np.exp(log_q) * (log_q - log_p), axis=(0, 2)) * 2.5e-3
    np.testing.assert_allclose(gaussian.kl(q, p), want, rtol=1e-4)
    at = random.normal(size=(4, 3)).astype(np.float32)
    want = stats.norm.logpdf(at, p.mean, np.exp(0.5 * p.log_variance)).sum(axis=1)
    np.testing.assert_allclose(gaussian.log_prob(p, at), want, rtol=1e-5)
    drawn = np.asarray(gaussian.draw(q, random.normal(size=(COUNT, 4, 3))))
    bar = 4 * np.exp(0.5 * q.log_variance) / math.sqrt(COUNT)
    assert (np.abs(drawn.mean(axis=0) - q.mean) < bar).all()
    assert (np.abs(drawn.std(axis=0) - np.exp(0.5 * q.log_variance)) < bar).all()
