"""An estimate: its mean, its two error bars, its units."""

import math

import numpy as np
import pytest

from vdm.estimate import combine


def test_combine_by_hand():
    """Two sets of 1 and 3 passes over two images: means, spread and both errors, in bits/dim."""
    nat = math.log(2.0) * 4  # of one bit/dim for four dimensions
    sets = [(1, {"a": np.array([2.0, 4.0]) * nat}), (3, {"a": np.array([12.0, 12.0]) * nat})]
    estimate = combine(sets, (2, 2, 1))
    np.testing.assert_allclose(estimate.values["bpd"], [3.5, 4.0])
    # One degree of freedom: Σ n (m − mean)²/passes is 0.75 and 0; over two images.
    assert estimate.noise["bpd"] == pytest.approx(math.sqrt((0.75 + 0.0) / 2 / 2))
    assert estimate.se["bpd"] == pytest.approx(0.25)
    assert math.isnan(combine(sets[:1], (2, 2, 1)).noise["bpd"])
