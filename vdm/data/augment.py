"""Augmentation of the paper's CIFAR-10 run: flips, 90° rotations, channel permutations.

Each kind is drawn for itself and applied to half of the images; the flag that the model is
conditioned on says whether any was, so evaluation can ask for the images as they are.
"""

import itertools

import jax
import jax.numpy as jnp

from vdm.errors import require

KINDS = ("flip", "rotate", "channels")


def check(kinds, shape):
    """Raises UserError where a name of `kinds` is unknown, or cannot be done to `shape`."""
    height, width, _ = shape
    for kind in kinds:
        require(
            kind in KINDS,
            f"config.data.augment names {kind!r}; accepted, joined by commas: {', '.join(KINDS)}.",
        )
    require(
        "rotate" not in kinds or height == width,
        f"config.data.augment has 'rotate', but the pictures are {height} × {width}; "
        "rotating by 90° needs square ones.",
    )


def augment(keys, images, kinds):
    """Augments each image with its own key.

    Args:
      keys: [batch].
      images: [batch, height, width, channels], height equal to width for "rotate".
      kinds: which of KINDS.

    Returns:
      images like `images`, and float32 [batch], 1 where anything was done.
    """

    def one(key, image):
        done = jnp.zeros((), bool)
        for kind, change in (("flip", _flip), ("rotate", _rotate), ("channels", _permute)):
            if kind in kinds:
                key, choose, draw = jax.random.split(key, 3)
                apply = jax.random.bernoulli(choose)
                image = jnp.where(apply, change(draw, image), image)
                done |= apply
        return image, done.astype(jnp.float32)

    return jax.vmap(one)(keys, images)


def _flip(key, image):
    return image[:, ::-1]


def _rotate(key, image):
    turned = jnp.stack([jnp.rot90(image, turns) for turns in (1, 2, 3)])
    return turned[jax.random.randint(key, (), 0, 3)]


def _permute(key, image):
    orders = jnp.array(list(itertools.permutations(range(image.shape[-1]))))
    return image[..., orders[jax.random.randint(key, (), 0, len(orders))]]
