"""Batches: a shuffled stream for training, and each image once for evaluation.

The order of the training images depends only on the seed and the position, so that a run can resume in the
middle of an epoch and every host knows its part of each batch. A split that is small enough is kept on the
devices, or in memory.
"""

from collections.abc import Iterable, Iterator
import functools
import itertools

import jax
from jaxtyping import Int
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from vdm.data.dataset import Examples, Split, in_memory
from vdm.runtime import cache


def train_batches(
    split: Split, config: ConfigDict, chunks: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, Examples]]:
    """The batches of the training step, several steps at a time.

    If the split is kept on the devices (`fits`), a batch consists of indices; otherwise of images, which
    Grain's threads read ahead, across chunks.

    Args:
      config: the whole config.
      chunks: (first step, number of steps), consecutive, from any step up to config.train.steps.

    Yields:
      For each chunk its first step, its number of steps, and {"index": …} or {"image": …, "label": …}, with
      the leading axes [local devices, steps, batch per device].
    """
    hosts, host = jax.process_count(), jax.process_index()

    def indices(step):
        return order(config.seed, host_positions(step, config.train.batch_size, hosts, host), split.size)

    def batches_from(first):
        if fits(split, config.data):
            return ({"index": indices(step).astype(np.int32)} for step in itertools.count(first))
        import grain  # imported late, as the import is slow

        return iter(
            grain.MapDataset.range(first, config.train.steps)
            .map(lambda step: split.read(indices(step)))
            .to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=16))
        )

    batches = None
    for step, count in chunks:
        if batches is None:
            batches = batches_from(step)
        yield step, count, _stacked([next(batches) for _ in range(count)])


def _stacked(steps: list[Examples]) -> Examples:
    """Stacks the host's batches of several steps to [devices, steps, batch per device, …]."""
    devices = jax.local_device_count()

    def one(*values):
        value = np.stack(values)
        value = value.reshape(len(values), devices, -1, *value.shape[2:])
        return np.ascontiguousarray(value.swapaxes(0, 1))

    return jax.tree.map(one, *steps)


def eval_batches(split: Split, batch_size: int, limit: int = 0) -> Iterator[Examples]:
    """This host's share of a split in order, each example once. The last batch is padded.

    Args:
      batch_size: batch size of this host. The padding consists of copies of example 0.
      limit: number of examples to read; 0 for all.

    Yields:
      {"image", "label", "augmented": zeros, "index": int32, the index in the split, "real": bool, False for
      padding}, each [batch_size, …]. Every host yields the same number of batches.
    """
    size = limit or split.size
    hosts, host = jax.process_count(), jax.process_index()
    for first in range(0, size, batch_size * hosts):
        index = first + host * batch_size + np.arange(batch_size)
        real = index < size
        index = np.where(real, index, 0)
        yield {
            **split.read(index),
            "augmented": np.zeros(batch_size, np.float32),
            "index": index.astype(np.int32),
            "real": real,
        }


def order(seed: int, positions: Int[np.ndarray, "batch"], size: int) -> Int[np.ndarray, "batch"]:
    """The index of the example at each position of training.

    Each run of `size` positions is one epoch, a new permutation of all examples.
    """
    positions = np.asarray(positions, np.int64)
    indices = np.empty_like(positions)
    for epoch in np.unique(positions // size):
        here = positions // size == epoch
        indices[here] = _permutation(seed, int(epoch), size)[positions[here] % size]
    return indices


def host_positions(step: int, batch_size: int, hosts: int, host: int) -> Int[np.ndarray, "share"]:
    """The positions that a host reads for a step: its share of the global batch."""
    share = batch_size // hosts
    return step * batch_size + host * share + np.arange(share)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> Int[np.ndarray, "size"]:
    return np.random.default_rng((seed, epoch)).permutation(size)


def fits(split: Split, section: ConfigDict) -> bool:
    """Whether the split is small enough to be kept in memory; `section` is config.data."""
    return split.nbytes <= section.on_device_gib * 2**30


def resident_arrays(split: Split, section: ConfigDict) -> Examples:
    """All examples of a training split, for the devices; {} if the split does not fit and is streamed."""
    return read_all(split) if fits(split, section) else {}


def resident_shapes(split: Split, section: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of `resident_arrays`, from one example."""
    if not fits(split, section):
        return {}
    one = split.read(np.zeros(1, int))
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct((split.size, *v.shape[1:]), v.dtype), one)


def in_memory_if_it_fits(split: Split, section: ConfigDict) -> Split:
    """The split, read into memory if it comes from files and fits."""
    if not split.files or not fits(split, section):
        return split
    found = read_all(split)
    return in_memory(found["image"], found["label"])


def read_all(split: Split) -> Examples:
    """All examples of a split. Examples from files are cached (cache.arrays), if the split has a cache
    name."""

    def read():
        parts = np.array_split(np.arange(split.size), max(1, split.size // 1024))
        bar = tqdm(parts, "reading images", disable=len(parts) < 10 or None, leave=False)
        return jax.tree.map(lambda *values: np.concatenate(values), *map(split.read, bar))

    return cache.arrays(split.cache_name, split.files, read) if split.cache_name else read()
