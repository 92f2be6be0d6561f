"""The error names a damaged image; config.data.skip_damaged leaves it out."""

import os

import numpy as np
from PIL import Image
import pytest

from conftest import make_config
from vdm.data import source
from vdm.errors import UserError, one_line


@pytest.fixture
def folder(tmp_path):
    """Twelve training and four test images, one of each truncated."""
    for part, count in (("train", 12), ("test", 4)):
        (tmp_path / part).mkdir()
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number:02}.png")
    for path in (tmp_path / "train" / "05.png", tmp_path / "test" / "02.png"):
        os.truncate(path, path.stat().st_size // 2)
    return tmp_path


def load(folder, **fields):
    fields = {"data.name": "folder", "data.data_dir": folder, **fields}
    return source.load(make_config(fields).data)


def test_it_is_named_when_it_is_read(folder):
    data = load(folder)
    with pytest.raises(UserError) as error:
        data.train.read(np.arange(12))
    assert "train/05.png' cannot be read as an image" in one_line(error.value)


def test_the_others_are_as_they_were(folder, capsys):
    whole, without = load(folder), load(folder, **{"data.skip_damaged": "true"})
    assert (without.train.size, without.test.size) == (11, 3)
    said = capsys.readouterr().out
    assert "1 of 12 training images are damaged and left out" in said and "05.png" in said
    assert "1 of 4 test images" in said and "02.png" in said
    kept = [number for number in range(12) if number != 5]
    expected = whole.train.read(np.array(kept))["image"]
    np.testing.assert_array_equal(without.train.read(np.arange(11))["image"], expected)


def test_where_none_is_left_one_line_says_so(folder):
    for path in (folder / "test").iterdir():
        os.truncate(path, 10)
    with pytest.raises(UserError, match="4 of 4 test images are damaged, and no image is left"):
        load(folder, **{"data.skip_damaged": "true"})
