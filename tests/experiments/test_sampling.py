"""The measure of the sampling study: the energy distance, against closed forms."""

import math

import numpy as np

from experiments import sampling


def test_energy_distance_of_two_normals():
    """In one dimension E|X − Y| is known for normals: N(0, 1) and N(1, 1)."""
    random = np.random.default_rng(0)
    x, y = random.normal(0.0, 1.0, (3_000, 1)), random.normal(1.0, 1.0, (2_000, 1))

    def folded(mean, deviation):  # E|N(mean, deviation²)|
        tail = deviation * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * deviation**2))
        return tail + mean * math.erf(mean / (deviation * math.sqrt(2)))

    want = 2 * folded(1.0, math.sqrt(2)) - 2 * folded(0.0, math.sqrt(2))
    found = sampling.energy_distance(x, y)
    assert abs(found.value - want) < 4 * found.se
    assert 0.005 < found.se < 0.05


def test_energy_distance_has_no_bias_and_its_error_is_the_spread():
    """Over many pairs of sets of one distribution the mean is 0. Of shifted ones, the estimated
    standard error is the spread."""
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
