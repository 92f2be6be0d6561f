"""The arrays of an .npz file: each is checked before room is made for it, and nothing is ever unpickled."""

from collections.abc import Iterator
import contextlib
import math
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from vdm.data.damage import decoding
from vdm.errors import require

RATIO = 1032  # how many bytes one of "deflate" can become
SUFFIX = ".npy"


def names(path: pathlib.Path) -> list[str]:
    """The names of the arrays in a file.

    Raises:
      UserError: it cannot be read, or is no .npz file.
    """
    with _opened(path) as file:
        return [name.removesuffix(SUFFIX) for name in file.namelist() if name.endswith(SUFFIX)]


def array(path: pathlib.Path, name: str) -> np.ndarray:
    """One of the arrays in a file.

    Raises:
      UserError: it is damaged, or holds what is no number and no text.
    """
    what = f"{name!r} in {str(path)!r}"
    with _opened(path) as file, decoding(f"{what} cannot be read"):
        about = file.getinfo(name + SUFFIX)
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        require(
            about.compress_type in kinds and not about.flag_bits & 1,
            f"{what} is packed in a way of its own; accepted: as np.savez and np.savez_compressed write it.",
        )
        with file.open(about) as member:
            _check(member, about, what, path.stat().st_size)
        with file.open(about) as member:
            found = np.lib.format.read_array(member, allow_pickle=False)
            member.read()  # the end, where the checksum is compared
    return found


def _check(member: Any, about: zipfile.ZipInfo, what: str, room: int) -> None:
    """Raises UserError where the header says what the file cannot hold; `room` is the size of the file."""
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(member)
    require(version in versions, f"{what} is of version {version} of .npy; accepted: 1.0 and 2.0.")
    shape, _, dtype = versions[version](member)
    require(
        not dtype.hasobject,
        f"{what} is a pickle of Python objects, which can run any code and is never read; accepted: an array "
        "of numbers, such as uint8.",
    )
    packed = min(about.compress_size, room)
    holds = min(about.file_size, packed * (1 if about.compress_type == zipfile.ZIP_STORED else RATIO))
    size = math.prod(shape) * dtype.itemsize
    require(
        all(side >= 0 for side in shape) and member.tell() + size == about.file_size == holds,
        f"{what} is damaged: by its header it is {dtype} {list(shape)}, of {size:,} bytes, where the file "
        f"holds {max(0, holds - member.tell()):,}; take another copy.",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(
        size < memory,
        f"{what} is {dtype} {list(shape)}, of {size:,} bytes, and this machine has {memory:,}; give fewer.",
    )


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    with decoding(f"{str(path)!r} cannot be read as an .npz file"):
        with path.open("rb") as start:
            alone = start.read(6) == np.lib.format.MAGIC_PREFIX
        require(
            not alone, f"{str(path)!r} is one array; accepted: an .npz file, which np.savez writes of arrays."
        )
        with zipfile.ZipFile(path) as file:
            yield file
