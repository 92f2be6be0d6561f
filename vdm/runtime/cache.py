"""The cache between runs: compiled programs, and images decoded from files."""

from collections.abc import Callable, Sequence
import contextlib
import hashlib
import os
import pathlib
import platform
import warnings

import numpy as np

FOLDER = "~/.cache/vdm"  # the default

_folder: pathlib.Path | None = None  # set by `enable`


def enable(folder: str) -> None:
    """Keeps compiled programs and images under `folder`; "" disables the cache. For programs, JAX's variable
    JAX_COMPILATION_CACHE_DIR takes precedence.

    A program that was compiled on a CPU runs only on CPUs of that kind, and machines of several kinds may
    share a home folder, so each kind has a separate subfolder.
    """
    global _folder
    _folder = pathlib.Path(folder).expanduser() if folder else None
    # A full disk does not stop a run. A damaged program is compiled again.
    warnings.filterwarnings("ignore", message="Error (writing|reading) persistent compilation cache")
    if _folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        import jax  # imported late: main.py reads FOLDER before it needs JAX

        kind = hashlib.sha256(_cpu().encode()).hexdigest()[:8]
        jax.config.update("jax_compilation_cache_dir", str(_folder / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def arrays(
    name: str, files: Sequence[str], read: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """{name: array} from `read`, cached until one of `files` changes.

    Args:
      name: identifies the entry; a newer entry of the same name replaces it.
      files: all paths on which the arrays depend. Their list, sizes and times identify their contents.
    """
    if _folder is None:
        return read()
    version = hashlib.sha256()
    try:
        for file in files:
            about = os.stat(file)
            version.update(f"{file} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode())
    except OSError:  # not a path of this machine, or deleted: the error of `read` is more specific
        return read()
    path = _folder / "images" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"
    # If the entry is missing or damaged, the files are read again.
    with contextlib.suppress(Exception), path.open("rb") as old, np.load(old) as kept:
        if kept["of"] == version.hexdigest():
            return {key: kept[key] for key in kept.files if key != "of"}
    found = read()
    part = path.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):  # a full disk does not stop a run
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as new:
                np.savez(new, of=np.array(version.hexdigest()), **found)  # type: ignore[arg-type]
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return found


def _cpu():
    """The model and the features of this CPU."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    kinds = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
