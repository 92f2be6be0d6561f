"""Splits that are kept whole, and what of them is kept in the cache."""

import dataclasses

import jax
import numpy as np
import pytest

from data_helpers import section, write_images
from vdm.data import folder
from vdm.data.batches import fits, in_memory_if_it_fits, read_all, resident_arrays, resident_shapes
from vdm.data.dataset import Data, Spec, Split
from vdm.data.source import Source, load
from vdm.runtime import cache


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_folder", tmp_path / "cache")


@pytest.mark.parametrize("gib", [1.0, 0.0])
def test_shapes_are_those_of_the_arrays(gib):
    config = section("digits", on_device_gib=gib)
    data = load(config)
    found, shapes = resident_arrays(data.train, config), resident_shapes(data.train, config)
    assert bool(found) == bool(gib) == fits(data.train, config)
    types = [jax.tree.map(lambda v: (v.shape, v.dtype), tree) for tree in (found, shapes)]
    assert types[0] == types[1]


def test_images_that_are_kept_are_those_of_the_files(tmp_path):
    """Each split and size, the first time and again; and after a label's folder has another name."""
    root = tmp_path / "images"
    for number, label in enumerate("bc"):
        write_images(root / "train" / label, 3, seed=number)
    write_images(root / "test" / "b", 6, seed=9)

    def check(size, **fields):
        data = load(section("folder", data_dir=str(root), image_size=size, **fields))
        for split in (data.train, data.test):
            found, want = read_all(split), split.read(np.arange(split.size))
            assert found.keys() == want.keys()
            for key, value in want.items():
                np.testing.assert_array_equal(found[key], value)
        return read_all(data.train)["label"].tolist()

    for size in (0, 5, 0, 5):
        assert check(size) == [0, 0, 0, 1, 1, 1]
    for share, kept in ((0.3, 4), (0.5, 3), (0.3, 4)):
        assert len(check(0, hold_out=share)) == kept
    (root / "train" / "c").rename(root / "train" / "a")
    assert check(0) == [0, 0, 0, 1, 1, 1]
    (root / "test" / "b").rename(root / "test" / "0")
    assert check(0) == [1, 1, 1, 2, 2, 2]


def test_the_code_that_reads_is_among_the_files(tmp_path):
    write_images(tmp_path / "images", 20)
    data = load(section("folder", data_dir=str(tmp_path / "images")))
    assert folder.__file__ in data.train.files and folder.__file__ in data.test.files
    assert data.train.cache_name != data.test.cache_name


READS = []


@dataclasses.dataclass(frozen=True)
class Own(Source):
    """A source of one's own that reads a file."""

    path: str = ""
    value: int = 0

    def load(self):
        def read(indices):
            READS.append(len(indices))
            images = np.full((len(indices), 1, 1, 1), self.value, np.uint8)
            return {"image": images, "label": np.zeros(len(indices), np.int32)}

        part = Split(4, read, 4, (self.path,))
        return Data(part, part, Spec((1, 1, 1), 256, 0))


def test_what_is_kept_of_an_own_source_depends_on_its_own_fields(tmp_path):
    path = tmp_path / "file"
    path.write_text("")

    def value(**fields):
        data = load(section(f"{__name__}:Own", path=str(path), **fields))
        READS.clear()
        return read_all(data.train)["image"].max(), sum(READS)

    assert [value(value=1), value(value=2), value(value=1)] == [(1, 4), (2, 4), (1, 0)]
    assert value(value=1, augment="flip", on_device_gib=0.5) == (1, 0)


def test_a_split_that_fits_is_read_into_memory(tmp_path):
    write_images(tmp_path / "images", 20)
    config = section("folder", data_dir=str(tmp_path / "images"))
    test = load(config).test
    kept = in_memory_if_it_fits(test, config)
    assert not kept.files and kept.size == test.size == 2
    for name, values in test.read(np.arange(2)).items():
        np.testing.assert_array_equal(kept.read(np.arange(2))[name], values)
    config.on_device_gib = 0.0
    assert in_memory_if_it_fits(test, config) is test
