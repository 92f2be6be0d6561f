"""Images stored without the model come back, in no more bytes than WebP or deflate takes."""

import io
import zlib

import numpy as np
from PIL import Image
import pytest

from vdm.codec import plain
from vdm.codec.stack import Damaged


def smooth(shape):
    """An image of waves, with values from 0 to 255."""
    rows, columns, channels = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return (128 + 127 * np.sin(rows / 3.0 + channels) * np.cos(columns / 5.0)).astype(np.uint8)


@pytest.mark.parametrize(
    "shape", [(1, 16_384, 3), (32, 32, 3), (28, 28, 1), (16, 16, 2), (4, 4, 4), (1, 1, 1)]
)
def test_every_shape_comes_back(shape):
    for image in (smooth(shape), np.zeros(shape, np.uint8), np.random.default_rng(0).integers(0, 17, shape)):
        words = plain.to_words(image.astype(np.uint8))
        np.testing.assert_array_equal(plain.from_words(words, shape), image)


def test_the_smaller_of_webp_and_deflate():
    photograph, digits = smooth((64, 64, 3)), np.arange(64, dtype=np.uint8).reshape(8, 8, 1) % 17
    for image, kind, size in (
        (photograph, plain.WEBP, len(plain.webp(photograph))),
        (digits, plain.DEFLATED, len(zlib.compress(digits.tobytes(), 9, wbits=-15))),
    ):
        words = plain.to_words(image)
        assert words[0] & 255 == kind and 0 <= 4 * len(words) - size - 1 < 4
    assert len(plain.webp(photograph)) < len(zlib.compress(photograph.tobytes(), 9))


def test_what_is_no_such_image_is_refused():
    words = plain.to_words(smooth((32, 32, 3)))
    png = io.BytesIO()
    Image.fromarray(smooth((32, 32, 3))).save(png, "PNG")
    png = np.frombuffer(bytes([plain.WEBP]) + png.getvalue() + bytes(3 - len(png.getvalue()) % 4), "<u4")
    for wrong in (words[:0], words[:20], words[:1] * 0, words ^ np.uint32(3), np.flip(words), png):
        with pytest.raises(Damaged):
            plain.from_words(wrong, (32, 32, 3))
    with pytest.raises(Damaged):
        plain.from_words(words, (16, 32, 3))
