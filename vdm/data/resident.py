"""Which splits are kept whole, on the devices or in memory, and how they are read: once, into the cache."""

import jax
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from vdm.data.dataset import Examples, Split, in_memory
from vdm.runtime import cache


def fits(split: Split, section: ConfigDict) -> bool:
    """Whether the split is small enough to be kept whole; `section` is config.data."""
    return split.nbytes <= section.on_device_gib * 2**30


def arrays(split: Split, section: ConfigDict) -> Examples:
    """All of a training split, to put on the devices; {} where it does not fit and is streamed."""
    return read_all(split) if fits(split, section) else {}


def shapes(split: Split, section: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of `arrays`, for which one example is read."""
    if not fits(split, section):
        return {}
    one = split.read(np.zeros(1, int))
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct((split.size, *v.shape[1:]), v.dtype), one)


def in_memory_if_it_fits(split: Split, section: ConfigDict) -> Split:
    """The split over arrays where it is read from files and fits; else the split itself."""
    if not split.files or not fits(split, section):
        return split
    found = read_all(split)
    return in_memory(found["image"], found["label"])


def read_all(split: Split) -> Examples:
    """All of a split. What is read from files is kept in the cache (cache.arrays), where the split says under
    which name."""

    def read():
        parts = np.array_split(np.arange(split.size), max(1, split.size // 1024))
        bar = tqdm(parts, "reading images", disable=len(parts) < 10 or None, leave=False)
        return jax.tree.map(lambda *values: np.concatenate(values), *map(split.read, bar))

    return cache.arrays(split.cache_name, split.files, read) if split.cache_name else read()
