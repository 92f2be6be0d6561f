"""Images stored without the model: as lossless WebP, or deflated where that is smaller."""

import io
import math
import zlib

from jaxtyping import UInt8
import numpy as np

from vdm.codec.archive import Words
from vdm.codec.stack import Damaged
from vdm.data import image_files
from vdm.data.damaged import decoding
from vdm.errors import UserError

Pixels = UInt8[np.ndarray, "height width channels"]

DEFLATED, WEBP = 0, 1  # the first byte of an image
LONGEST = 16_383  # pixels of a side, of which WebP has no more


def webp(image: Pixels) -> bytes:
    """The bytes of a lossless WebP file. The image has one channel, or three."""
    file = io.BytesIO()
    image_files.of_pixels(image).save(file, "WEBP", lossless=True, quality=100, method=6)
    return file.getvalue()


def to_words(image: Pixels) -> Words:
    """The image as words of 32 bits."""
    found = bytes([DEFLATED]) + zlib.compress(image.tobytes(), 9, wbits=-15)
    if image.shape[2] in (1, 3) and max(image.shape) <= LONGEST:
        found = min(found, bytes([WEBP]) + webp(image), key=len)
    return np.frombuffer(found + bytes(-len(found) % 4), "<u4").astype(np.uint32)


def from_words(words: Words, shape: tuple[int, ...]) -> Pixels:
    """The inverse of `to_words`.

    Raises:
      Damaged: these are not the words of an image of this shape.
    """
    from PIL import Image

    height, width, channels = shape
    data = words.astype("<u4").tobytes()
    try:
        with decoding("an image stored without the model cannot be read"):
            if data[0] == DEFLATED:
                inflated = zlib.decompressobj(-15).decompress(data[1:], math.prod(shape))
                return np.frombuffer(inflated, np.uint8).reshape(shape)
            file = Image.open(io.BytesIO(data[1:]), formats=["WEBP"])
            if data[0] != WEBP or file.size != (width, height):  # checked before the pixels are decoded
                raise Damaged
            return np.asarray(file.convert("L" if channels == 1 else "RGB")).reshape(shape)
    except UserError as error:
        raise Damaged from error
