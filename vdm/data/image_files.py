"""Image files: how large they say they are is known before they are decoded."""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any
import warnings

import numpy as np

from vdm.data.damaged import Damaged, decoding

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # whatever the suffix says; Pillow has some that run programs
LARGEST = 89_478_485  # pixels: from here on Pillow, too, suspects a bomb
warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # it is refused below


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """The PIL image of a file, which is decoded when its pixels are asked for; of an animation, the first.
    Within it, only calls of Pillow belong.

    Raises:
      Damaged: it cannot be read, or is too large; so it is for what is asked for within.
    """
    from PIL import Image

    what = f"{str(path)!r} cannot be read as an image"
    with decoding(what):
        try:
            file = Image.open(path, formats=FORMATS)
        except Image.UnidentifiedImageError:
            raise Damaged(f"{what}: it is none of {', '.join(FORMATS)}, or its start is damaged.") from None
        except Image.DecompressionBombError as error:
            raise Damaged(f"{what}: {error}; accepted: at most {LARGEST:,} pixels.") from error
        with file:
            width, height = file.size
            if not 0 < width * height <= LARGEST:
                raise Damaged(f"{what}: it is {width} × {height}; accepted: 1 to {LARGEST:,} pixels.")
            yield file


def of_eight_bits(image: Any) -> Any:
    """A PIL image whose values have 8 bits: one of 16 is scaled, where Pillow's `convert` would clip."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    values = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
