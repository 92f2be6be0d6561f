"""Measures the startup time up to the first training step: first without a cache, then with one.

  python -m experiments.speed.start
  python -m experiments.speed.start --config=configs/digits.py
  python -m experiments.speed.start --config=configs/cifar10.py --config.data.data_dir=DATA

Runs `python -m vdm.main` several times with the given flags, each time in a new workdir; without flags, it
trains the CIFAR-10 model on random images. Ends each run when it reports that it starts at step 0, and prints
the seconds until then, without those of `import jax`, as a Markdown table. The first run compiles everything
and reads the images from their files; the others find both in a cache.
"""

from collections.abc import Sequence
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from tqdm import tqdm

from vdm.reporting.text import markdown_table

AGAIN = 5  # number of runs after the first


def random_images(folder: pathlib.Path) -> list[str]:
    """Writes random images to a folder; returns the flags that train the CIFAR-10 model on them."""
    images = np.random.default_rng(0).integers(0, 256, (4096, 32, 32, 3)).astype(np.uint8)
    np.savez(folder / "images.npz", image=images)
    data = ["--config.data.name=npz", f"--config.data.data_dir={folder}/images.npz"]
    return ["--config=configs/cifar10.py", *data]


def seconds_until(command: Sequence[str], awaited: str) -> float:
    """The seconds until a command prints a line that begins with `awaited`.

    Raises:
      SystemExit: the command ended without this line.
    """
    start, lines = time.monotonic(), []
    # JAX's own variable would take precedence over --cache.
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(awaited):
                return time.monotonic() - start
            lines.append(line)
        sys.exit("".join(lines[-20:]) + f"{' '.join(command)} never said {awaited!r}")
    finally:
        process.kill()
        process.communicate()


def main(flags: Sequence[str]) -> None:
    """Measures the startup times and prints the table."""
    if {"-h", "--help"} & set(flags):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        flags = flags or random_images(folder)
        command = [sys.executable, "-m", "vdm.main", *flags, f"--cache={folder}/cache"]
        imports, starts = [], []
        for number in tqdm(range(1 + AGAIN), "starts", disable=None):
            script = "import jax, jax.numpy; print('done', flush=True)"
            imports.append(seconds_until([sys.executable, "-c", script], "done"))
            starts.append(seconds_until([*command, f"--workdir={folder}/{number}"], "starting at step"))
    own = np.subtract(starts, np.median(imports))
    measured = {
        "import jax": imports,
        "first start, without the import": own[:1],
        "later start, without the import": own[1:],
    }
    rows = [
        (name, str(len(taken)), *(f"{of(taken):.2f}" for of in (np.median, np.min, np.max)))
        for name, taken in measured.items()
    ]
    print(markdown_table(("seconds", "starts", "median", "lowest", "highest"), rows))


if __name__ == "__main__":
    main(sys.argv[1:])
