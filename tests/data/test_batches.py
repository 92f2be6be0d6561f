"""Batches: their order, whether streamed or resident on the device, and the cached images of a split."""

import dataclasses
import itertools
import threading

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from data_helpers import section, write_images
from vdm.data import folder
from vdm.data.batches import (
    eval_batches,
    fits,
    host_positions,
    in_memory_if_it_fits,
    order,
    read_all,
    resident_arrays,
    resident_shapes,
    train_batches,
)
from vdm.data.dataset import Data, Spec, Split, in_memory
from vdm.data.source import Source, load
from vdm.runtime import cache


@pytest.fixture(scope="module")
def data():
    return load(section("digits"))


def config(steps=12, **fields):
    train = {"batch_size": 16, "steps": steps}
    return ConfigDict({"seed": 3, "data": section("digits", **fields), "train": train})


def test_streamed_and_resident_batches_are_the_same_examples(data):
    chunks = [(7, 2), (9, 3)]
    stays, streams = config(), config(on_device_gib=0.0)
    held = resident_arrays(data.train, stays.data)
    assert resident_arrays(data.train, streams.data) == {}
    indices = list(train_batches(data.train, stays, chunks))
    images = list(train_batches(data.train, streams, iter(chunks)))
    assert [found[:2] for found in indices] == [found[:2] for found in images] == chunks
    devices = jax.local_device_count()
    for (step, count, index), (_, _, batch) in zip(indices, images, strict=True):
        assert batch["image"].shape == (devices, count, 16 // devices, 8, 8, 1)
        want = order(3, np.arange(16 * step, 16 * (step + count)), data.train.size)
        np.testing.assert_array_equal(index["index"].swapaxes(0, 1).reshape(-1), want)
        for name in ("image", "label"):
            np.testing.assert_array_equal(held[name][index["index"]], batch[name])


@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_chunks_are_taken_one_by_one(data, gib):
    """The chunks may be endless, and each is requested only when its batch is."""
    asked = []
    chunks = ((asked.append(step) or step, 1) for step in itertools.count(4))
    batches = train_batches(data.train, config(10**9, on_device_gib=gib), chunks)
    assert [next(batches)[0] for _ in range(3)] == [4, 5, 6] == asked
    batches.close()


def test_images_are_read_ahead_of_their_chunk_and_not_beyond_the_last_step(data):
    read, ahead = [], threading.Event()
    whole = data.train

    def slow(indices):
        read.append(len(indices))
        if len(read) == 8:
            ahead.set()
        return whole.read(indices)

    split = in_memory(np.zeros((whole.size, 1, 1, 1), np.uint8))
    split = type(split)(whole.size, slow, split.nbytes)
    batches = train_batches(split, config(8, on_device_gib=0.0), [(0, 2), (2, 6)])
    next(batches)
    assert ahead.wait(30), "the second chunk is read before it is requested"
    assert next(batches)[:2] == (2, 6)
    assert len(read) == 8 and next(batches, None) is None


def test_no_chunks_are_no_batches(data):
    assert list(train_batches(data.train, config(on_device_gib=0.0), [])) == []


def test_evaluation_takes_each_image_once(data):
    indices, short = [], 0
    for batch in eval_batches(data.test, 100):
        assert batch["image"].shape == (100, 8, 8, 1)
        indices += list(batch["index"][batch["real"]])
        short += int((~batch["real"]).sum())
        np.testing.assert_array_equal(batch["augmented"], 0.0)
    assert indices == list(range(360)) and short == 40
    assert sum(batch["real"].sum() for batch in eval_batches(data.test, 100, 150)) == 150


def test_it_is_a_permutation_each_epoch_and_a_function_of_position():
    whole = order(3, np.arange(25), 10)
    for epoch in range(2):
        assert sorted(whole[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert list(whole[:10]) != list(whole[10:20])
    np.testing.assert_array_equal(order(3, np.arange(7, 19), 10), whole[7:19])
    assert list(order(4, np.arange(10), 10)) != list(whole[:10])


def test_hosts_share_a_batch():
    parts = [host_positions(5, 12, 3, host) for host in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), 60 + np.arange(12))


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
    """For each split and size, when first read and when read again, and after a label's folder is renamed."""
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
    """A custom source that reads a file."""

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
