"""Batches: a shuffled stream for training, and each image once for evaluation."""

from collections.abc import Iterable, Iterator
import itertools

import jax
from ml_collections import ConfigDict
import numpy as np

from vdm.data import resident
from vdm.data.dataset import Examples, Split
from vdm.data.order import host_positions, order


def train_batches(
    split: Split, config: ConfigDict, chunks: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int, Examples]]:
    """The batches of the training step, of several steps at a time.

    Where the split is kept on the devices (resident.fits), a batch is only indices; else it is images, which
    Grain's threads read ahead, across chunks.

    Args:
      config: the whole config.
      chunks: (first step, number of steps), one after the other without a gap, from any step on and up to
        config.train.steps.

    Yields:
      For each chunk its first step, its number of steps, and {"index": …} or {"image": …, "label": …}, with
      [local devices, steps, batch per device] in front.
    """
    hosts, host = jax.process_count(), jax.process_index()

    def indices(step):
        return order(config.seed, host_positions(step, config.train.batch_size, hosts, host), split.size)

    def batches_from(first):
        if resident.fits(split, config.data):
            return ({"index": indices(step).astype(np.int32)} for step in itertools.count(first))
        import grain  # only now, as it takes a while to import

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
    """From the host's batch of each step to [devices, steps, batch per device, …]."""
    devices = jax.local_device_count()

    def one(*values):
        value = np.stack(values)
        value = value.reshape(len(values), devices, -1, *value.shape[2:])
        return np.ascontiguousarray(value.swapaxes(0, 1))

    return jax.tree.map(one, *steps)


def eval_batches(split: Split, batch_size: int, limit: int = 0) -> Iterator[Examples]:
    """This host's share of a split in order, each example once, the last short batch included.

    Args:
      batch_size: of this host. The last batch is filled up with copies of example 0.
      limit: only so many examples of the split; 0 for all.

    Yields:
      {"image", "label", "augmented": zeros, "index": int32, the place in the split, "real": bool, false for
      what only fills up}, each [batch_size, …]. Every host yields the same number of batches.
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
