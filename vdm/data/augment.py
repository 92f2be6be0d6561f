"""Augmentation of the paper's CIFAR-10 run: flips, 90° rotations, channel permutations.

Each kind of change is applied to a random half of the images, independently. A flag for each image states
whether it was changed. The model is conditioned on the flag, so that it can be evaluated on unchanged images.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from vdm.errors import require

KINDS = ("flip", "rotate", "channels")


def kinds(text: str) -> tuple[str, ...]:
    """The kinds of changes in config.data.augment."""
    return tuple(filter(None, text.split(",")))


def check_shape(names: tuple[str, ...], shape: tuple[int, int, int]) -> None:
    """Raises UserError if a kind of change cannot be applied to images of this shape."""
    height, width, _ = shape
    require(
        "rotate" not in names or height == width,
        f"config.data.augment has 'rotate', but the images are {height} × {width}; "
        "rotating by 90° needs square images.",
    )


def augment(
    keys: Key[Array, "batch"], images: UInt8[Array, "batch height width channels"], names: tuple[str, ...]
) -> tuple[UInt8[Array, "batch height width channels"], Float[Array, "batch"]]:
    """Changes each image with its key.

    Args:
      images: images, which must be square for "rotate".
      names: the kinds of changes, each one of KINDS.

    Returns:
      The images, and for each image 1 if it was changed, else 0.
    """

    def one(key, image):
        changed = jnp.zeros((), bool)
        for name, change in (("flip", _flip), ("rotate", _rotate), ("channels", _permute)):
            if name in names:
                key, whether, how = jax.random.split(key, 3)
                apply = jax.random.bernoulli(whether)
                image = jnp.where(apply, change(how, image), image)
                changed |= apply
        return image, changed.astype(jnp.float32)

    return jax.vmap(one)(keys, images)


def _flip(key, image):
    return image[:, ::-1]


def _rotate(key, image):
    turned = jnp.stack([jnp.rot90(image, turns) for turns in (1, 2, 3)])
    return turned[jax.random.randint(key, (), 0, 3)]


def _permute(key, image):
    orders = jnp.array(list(itertools.permutations(range(image.shape[-1]))))
    return image[..., orders[jax.random.randint(key, (), 0, len(orders))]]
