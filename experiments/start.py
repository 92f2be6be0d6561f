"""How long a start takes, up to the first step of training: once with nothing kept, then again and again.

  python -m experiments.start
  python -m experiments.start --config=configs/digits.py
  python -m experiments.start --config=configs/cifar10.py --config.data.data_dir=$HOME/tensorflow_datasets

Starts `python -m vdm.main` in a workdir of its own with the flags given, and without any with those of the
CIFAR-10 model on random pictures; ends it where it says that it starts at step 0; and prints the seconds
until then, less those of `import jax`, as a Markdown table. The first start compiles everything and reads the
images from their files; the others find both in a cache.
"""

import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from tqdm import tqdm

from vdm import report

AGAIN = 5  # starts after the first


def random_pictures(folder):
    """Flags of the CIFAR-10 model on pictures written there."""
    images = np.random.default_rng(0).integers(0, 256, (4096, 32, 32, 3)).astype(np.uint8)
    np.savez(folder / "pictures.npz", image=images)
    return ["--config=configs/cifar10.py", "--config.data.name=npz", f"--config.data.data_dir={folder}/pictures.npz"]


def seconds(command, awaited):
    """How long a command takes until it prints a line that begins so.

    Raises:
      SystemExit: it failed before.
    """
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith(awaited):
                return time.monotonic() - begun
        sys.exit(process.stderr.read().strip() or f"{' '.join(command)} never said {awaited!r}")
    finally:
        process.kill()
        process.communicate()


def main(flags):
    """Measures, and prints the table."""
    if {"-h", "--help"} & set(flags):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        flags = flags or random_pictures(folder)
        command = [sys.executable, "-m", "vdm.main", *flags, f"--cache={folder}/cache"]
        imported, whole = [], []
        for number in tqdm(range(1 + AGAIN), "starts", disable=None):
            imported.append(seconds([sys.executable, "-c", "import jax, jax.numpy; print('done', flush=True)"], "done"))
            whole.append(seconds([*command, f"--workdir={folder}/{number}"], "starting at step"))
    rest = np.subtract(whole, np.median(imported))
    again = rest[1:]
    rows = [
        ("import jax, s", f"{np.median(imported):.2f}", f"{min(imported):.2f} to {max(imported):.2f}"),
        ("first start, s", f"{rest[0]:.2f}", ""),
        ("second start, s", f"{np.median(again):.2f}", f"{min(again):.2f} to {max(again):.2f}"),
    ]
    print(report.markdown_table(("import of JAX aside", "median", f"of {AGAIN}"), rows))


if __name__ == "__main__":
    main(sys.argv[1:])
