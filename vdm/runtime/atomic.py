"""Files and folders that are whole or not there: written beside their name, and renamed in the end."""

from collections.abc import Iterator
import contextlib
import pathlib
import shutil


@contextlib.contextmanager
def atomic_path(path: pathlib.Path | str) -> Iterator[pathlib.Path]:
    """A path for a file or a folder, of the same suffix, which is called `path` in the end; of what failed,
    as on a full disk, nothing is left.

    Raises:
      OSError: it cannot be written.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    _remove(part)  # of a process that was killed
    try:
        yield part
        part.replace(path)
    finally:
        _remove(part)


def write_text(path: pathlib.Path | str, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    with atomic_path(path) as part:
        part.write_text(text)


def _remove(part):
    with contextlib.suppress(OSError):
        shutil.rmtree(part) if part.is_dir() else part.unlink()
