"""Checksums of a checkpoint's files: written with it, and checked before it is used."""

import contextlib
import json
import pathlib
import sys
import time

import xxhash

NAME = "checksums.json"
# Files that Orbax changes while it renames a checkpoint.
LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")
ITEMS = ("state", "rest")  # the folders that every checkpoint has
BLOCK = 1 << 18  # bytes to read at a time; they fit into the processor's cache


def write(folder: pathlib.Path) -> None:
    """Writes the size and XXH3 hash of each file of a folder into it.

    Raises:
      OSError: a file cannot be read or written.
    """
    found = {str(path.relative_to(folder)): _about(path) for path in _files(folder)}
    text = json.dumps({"files": found, "xxh3": _hash(json.dumps(found).encode())})
    (folder / NAME).write_text(text)


def damage(folder: pathlib.Path) -> str | None:
    """The damage of a checkpoint, in words; None if it is intact. A checkpoint of an older version has no
    checksums, and counts as intact if it has all its parts."""
    try:
        missing = [name for name in ITEMS if not any((folder / name).glob("*"))]
        if missing:
            return f"it has no {' and no '.join(missing)}"
        metadata = folder / LATE[0]
        if not isinstance(json.loads(metadata.read_text()), dict):
            return f"{metadata.name} is damaged"
        if not (folder / NAME).exists():
            return None
        said = json.loads((folder / NAME).read_text())
        if said["xxh3"] != _hash(json.dumps(said["files"]).encode()):
            return f"{NAME} is damaged"
        for name, about in said["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if _about(path) != about:
                return f"{name} differs from what was written"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} or {LATE[0]} cannot be parsed"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    return None


def whole_steps(workdir: pathlib.Path, move: bool) -> list[int]:
    """The steps whose checkpoint is intact, in order. Prints one line on stderr for each damaged checkpoint.

    Args:
      move: whether to move damaged checkpoints into the folder damaged/ of the workdir; only safe if no other
        process trains there.
    """
    while True:
        found, gone = _look_through(workdir, move)
        if found or not gone:  # otherwise training deleted all listed steps, and there are newer ones
            return sorted(found)


def _look_through(workdir, move):
    """The intact steps, and the number of steps that were deleted meanwhile. Checks the newest checkpoint
    first, as it is kept the longest."""
    folders = {int(path.name): path for path in workdir.glob("checkpoints/*") if path.name.isdigit()}
    found, gone = [], 0
    for step, folder in sorted(folders.items(), reverse=True):
        why = damage(folder)
        if why and not move:  # training may be deleting it, if there is a newer one
            time.sleep(1.0 if folder.exists() else 0.0)
            why = damage(folder) if folder.exists() else ""
        if why is None:
            found.append(step)
        elif not why:
            gone += 1
        else:
            done = f"moved to {str(_set_aside(folder, workdir / 'damaged'))!r}" if move else "left out"
            print(f"the checkpoint of step {step} is damaged ({why}): {done}", file=sys.stderr, flush=True)
    return found, gone


def _set_aside(folder: pathlib.Path, into: pathlib.Path) -> pathlib.Path:
    into.mkdir(exist_ok=True)
    places = (into / (f"{folder.name}-{n}" if n else folder.name) for n in range(10_000))
    place = next(place for place in places if not place.exists())
    folder.rename(place)
    with contextlib.suppress(OSError):  # so that the folder that was set aside last has the newest date
        place.touch()
    return place


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (NAME, *LATE))


def _hash(data):
    return xxhash.xxh3_64_hexdigest(data)


def _about(path):
    """[bytes, hash] of a file."""
    size, hashed, block = 0, xxhash.xxh3_64(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            size += count
            hashed.update(block[:count])
    return [size, hashed.hexdigest()]
