"""The order in which training takes the examples: a function of the seed and the position alone.

So a run resumes in the middle of an epoch, and every host knows which part of each batch is its own.
"""

import functools

from jaxtyping import Int
import numpy as np


def order(seed: int, positions: Int[np.ndarray, "batch"], size: int) -> Int[np.ndarray, "batch"]:
    """Which example stands at each position of training.

    Each run of `size` positions is one epoch, a permutation of its own of all examples.
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
