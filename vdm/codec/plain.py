"""Images stored without the model: as lossless WebP, or deflated where that is smaller."""

import io
import math
import zlib

from jaxtyping import UInt8
import numpy as np

from vdm.codec.archive import Words
from vdm.codec.stack import Damaged
from vdm.data import damaged, image_files

Pixels = UInt8[np.ndarray, "height width channels"]

DEFLATED, WEBP = 0, 1


def webp(image: Pixels) -> bytes:
    """The bytes of a lossless WebP file. The image has one channel, or three."""
    file = io.BytesIO()
    image_files.of_pixels(image).save(file, "WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def to_words(image: Pixels) -> Words:
    """The image as words of 32 bits."""
    found = bytes([DEFLATED]) + zlib.compress(image.tobytes(), 9, wbits=-15)
    if image.shape[2] in (1, 3):
        found = min(found, bytes([WEBP]) + webp(image), key=len)
    return np.frombuffer(found + bytes(-len(found) % 4), "<u4").astype(np.uint32)


def from_words(words: Words, shape: tuple[int, ...]) -> Pixels:
    """The inverse of `to_words`.

    Raises:
      UserError, Damaged: these are not the words of an image of this shape.
    """
    data = words.astype("<u4").tobytes()
    kind, data = data[:1], data[1:]
    if kind == bytes([WEBP]):
        with image_files.opened(io.BytesIO(data)) as file:
            pixels = np.asarray(file.convert("L" if shape[2] == 1 else "RGB"))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
    else:
        with damaged.decoding("an image that is stored without the model cannot be read"):
            inflated = zlib.decompressobj(-15).decompress(data, math.prod(shape))
            pixels = np.frombuffer(inflated, np.uint8)
        pixels = pixels.reshape(shape) if pixels.size == math.prod(shape) else pixels
    if pixels.shape != tuple(shape):
        raise Damaged
    return pixels
