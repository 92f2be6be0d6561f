"""The file format of compressed images: a header that states what decoding needs, and the words of the
stacks.

  4 bytes   "vdm" and the version of this format
  4 bytes   length of the header
  4 bytes   CRC-32 of all bytes before it and of the header
  header    JSON, deflated with the dictionary USUAL
  words     the stacks, one after the other, as little-endian words of 32 bits

The whole file is checked before any part of it is used.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import struct
from typing import Any, NamedTuple
import zlib

from jaxtyping import UInt32
import numpy as np

from vdm.errors import UserError, require
from vdm.runtime import atomic

NAME, VERSION = b"vdm", 3
START = struct.Struct("<3sBII")
LONGEST = 1 << 28  # bytes of a header, at most

# Deflate's dictionary: text that headers have in common, and that need not be in each. Part of the format.
USUAL = (
    b'.png","label":,"device":"NVIDIA H100 Intel(R) Xeon(R) CPU @ GHz AMD EPYC avx2 fma avx512f avx512_bf16'
    b' amx_tile"names":["0.png","1.png","{"model":"","images":1000,"shape":[32,32,3],"sha":"","timesteps":20'
    b'0,"fineness":16.0,"seed":0,"made":{"vdm":"0.1.0","jax":"0.10.2","constriction":"0.5.0","device":"AMD E'
    b'PYC avx2 fma avx512f"},"initial":[,"plain":[[0,],[0,]],"words":[,"crc":'
)

Words = UInt32[np.ndarray, "words"]


class Archive(NamedTuple):
    """The contents of a file: the header, as plain data, and the words of each stack, bottom first."""

    header: dict[str, Any]
    stacks: list[Words]


def to_bytes(archive: Archive) -> bytes:
    """The bytes of the whole file."""
    body = b"".join(words.astype("<u4").tobytes() for words in archive.stacks)
    own = {"words": [len(words) for words in archive.stacks], "crc": zlib.crc32(body)}
    text = json.dumps(archive.header | own, separators=(",", ":"))
    deflate = zlib.compressobj(9, wbits=-15, zdict=USUAL)
    header = deflate.compress(text.encode()) + deflate.flush()
    start = START.pack(NAME, VERSION, len(header), 0)[:-4]
    return start + struct.pack("<I", zlib.crc32(start + header)) + header + body


def from_bytes(data: bytes, path: str) -> Archive:
    """The inverse of `to_bytes`.

    Args:
      path: the file's name, for error messages.

    Raises:
      UserError: the data are not a compressed file, have another version, or are damaged or cut off.
    """
    made = "which --mode=compress writes"
    require(data, f"{path!r} is empty; accepted: a file {made}.")
    require(data[:3] == NAME[: len(data)], f"{path!r} is no compressed file; accepted: one {made}.")
    require(len(data) >= START.size, f"{path!r} is cut off after {len(data)} bytes; take a whole copy.")
    _, version, length, crc = START.unpack(data[: START.size])
    require(
        version == VERSION,
        f"{path!r} is of version {version} of the format, or damaged; this code reads version {VERSION}.",
    )
    header, body = data[START.size : START.size + length], data[START.size + length :]
    damaged = f"{path!r} is damaged or cut off: its {{}} is not what was written; take another copy."
    require(zlib.crc32(data[: START.size - 4] + header) == crc, damaged.format("header"))
    try:
        found = json.loads(zlib.decompressobj(-15, zdict=USUAL).decompress(header, LONGEST))
        words, crc = found.pop("words"), found.pop("crc")
        require(len(body) == 4 * sum(words) and zlib.crc32(body) == crc, damaged.format("body"))
        require(words and all(type(count) is int and count >= 0 for count in words), damaged.format("header"))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise UserError(damaged.format("header")) from error
    parts = np.split(np.frombuffer(body, "<u4").astype(np.uint32), np.cumsum(words)[:-1])
    return Archive(found, parts)


def read(path: pathlib.Path) -> Archive:
    """The Archive in a file.

    Raises:
      UserError: the file cannot be read, or `from_bytes` refuses its contents.
    """
    require(not path.is_dir(), f"--input is {str(path)!r}, a folder; accepted: a file of --mode=compress.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--input is {str(path)!r}, which cannot be read ({error.strerror}).") from error
    return from_bytes(data, str(path))


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    with atomic_output(path) as part, part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, renames it to `path` at the end, and removes it after an error.

    Raises:
      UserError: the path cannot be written.
    """
    try:
        with atomic.atomic_path(path) as part:
            yield part
    except OSError as error:
        raise UserError(
            f"--output is {str(path)!r}, which cannot be written ({error.strerror}); give another."
        ) from error
