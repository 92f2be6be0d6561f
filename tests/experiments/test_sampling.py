"""The measure of the sampling study, the energy distance, against closed forms."""

import math

import numpy as np
import pytest

from experiments import sampling


def test_energy_distance_of_two_normals():
    """In one dimension E|X − Y| is known for normals, here N(0, 1) and N(1, 1). So is the influence of each
    sample on the distance, 2 (E|x − Y| − E|x − X'|), whose variance determines the standard error."""
    random = np.random.default_rng(0)
    x, y = random.normal(0.0, 1.0, (3_000, 1)), random.normal(1.0, 1.0, (2_000, 1))

    def folded(mean, deviation):  # E|N(mean, deviation²)|
        tail = deviation * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * deviation**2))
        return tail + mean * math.erf(mean / (deviation * math.sqrt(2)))

    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    moved = [2 * (folded(z - 1.0, 1.0) - folded(z, 1.0)) for z in nodes]  # those of y are the same, mirrored
    variance = np.cov(moved, aweights=weights / weights.sum(), ddof=0)
    want = 2 * folded(1.0, math.sqrt(2)) - 2 * folded(0.0, math.sqrt(2))
    found = sampling.energy_distance(x, y)
    assert abs(found.value - want) < 4 * found.se
    # The root of a variance of 2,000 samples has a relative error of about √(2/2000)/2; 4 of these.
    assert found.se == pytest.approx(math.sqrt(variance / 3_000 + variance / 2_000), rel=0.065)


def test_energy_distance_has_no_bias_and_its_error_is_the_spread():
    """Over many pairs of sets from one distribution the mean is 0. For shifted sets, the estimated standard
    error is the spread."""
    random = np.random.default_rng(0)
    same = [sampling.energy_distance(*random.normal(size=(2, 100, 2))) for _ in range(600)]
    values = np.array([found.value for found in same])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(600)
    assert 0.9 < math.sqrt(np.mean([found.se**2 for found in same])) / values.std() < 1.1

    shifted = [
        sampling.energy_distance(random.normal(size=(60, 2)), random.normal(size=(50, 2)) + 0.8)
        for _ in range(200)
    ]
    spread = np.std([found.value for found in shifted])
    assert 0.85 < np.mean([found.se for found in shifted]) / spread < 1.15


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_difference_of_two_distances(shift):
    """If the samples of two sets are paired, as by common noise, the result is the difference of their
    distances to y. Its error is the spread over many pairs of sets, also if both have y's distribution."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        other, y = random.normal(size=(60, 8)), random.normal(size=(50, 8))
        x = 0.6 * other + 0.8 * random.normal(size=(60, 8)) + shift
        found.append(sampling.energy_distance(x, y, other))
    apart = sampling.energy_distance(x, y).value - sampling.energy_distance(other, y).value
    assert found[-1].value == pytest.approx(apart, abs=1e-12)
    values = np.array([distance.value for distance in found])
    assert shift or abs(values.mean()) < 4 * values.std() / math.sqrt(400)
    # The spread is known to 1/√(2 · 400) = 3.5%.
    assert 0.86 < math.sqrt(np.mean([distance.se**2 for distance in found])) / values.std() < 1.14
