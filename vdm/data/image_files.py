"""Image files, whose declared size is checked before they are decoded."""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any
import warnings

from jaxtyping import UInt8
import numpy as np

from vdm.data.damaged import Damaged, decoding

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # for any suffix; for some others, Pillow runs programs
LARGEST = 89_478_485  # pixels; above this number, Pillow also suspects a decompression bomb
warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # such an image is refused below


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """The PIL image of a file, decoded on the first access to its pixels; of an animation, the first frame.
    Only calls of Pillow belong within the context.

    Raises:
      Damaged: the file cannot be read or is too large, or a call within the context fails.
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


def of_pixels(image: UInt8[np.ndarray, "height width channels"]) -> Any:
    """The PIL image of pixels; an image of one channel is gray."""
    from PIL import Image

    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def of_eight_bits(image: Any) -> Any:
    """A PIL image with values of 8 bits. Values of 16 bits are scaled; Pillow's `convert` would clip them."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    values = np.clip(np.asarray(image).astype(np.int64), 0, 2**16 - 1)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
