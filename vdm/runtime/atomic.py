"""Atomic writes of files and folders: written under a temporary name, and renamed at the end."""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil


@contextlib.contextmanager
def atomic_path(path: pathlib.Path | str) -> Iterator[pathlib.Path]:
    """Yields a temporary path with the same suffix, which is renamed to `path` at the end, and deleted after
    a failure, such as a full disk.

    Raises:
      OSError: the path cannot be written.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    _remove(part)  # left by a process that was killed
    try:
        yield part
        part.replace(path)
    finally:
        _remove(part)


def write_text(path: pathlib.Path | str, text: str) -> None:
    """Writes a text file atomically.

    Raises:
      OSError: the file cannot be written.
    """
    with atomic_path(path) as part:
        part.write_text(text)


def _remove(part):
    with contextlib.suppress(OSError):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
