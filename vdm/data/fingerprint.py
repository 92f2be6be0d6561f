"""Fingerprints of images: two bits/dim compare only where these are the same."""

from collections.abc import Iterable
import hashlib
import json
import pathlib

import numpy as np

from vdm.data.dataset import Data, Images, Spec, Split
from vdm.errors import UserError, require
from vdm.runtime.atomic import write_text

BLOCK = 1024  # images that are read at a time
LOOK = 256  # images of a split that a start looks at

# Of whole test splits. The subsets of CIFAR-10 and MNIST have 1,017 and 1,000 test images (docs/data.md).
KNOWN = {
    "7cc8737aec30200b": "scikit-learn's digits, the 360 held out",
    "2c3cdccc83f43408": "the swirl's 2,000 test points",
    "c861ad9fbb66c03c": "the CIFAR-10 subset's test images",
    "d5c535c8e64d5df6": "the MNIST subset's test images",
}


def of_images(images: Images, vocab_size: int) -> str:
    """Of images: their number and shape, their levels, each value, and their order."""
    return _of([images], images.shape, vocab_size)


def of_split(split: Split, spec: Spec, count: int) -> str:
    """`of_images` of the first `count` of a split."""
    blocks = (
        split.read(np.arange(first, min(first + BLOCK, count)))["image"] for first in range(0, count, BLOCK)
    )
    return _of(blocks, (count, *spec.shape), spec.vocab_size)


def named(fingerprint: str) -> str:
    """The fingerprint, with the name of the images where they are KNOWN."""
    return f"{fingerprint} ({KNOWN[fingerprint]})" if fingerprint in KNOWN else fingerprint


def check(path: pathlib.Path, data: Data, keep: bool) -> None:
    """Compares the data with what a run was started with, by a look at some images of each split.

    Args:
      path: data.json of the workdir.
      keep: whether to write it where it is not there.

    Raises:
      UserError: there are more or fewer images, or others.
    """
    found = {name: _look(split, data.spec) for name, split in (("train", data.train), ("test", data.test))}
    if not path.exists():
        if keep:
            write_text(path, json.dumps(found, indent=2) + "\n")
        return
    try:
        before = json.loads(path.read_text())
        if not isinstance(before, dict):
            raise ValueError("it holds no names")
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is damaged ({error}); delete it, if the data are still the same."
        ) from error
    for name, now in found.items():
        require(
            before.get(name) == now,
            f"the {name} images are not those that this run was started with: {before.get(name)} then, {now} "
            f"now ({str(path)!r}). Give the data of that time, or another --workdir.",
        )


def _look(split: Split, spec: Spec) -> str:
    """ "N images, FINGERPRINT", of LOOK of them, spread evenly."""
    places = np.unique(np.linspace(0, split.size - 1, LOOK).astype(int))
    return f"{split.size} images, {of_images(split.read(places)['image'], spec.vocab_size)}"


def _of(blocks: Iterable[Images], shape: tuple[int, ...], vocab_size: int) -> str:
    found = hashlib.sha256(repr((tuple(map(int, shape)), int(vocab_size))).encode())
    for block in blocks:
        found.update(np.ascontiguousarray(block).tobytes())
    return found.hexdigest()[:16]
