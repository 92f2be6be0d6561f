"""What lossless codecs of pictures make of the same images: the bits/dim of their files."""

from collections.abc import Callable
import importlib.util
import io
import math

import numpy as np
from PIL import Image

from vdm.data.dataset import Images
from vdm.evaluation.estimate import standard_error

SHEET = "one sheet"  # all images side by side, as one picture


def bits_per_dim(images: Images) -> dict[str, tuple[float, float]]:
    """{codec: (bits/dim, standard error over images)} of PNG, WebP and, where imagecodecs is installed, JPEG
    XL; each image alone, and all of them as one sheet, which has no standard error."""
    found = {}
    for name, encode in lossless().items():
        values = np.array([8.0 * len(encode(image)) / image.size for image in images])
        found[name] = float(values.mean()), standard_error(values)
        found[f"{name}, {SHEET}"] = 8.0 * len(encode(sheet(images))) / images.size, math.nan
    return found


def sheet(images: Images) -> np.ndarray:
    """All images in the rows of one picture that is about square; what is left of the last row is black."""
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def lossless() -> dict[str, Callable[[np.ndarray], bytes]]:
    """{codec: picture, uint8 [height, width, channels], to the bytes of its file}, at the most effort."""
    found = {
        "PNG": lambda image: _by_pillow(image, "PNG", optimize=True),
        "WebP": lambda image: _by_pillow(image, "WEBP", lossless=True, quality=100, method=6),
    }
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs  # only where it is asked for, as it is an extra

        found["JPEG XL"] = lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=9)
    return found


def _by_pillow(image, kind, **options):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind, **options)
    return file.getvalue()
