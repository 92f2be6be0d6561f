"""Batches of training, streamed or by index, and of evaluation."""

import itertools
import threading

import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from data_helpers import section
from vdm.data.batches import eval_batches, order, resident_arrays, train_batches
from vdm.data.dataset import in_memory
from vdm.data.source import load


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
    """They may be without end, and each is asked for only when its batch is."""
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
    assert ahead.wait(30), "the second chunk is read before it is asked for"
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
