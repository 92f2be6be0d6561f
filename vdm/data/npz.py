"""The data source "npz": arrays of images in .npz files, whose headers are not trusted."""

from collections.abc import Iterator
import contextlib
import dataclasses
import math
import os
import pathlib
from typing import Any
import zipfile

import numpy as np

from vdm.data.damaged import decoding
from vdm.data.dataset import Data, Images, Labels, Spec, held_out, in_memory
from vdm.data.source import Source, check_levels, existing_path
from vdm.errors import UserError, require

CLASSES = 1 << 20  # largest number of classes
RATIO = 1032  # largest number of bytes to which deflate expands one byte
SUFFIX = ".npy"

Arrays = tuple[Images, Labels | None]  # the images of a file, and their labels


@dataclasses.dataclass(frozen=True)
class Npz(Source):
    """One .npz file, or a folder of such files; the test split is recognised by name, or a tenth is held out.

    A file holds "image" (or "images"), uint8 [n, height, width(, channels)], and optionally "label"; or, as
    the published ImageNet32/64 batches, "data" uint8 [n, 3 · side · side] and "labels" from 1. In a folder,
    files whose names contain "val" or "test" are the test split; a single file may hold "test_image".
    Otherwise a tenth is held out.

    Attributes:
      data_dir: the .npz file, or the folder.
      vocab_size: number of levels of a value.
    """

    data_dir: str = ""
    vocab_size: int = 256

    def check(self) -> None:
        super().check()
        check_levels(self.vocab_size)

    def load(self) -> Data:
        root = existing_path(self.data_dir, self.name, "an .npz file or a folder of such files")
        train, test = _parts(root)
        _require_one_shape([part[0] for part in (train, test) if part is not None])
        images, labels = train
        if test is not None:
            splits = in_memory(images, labels), in_memory(*test)
        else:
            splits = held_out(in_memory(images, labels), max(1, len(images) // 10))
        found = [part[1] for part in (train, test) if part is not None]
        return Data(*splits, Spec(images.shape[1:], self.vocab_size, _classes(found)))


def _parts(root: pathlib.Path) -> tuple[Arrays, Arrays | None]:
    """The training and the test split; None for a test split that is to be held out of the training split."""
    files = sorted(root.glob("*.npz")) if root.is_dir() else [root]
    require(files, f"config.data.data_dir is {str(root)!r}, which holds no .npz file.")
    test = [path for path in files if any(word in path.stem for word in ("val", "test"))]
    train = [path for path in files if path not in test]
    if train and test:
        return _joined([_arrays(path) for path in train]), _joined([_arrays(path) for path in test])
    whole = _joined([_arrays(path) for path in files])
    has_test = len(files) == 1 and not {"test_image", "test_images"}.isdisjoint(array_names(files[0]))
    return whole, _arrays(files[0], "test_") if has_test else None


def _classes(labels: list[Labels | None]) -> int:
    """The number of classes in the labels of the splits; 0 if a split has no labels, as the other split's
    labels are then useless."""
    known = [part for part in labels if part is not None]
    if len(known) < len(labels):
        return 0
    return 1 + max(int(part.max()) for part in known)


def _arrays(path: pathlib.Path, prefix: str = "") -> Arrays:
    """Images and labels of a file; the names of the arrays begin with `prefix`."""
    names = array_names(path)
    image = next((n for n in (prefix + "image", prefix + "images") if n in names), None)
    label = next((n for n in (prefix + "label", prefix + "labels") if n in names), None)
    if image is not None:
        images = read_array(path, image)
        images = images[..., None] if images.ndim == 3 else images
        labels = read_array(path, label) if label else None
    elif "data" in names:
        images = _unflattened(path, read_array(path, "data"))
        labels = read_array(path, "labels") if "labels" in names else None
    else:
        raise UserError(
            f"{str(path)!r} has {'the arrays ' + ', '.join(sorted(names)) if names else 'no arrays'}; "
            f"accepted: {prefix + 'image'!r} of [n, height, width, channels], or the ImageNet batches' "
            "'data' of [n, 3 · side²]."
        )
    require(
        images.dtype == np.uint8 and images.ndim == 4 and images.size,
        f"the images of {str(path)!r} are {images.dtype} {list(images.shape)}; accepted: "
        "uint8 [n, height, width, channels], with n at least 1.",
    )
    if labels is not None:
        labels = _labels(path, labels, len(images), 0 if image is not None else 1)
    return np.ascontiguousarray(images), labels


def _unflattened(path: pathlib.Path, flat: np.ndarray) -> np.ndarray:
    """Reshapes the ImageNet batches' [n, 3 · height · width] to [n, height, width, 3]."""
    side = round((flat.shape[1] / 3) ** 0.5) if flat.ndim == 2 else 0
    require(
        side and flat.shape[1] == 3 * side**2,
        f"'data' in {str(path)!r} is {flat.dtype} {list(flat.shape)}; accepted: uint8 [n, 3 · side²].",
    )
    return flat.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)


def _labels(path: pathlib.Path, labels: np.ndarray, count: int, first: int) -> Labels:
    """The labels of `count` images, numbered from 0; in the file they are numbered from `first`."""
    integers = labels.ndim == 1 and labels.dtype.kind in "iu"
    ends = f", from {labels.min()} to {labels.max()}" if integers and labels.size else ""
    require(
        integers and len(labels) == count and first <= labels.min() and labels.max() < CLASSES,
        f"the labels of {str(path)!r} are {labels.dtype} {list(labels.shape)}{ends}; accepted: one integer "
        f"of {first} to {CLASSES - 1} for each of its {count} images.",
    )
    return labels.astype(np.int64) - first


def _joined(parts: list[Arrays]) -> Arrays:
    """The parts concatenated; without labels if a part has no labels."""
    images = [part[0] for part in parts]
    labels = [part[1] for part in parts if part[1] is not None]
    _require_one_shape(images)
    return np.concatenate(images), np.concatenate(labels) if len(labels) == len(parts) else None


def _require_one_shape(images: list[Images]) -> None:
    shapes = sorted({image.shape[1:] for image in images})
    require(
        len(shapes) == 1,
        f"the .npz files hold images of the shapes {', '.join(str(list(shape)) for shape in shapes)}; "
        "accepted: one shape.",
    )


def array_names(path: pathlib.Path) -> list[str]:
    """The names of the arrays in a file.

    Raises:
      UserError: the file cannot be read, or is not an .npz file.
    """
    with _opened(path) as file:
        return [name.removesuffix(SUFFIX) for name in file.namelist() if name.endswith(SUFFIX)]


def read_array(path: pathlib.Path, name: str) -> np.ndarray:
    """One of the arrays in a file.

    Raises:
      UserError: the array is damaged, or contains neither numbers nor text.
    """
    what = f"{name!r} in {str(path)!r}"
    with _opened(path) as file, decoding(f"{what} cannot be read"):
        about = file.getinfo(name + SUFFIX)
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        require(
            about.compress_type in kinds and not about.flag_bits & 1,
            f"{what} has an unknown compression; accepted: files of np.savez and np.savez_compressed.",
        )
        with file.open(about) as member:
            _check_header(member, about, what, path.stat().st_size)
        with file.open(about) as member:
            found = np.lib.format.read_array(member, allow_pickle=False)
            member.read()  # up to the end, where zipfile compares the checksum
    return found


def _check_header(member: Any, about: zipfile.ZipInfo, what: str, room: int) -> None:
    """Raises UserError if the file cannot hold the array that the header states, or the array is a pickle;
    `room` is the size of the file."""
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(member)
    require(version in versions, f"{what} is of version {version} of .npy; accepted: 1.0 and 2.0.")
    shape, _, dtype = versions[version](member)
    require(
        not dtype.hasobject,
        f"{what} is a pickle of Python objects, which can run any code and is never read; accepted: an array "
        "of numbers, such as uint8.",
    )
    packed = min(about.compress_size, room)
    holds = min(about.file_size, packed * (1 if about.compress_type == zipfile.ZIP_STORED else RATIO))
    size = math.prod(shape) * dtype.itemsize
    require(
        all(side >= 0 for side in shape) and member.tell() + size == about.file_size == holds,
        f"{what} is damaged: according to its header it is {dtype} {list(shape)}, {size:,} bytes, but the "
        f"file holds {max(0, holds - member.tell()):,}; get another copy.",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require(
        size < memory,
        f"{what} is {dtype} {list(shape)}, {size:,} bytes, but this machine has {memory:,}; give fewer "
        "images.",
    )


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    with decoding(f"{str(path)!r} cannot be read as an .npz file"):
        with path.open("rb") as start:
            alone = start.read(6) == np.lib.format.MAGIC_PREFIX
        require(not alone, f"{str(path)!r} is a single array; accepted: an .npz file, written by np.savez.")
        with zipfile.ZipFile(path) as file:
            yield file
