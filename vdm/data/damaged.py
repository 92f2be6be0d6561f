"""Damaged data: turns a decoder's error into one line, and makes a split without its damaged examples
(config.data.skip_damaged)."""

from collections.abc import Iterator
import contextlib
import errno

import jax
import numpy as np
from tqdm import tqdm

from vdm.data.dataset import Split, some_of
from vdm.errors import UserError, one_line, require
from vdm.runtime import cache

# Error numbers that concern a path. All others concern the machine, such as too many open files, and say
# nothing about the data.
OF_PATHS = {
    getattr(errno, name)
    for name in ("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG", "EINVAL", "ENXIO")
}


class Damaged(UserError):
    """An example cannot be read. A Split's `read` raises it, and config.data.skip_damaged omits the
    example."""


@contextlib.contextmanager
def decoding(what: str) -> Iterator[None]:
    """Replaces every error that a decoder raises on damaged bytes by Damaged, with the message "`what`: why".

    Decoders raise exceptions of many types, so all types are caught, and only calls of decoders belong within
    the context. Errors of the machine are raised unchanged: the data may be intact.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None and error.errno not in OF_PATHS:
            raise
        raise Damaged(f"{what}: {error.strerror or one_line(error) or 'it is damaged'}.") from error
    except Exception as error:
        raise Damaged(f"{what}: {one_line(error) or type(error).__name__}.") from error


BLOCK = 64  # number of examples to read at a time
SHOWN = 3  # largest number of damaged examples in a message


def without_damaged(split: Split, name: str) -> Split:
    """The split without the examples for which `read` raises Damaged. Prints their number and some of them.

    Args:
      name: name of the split, for messages.

    Raises:
      UserError: all examples are damaged.
    """

    def look():
        kept, said = _look(split, name)
        return {"kept": np.array(kept, int), "said": np.array(said, str)}

    cached = split.cache_name and f"{split.cache_name}, which are whole"
    found = cache.arrays(cached, split.files, look) if cached else look()
    kept = found["kept"]
    if len(kept) == split.size:
        return split
    left_out = split.size - len(kept)
    some = " ".join(found["said"].tolist()) + " …" * (left_out > SHOWN)
    says = f"{left_out:,} of {split.size:,} {name} images are damaged"
    require(len(kept), f"{says}, and no image is left: {some} Give data that are intact.")
    if jax.process_index() == 0:
        print(f"{says} and left out: {some}", flush=True)
    return some_of(split, kept, "without the damaged")


def _look(split: Split, name: str) -> tuple[list[int], list[str]]:
    """The indices of the examples that can be read, and the errors of the first few that cannot."""
    kept: list[int] = []
    said: list[str] = []
    with tqdm(total=split.size, desc=f"checking the {name} images", leave=False, disable=None) as bar:
        for first in range(0, split.size, BLOCK):
            block = np.arange(first, min(first + BLOCK, split.size))
            try:
                split.read(block)
                kept += block.tolist()
            except Damaged:
                for one in block:
                    try:
                        split.read(np.array([one]))
                        kept.append(int(one))
                    except Damaged as error:
                        said += [one_line(error)][: SHOWN - len(said)]
            bar.update(len(block))
    return kept, said
