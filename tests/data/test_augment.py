"""Augmentation: every change occurs and is flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.data import augment
from vdm.errors import UserError


def test_every_change_is_drawn_and_flagged():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    keys = jax.random.split(jax.random.key(0), 6000)
    images, flags = augment.augment(keys, jnp.tile(image, (6000, 1, 1, 1)), augment.KINDS)
    found = np.unique(np.asarray(images).reshape(6000, -1), axis=0)

    flips = [image, image[:, ::-1]]
    turned = [np.rot90(one, turns) for one in flips for turns in range(4)]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    every = {one[..., list(order)].tobytes() for one in turned for order in orders}
    assert {row.reshape(3, 3, 3).tobytes() for row in found} == every
    same = (np.asarray(images) == image).all((1, 2, 3))
    assert np.all(same[np.asarray(flags) == 0]), "images without the flag are unchanged"
    # Each of the three changes is applied with probability ½.
    assert abs(np.mean(np.asarray(flags) == 0) - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / 6000)


def test_no_augmentation_changes_nothing():
    images = jnp.arange(32, dtype=jnp.uint8).reshape(2, 4, 4, 1)
    out, flags = augment.augment(jax.random.split(jax.random.key(0), 2), images, augment.kinds(""))
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(flags, 0.0)


def test_rotation_needs_square_images():
    kinds = augment.kinds("flip,rotate")
    assert kinds == ("flip", "rotate")
    augment.check_shape(kinds, (4, 4, 3))
    augment.check_shape(("flip",), (4, 6, 3))
    with pytest.raises(UserError, match="'rotate', but the images are 4 × 6"):
        augment.check_shape(kinds, (4, 6, 3))
