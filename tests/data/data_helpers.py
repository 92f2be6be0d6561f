"""A config.data and a folder of images, for tests."""

from ml_collections import ConfigDict
import numpy as np
from PIL import Image

from vdm import component


def section(name, **fields):
    """config.data for a source: its name and all its fields, with some of them changed."""
    return ConfigDict(
        {"name": name, **component.find("source", name, "config.data.name").config_fields(), **fields}
    )


def write_images(root, count, size=(6, 4), mode="RGB", seed=0):
    """Writes random images as files; returns them."""
    root.mkdir(parents=True)
    random = np.random.default_rng(seed)
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    images = random.integers(0, 256, (count, *shape)).astype(np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / f"{i:03d}.png")
    return images.reshape(count, *size[::-1], -1)
