"""A damaged, truncated or foreign file is reported in one line, and nothing of it is used."""

import numpy as np
import pytest

from vdm.codec import archive
from vdm.errors import UserError

MADE = archive.Archive(
    {"images": 3, "names": ["ä.png", "b.png"], "shape": [1, 2, 3]},
    [np.array([1, 2**32 - 1, 7], np.uint32), np.array([5], np.uint32)],
)


def test_it_comes_back():
    found = archive.from_bytes(archive.to_bytes(MADE), "x")
    assert found.header == MADE.header
    assert [words.tolist() for words in found.stacks] == [words.tolist() for words in MADE.stacks]


def test_each_byte_counts():
    data = archive.to_bytes(MADE)
    for place in range(len(data)):
        for bit in (1, 128):
            changed = bytearray(data)
            changed[place] ^= bit
            with pytest.raises(UserError):
                archive.from_bytes(bytes(changed), "x")


def test_every_cut_is_told_of_and_so_is_what_comes_after_the_end():
    data = archive.to_bytes(MADE)
    for length in range(len(data)):
        with pytest.raises(UserError):
            archive.from_bytes(data[:length], "x")
    with pytest.raises(UserError, match="body is not what was written"):
        archive.from_bytes(data + b"\0", "x")


@pytest.mark.parametrize(
    "data, match",
    [
        (b"", "'x' is empty; accepted: a file which --mode=compress writes"),
        (b"PK\3\4 an archive", "'x' is no compressed file"),
        (b"vdm\1" + bytes(20), "version 1 of the format, or damaged; this code reads version 3"),
        (b"vdm\3" + bytes(20), "its header is not what was written"),
    ],
)
def test_what_is_no_such_file(data, match):
    with pytest.raises(UserError, match=match):
        archive.from_bytes(data, "x")


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(UserError, match="a folder; accepted: a file"):
        archive.read(tmp_path)
    with pytest.raises(UserError, match="cannot be read .No such file"):
        archive.read(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be written"):
        archive.write(tmp_path / "none" / "x", b"1")


def test_nothing_is_left_where_the_disk_is_full(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr(archive.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        archive.write(tmp_path / "x", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"
