"""The measure of the sampling study: the energy distance, against closed forms."""

import math

import numpy as np

from experiments import sampling


def test_energy_distance_of_two_normals():
    """In one dimension E|X − Y| is known for normals: N(0, 1) and N(1, 1)."""
    draw = np.random.default_rng(0)
    x, y = draw.normal(0.0, 1.0, (3_000, 1)), draw.normal(1.0, 1.0, (2_000, 1))

    def folded(mean, deviation):  # E|N(mean, deviation²)|
        tail = math.exp(-(mean**2) / (2 * deviation**2))
        return deviation * math.sqrt(2 / math.pi) * tail + mean * math.erf(
            mean / (deviation * math.sqrt(2))
        )

    want = 2 * folded(1.0, math.sqrt(2)) - 2 * folded(0.0, math.sqrt(2))
    value, *moved = sampling.energy_distance(x, y)
    se = sampling.standard_error(*moved)
    assert abs(value - want) < 4 * se
    assert 0.005 < se < 0.05


def test_energy_distance_has_no_bias_and_its_error_is_the_spread():
    """Over many pairs of sets of one distribution the mean is 0. Of shifted ones, the standard
    error told is the spread seen."""
    draw = np.random.default_rng(0)
    same = [sampling.energy_distance(*draw.normal(size=(2, 30, 2)))[0] for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(400)

    values, errors = [], []
    for _ in range(200):
        value, *moved = sampling.energy_distance(
            draw.normal(size=(60, 2)), draw.normal(size=(50, 2)) + 0.8
        )
        values.append(value)
        errors.append(sampling.standard_error(*moved))
    assert 0.8 < np.mean(errors) / np.std(values) < 1.25
