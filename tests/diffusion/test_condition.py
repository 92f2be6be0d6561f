"""The condition that a network is given."""

import jax
import numpy as np
import pytest

from vdm.component import Refused
from vdm.diffusion import condition

BATCH = {"label": np.array([2, 0, 1]), "augmented": np.array([0.0, 1.0, 0.0], np.float32)}


def test_a_label_is_one_of_its_classes_and_the_flag_is_one_number():
    np.testing.assert_array_equal(condition.of_batch("label", BATCH, 4), np.eye(4)[[2, 0, 1]])
    np.testing.assert_array_equal(condition.of_batch("augmented", BATCH, 4), [[0.0], [1.0], [0.0]])
    assert condition.of_batch("none", BATCH, 4) is None


def test_parts_stand_side_by_side():
    one, two = np.ones((3, 2)), np.zeros((3, 1))
    np.testing.assert_array_equal(condition.join(one, None, two), [[1.0, 1.0, 0.0]] * 3)
    assert condition.join(None, one) is one and condition.join(None) is None


def test_a_share_of_the_images_has_none():
    """Over 4,000 images the share is right within four standard errors."""
    keys = jax.random.split(jax.random.key(0), 4_000)
    kept = np.asarray(condition.keeps_label(keys, 0.3))
    assert kept.shape == (4_000, 1) and abs(kept.mean() - 0.7) < 4.0 * np.sqrt(0.3 * 0.7 / 4_000)


def test_what_there_is_not_is_refused():
    with pytest.raises(Refused, match="labels"):
        condition.check("label", 0)
    with pytest.raises(Refused, match="Did you mean 'label'"):
        condition.check("lable", 3)
    condition.check("label", 3)
