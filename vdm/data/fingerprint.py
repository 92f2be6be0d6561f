"""Fingerprints of images, as bits/dim are comparable only on the same images; and data.json, which contains
the fingerprints and the Spec of the data."""

from collections.abc import Iterable, Mapping
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from vdm.data.dataset import Data, Images, Spec, Split
from vdm.errors import UserError, require
from vdm.runtime.atomic import write_text

BLOCK = 1024  # number of images to read at a time
LOOK = 256  # number of images of a split that are checked when a run starts

# Fingerprints of whole test splits (docs/guide/data.md). The subsets of CIFAR-10 and MNIST have 1,017 and
# 1,000 images.
KNOWN = {
    "7cc8737aec30200b": "scikit-learn's digits, the 360 held out",
    "2c3cdccc83f43408": "the swirl's 2,000 test points",
    "c861ad9fbb66c03c": "the CIFAR-10 subset's test images",
    "d5c535c8e64d5df6": "the MNIST subset's test images",
}


def of_images(images: Images, vocab_size: int) -> str:
    """The fingerprint of the images' number, shape, levels, values and order."""
    return _of([images], images.shape, vocab_size)


def of_split(split: Split, spec: Spec, count: int) -> str:
    """`of_images` of the first `count` images of a split."""
    blocks = (
        split.read(np.arange(first, min(first + BLOCK, count)))["image"] for first in range(0, count, BLOCK)
    )
    return _of(blocks, (count, *spec.shape), spec.vocab_size)


def named(fingerprint: str) -> str:
    """The fingerprint, with the name of the images if they are KNOWN."""
    return f"{fingerprint} ({KNOWN[fingerprint]})" if fingerprint in KNOWN else fingerprint


def about(data: Data) -> dict[str, Any]:
    """The contents of data.json for a data set: "train" and "test", each the number of images and a
    fingerprint of some of them; and "spec", the fields of its Spec."""
    spec, splits = data.spec, {"train": data.train, "test": data.test}
    return {name: _look(split, spec) for name, split in splits.items()} | {"spec": fields(spec)}


def fields(spec: Spec) -> dict[str, Any]:
    """The fields of a Spec, for JSON."""
    return {
        "shape": [int(side) for side in spec.shape],
        "vocab_size": int(spec.vocab_size),
        "classes": int(spec.classes),
    }


def read(path: pathlib.Path) -> dict[str, Any]:
    """The contents of a data.json; {} if it does not exist.

    Raises:
      UserError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it holds no names")
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is damaged ({error}); delete it if the data are unchanged."
        ) from error
    return found


def spec_of(known: Mapping[str, Any], path: pathlib.Path) -> Spec | None:
    """The Spec in the result of `about`; None if an older version wrote none.

    Args:
      path: path of the file, for messages.

    Raises:
      UserError: the Spec is damaged.
    """
    if "spec" not in known:
        return None
    try:
        spec = Spec(**known["spec"])
        spec = dataclasses.replace(spec, shape=(*spec.shape,))  # type: ignore[arg-type]  # of any length
        numbers = (*spec.shape, spec.vocab_size, spec.classes)
        right = [type(number) for number in numbers] == 5 * [int] and spec.vocab_size <= 256
        right = right and all(number >= least for number, least in zip(numbers, (1, 1, 1, 2, 0)))
    except TypeError:
        right = False
    require(
        right,
        f"{str(path)!r} is damaged: its spec is {known['spec']!r}; accepted: 'shape', [height, width, "
        "channels], 'vocab_size', 2 to 256, and 'classes', 0 or more. Take another copy.",
    )
    return spec


def write(path: pathlib.Path, known: Mapping[str, Any]) -> None:
    """Writes a data.json atomically."""
    write_text(path, json.dumps(known, indent=2) + "\n")


def check(path: pathlib.Path, data: Data, keep: bool) -> None:
    """Checks, on some images of each split, that the data are those with which a run was started.

    Args:
      path: data.json of the workdir.
      keep: whether to write data.json if it does not exist or lacks a key.

    Raises:
      UserError: the number of images, or an image, differs.
    """
    before, now = read(path), about(data)
    then = {"spec": now["spec"]} | (before or now)  # an older version wrote no spec
    for name in now:
        what = "shape, levels and classes" if name == "spec" else f"{name} images"
        require(
            then.get(name) == now[name],
            f"the {what} are not those with which this run was started: {then.get(name)} then, {now[name]} "
            f"now ({str(path)!r}). Give the original data, or another --workdir.",
        )
    if keep and before != now:
        write(path, now)


def _look(split: Split, spec: Spec) -> str:
    """ "N images, FINGERPRINT"; the fingerprint is of LOOK images, evenly spread over the split."""
    places = np.unique(np.linspace(0, split.size - 1, LOOK).astype(int))
    return f"{split.size} images, {of_images(split.read(places)['image'], spec.vocab_size)}"


def _of(blocks: Iterable[Images], shape: tuple[int, ...], vocab_size: int) -> str:
    found = hashlib.sha256(repr((tuple(map(int, shape)), int(vocab_size))).encode())
    for block in blocks:
        found.update(np.ascontiguousarray(block).tobytes())
    return found.hexdigest()[:16]
