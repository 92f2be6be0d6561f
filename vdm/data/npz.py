"""An .npz file of images, or a folder of them, such as the published ImageNet32/64 batches."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from vdm.data.dataset import Data, Images, Labels, Spec, held_out, in_memory
from vdm.data.source import Source, check_levels, existing_path
from vdm.errors import UserError, require

Arrays = tuple[Images, Labels | None]  # the images of a file, and their labels


@dataclasses.dataclass(frozen=True)
class Npz(Source):
    """One .npz file, or a folder of them.

    A file holds "image" (or "images"), uint8 [n, height, width(, channels)], and perhaps "label"; or, as the
    published ImageNet32/64 batches, "data" uint8 [n, 3 · side · side] and "labels" from 1. In a folder, names
    with "val" or "test" are the test split; one file alone may hold "test_image", else a tenth is held out.
    """

    data_dir: str = ""  # the .npz file, or the folder
    vocab_size: int = 256  # levels of a value

    def check(self) -> None:
        super().check()
        check_levels(self.vocab_size)

    def load(self) -> Data:
        root = existing_path(self.data_dir, self.name, "an .npz file or a folder of them")
        train, test = _parts(root)
        images, labels = train
        if test is not None:
            splits = in_memory(images, labels), in_memory(*test)
        else:
            splits = held_out(in_memory(images, labels), max(1, len(images) // 10))
        found = [part[1] for part in (train, test) if part is not None]
        return Data(*splits, Spec(images.shape[1:], self.vocab_size, _classes(root, found)))


def _parts(root: pathlib.Path) -> tuple[Arrays, Arrays | None]:
    """The training and the test split; None for the second where it is to be held out of the first."""
    files = sorted(root.glob("*.npz")) if root.is_dir() else [root]
    require(files, f"config.data.data_dir is {str(root)!r}, which holds no .npz file.")
    test = [path for path in files if any(word in path.stem for word in ("val", "test"))]
    train = [path for path in files if path not in test]
    if train and test:
        return _joined([_arrays(path) for path in train]), _joined([_arrays(path) for path in test])
    whole = _joined([_arrays(path) for path in files])
    has_test = len(files) == 1 and not {"test_image", "test_images"}.isdisjoint(_open(files[0]).files)
    return whole, _arrays(files[0], "test_") if has_test else None


def _classes(root: pathlib.Path, labels: list[Labels | None]) -> int:
    """How many classes the labels of the splits have; 0 where one has none, as those of the other alone are
    of no use."""
    known = [part for part in labels if part is not None]
    if len(known) < len(labels):
        return 0
    every: Labels = np.concatenate(known)
    require(
        every.ndim == 1 and every.dtype.kind in "iu" and every.min() >= 0,
        f"the labels of {str(root)!r} are {every.dtype} of {every.ndim} axes, from {every.min()}; accepted: "
        "one integer of 0 or more for each image.",
    )
    return int(every.max()) + 1


def _open(path: pathlib.Path) -> Any:
    try:
        arrays = np.load(path)
    except Exception as error:
        raise UserError(f"{str(path)!r} cannot be read as an .npz file: {error}") from error
    require(
        hasattr(arrays, "files"),
        f"{str(path)!r} is one array; accepted: an .npz file, which np.savez writes.",
    )
    return arrays


def _arrays(path: pathlib.Path, prefix: str = "") -> Arrays:
    """Images and labels of a file; their names begin with `prefix`."""
    arrays = _open(path)
    names = set(arrays.files)
    image = next((n for n in (prefix + "image", prefix + "images") if n in names), None)
    label = next((n for n in (prefix + "label", prefix + "labels") if n in names), None)
    if image is not None:
        images = arrays[image]
        images = images[..., None] if images.ndim == 3 else images
        labels = arrays[label] if label else None
    elif "data" in names and arrays["data"].ndim == 2:
        flat = arrays["data"]
        side = int(round((flat.shape[1] / 3) ** 0.5))
        images = flat.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
        labels = arrays["labels"] - 1 if "labels" in names else None
    else:
        raise UserError(
            f"{str(path)!r} has the arrays {', '.join(sorted(names))}; accepted: 'image' of "
            "[n, height, width, channels], or the ImageNet batches' 'data' of [n, 3 · side²]."
        )
    require(
        images.dtype == np.uint8 and images.ndim == 4,
        f"the images of {str(path)!r} are {images.dtype} {list(images.shape)}; accepted: "
        "uint8 [n, height, width, channels].",
    )
    return np.ascontiguousarray(images), labels


def _joined(parts: list[Arrays]) -> Arrays:
    """One after the other; without labels where one has none."""
    images = [part[0] for part in parts]
    labels = [part[1] for part in parts if part[1] is not None]
    if len({image.shape[1:] for image in images}) > 1:
        raise UserError("the .npz files hold pictures of different shapes; accepted: one shape.")
    return np.concatenate(images), np.concatenate(labels) if len(labels) == len(parts) else None
