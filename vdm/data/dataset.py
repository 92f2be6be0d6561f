"""Images in: where they come from, in what order they are seen, and in which batches.

A source is two splits, "train" and "test", of random access. The order of training is a
function of the seed and the position alone, so a run resumes in the middle of an epoch,
and every host knows which part of each batch is its own.
"""

import dataclasses
import difflib
import functools
import os
import pathlib
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from vdm.runtime import cache
from vdm.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a model must know of the data: the shape of a picture, its levels, its labels."""

    shape: tuple[int, int, int]  # height, width, channels
    vocab_size: int  # each value is an integer in 0 … vocab_size − 1
    classes: int  # 0 where there are no labels


@dataclasses.dataclass(frozen=True)
class Split:
    """Random access to examples.

    Attributes:
      size: how many there are.
      read: indices, int [n] → {"image": uint8 [n, height, width, channels], "label": int32 [n]}.
      nbytes: how much memory all its images take.
      files: what it is read from, each time; () where it is in memory.
    """

    size: int
    read: Any
    nbytes: int
    files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set: its two splits and what a model must know of them."""

    train: Split
    test: Split
    spec: Spec


def load(config):
    """The data set that `config.data` names.

    Raises:
      UserError: it is unknown, not prepared, not readable, or does not fit the config.
    """
    vocab_size = config.data.vocab_size
    require(
        2 <= vocab_size <= 256,
        f"config.data.vocab_size is {vocab_size}; accepted: 2 to 256, the levels of a uint8.",
    )
    name = config.data.name
    if name in SOURCES:
        train, test, classes = SOURCES[name](config.data)
    else:
        train, test, classes = _tfds(config.data)
    require(train.size > 0 and test.size > 0, f"data set {name!r} has an empty split.")

    # A look at some pictures finds a vocab_size that does not fit before hours are spent; 256 always does.
    count = 256 if vocab_size < 256 else 1
    some = train.read(np.unique(np.linspace(0, train.size - 1, count).astype(int)))["image"]
    require(
        int(some.max()) < vocab_size,
        f"config.data.vocab_size is {vocab_size}, but {name!r} has values up to "
        f"{int(some.max())}; accepted: {int(some.max()) + 1} or more.",
    )
    return Data(train, test, Spec(tuple(some.shape[1:]), vocab_size, classes))


def in_memory(images, labels=None):
    """A Split over arrays: uint8 [n, height, width, channels] and int [n] or None."""
    labels = np.zeros(len(images), np.int32) if labels is None else labels.astype(np.int32)

    def read(indices):
        return {"image": images[indices], "label": labels[indices]}

    return Split(len(images), read, images.nbytes)


# ---- order ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _permutation(seed, epoch, size):
    return np.random.default_rng((seed, epoch)).permutation(size)


def order(seed, positions, size):
    """Which example stands at each position of training: int64 [n] to int64 [n].

    Each run of `size` positions is one epoch, a permutation of all examples of its own.
    """
    positions = np.asarray(positions, np.int64)
    indices = np.empty_like(positions)
    for epoch in np.unique(positions // size):
        here = positions // size == epoch
        indices[here] = _permutation(seed, int(epoch), size)[positions[here] % size]
    return indices


def host_positions(step, batch_size, hosts, host):
    """The positions that a host reads for a step: its share of the global batch."""
    share = batch_size // hosts
    return step * batch_size + host * share + np.arange(share)


# ---- training ------------------------------------------------------------------------


def train_chunks(split, config, first, chunks):
    """Batches for the training step, from any position on.

    Where the training images take at most `config.data.on_device_gib`, they stand on the
    device, and a chunk is only indices; else Grain's threads read ahead.

    Args:
      first: the first step of all.
      chunks: pairs (step, number of steps), one after the other.

    Yields:
      For each chunk {"index": …} or {"image": …, "label": …}, NumPy
      [local devices, steps, batch per device, …].
    """
    hosts, host, devices = jax.process_count(), jax.process_index(), jax.local_device_count()
    size = config.train.batch_size

    def indices(step):
        return order(config.seed, host_positions(step, size, hosts, host), split.size)

    def stacked(steps):
        # [steps, host's batch, …] → [devices, steps, batch per device, …]
        def one(*values):
            value = np.stack(values)
            value = value.reshape(len(values), devices, -1, *value.shape[2:])
            return np.ascontiguousarray(value.swapaxes(0, 1))

        return jax.tree.map(one, *steps)

    if on_device(split, config):
        for begin, count in chunks:
            yield stacked(
                [{"index": indices(step).astype(np.int32)} for step in range(begin, begin + count)]
            )
        return

    import grain

    stream = iter(
        grain.MapDataset.range(first, config.train.steps)
        .map(lambda step: split.read(indices(step)))
        .to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=16))
    )
    for _, count in chunks:
        yield stacked([next(stream) for _ in range(count)])


def on_device(split, config):
    """Whether the split's images are to stand on every device."""
    return split.nbytes <= config.data.on_device_gib * 2**30


def resident(split, config):
    """All of the split as arrays to put on the devices; {} where it is to be streamed."""
    return everything(split, config, "train") if on_device(split, config) else {}


def everything(split, config, name):
    """All of a split as arrays; `name` is "train" or "test". Read from files once, and kept (cache.py)."""

    def read():
        parts = np.array_split(np.arange(split.size), max(1, split.size // 1024))
        bar = tqdm(parts, "reading images", disable=len(parts) < 10 or None, leave=False)
        return jax.tree.map(lambda *values: np.concatenate(values), *map(split.read, bar))

    if not split.files:
        return read()
    source = config.data
    where = os.path.commonpath(split.files)
    # Also this file, which says how they are read.
    return cache.arrays(repr((name, source.name, source.image_size, where)), (*split.files, __file__), read)


def in_memory_where_it_fits(split, config, name):
    """The Split itself, or where it is read from files and would fit on the devices, one over arrays."""
    if not split.files or not on_device(split, config):
        return split
    found = everything(split, config, name)
    return in_memory(found["image"], found["label"])


def resident_like(split, config):
    """The shapes and types of what `resident` reads, which it takes to read one example."""
    if not on_device(split, config):
        return {}
    one = split.read(np.zeros(1, int))
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct((split.size, *v.shape[1:]), v.dtype), one)


def eval_batches(split, batch_size, limit=0):
    """This host's share of a split in order, each example once, the last short batch included.

    Args:
      batch_size: of this host. The last batch is filled up with copies of example 0.
      limit: only so many examples of the split; 0 for all.

    Yields:
      {"image", "label", "augmented": zeros, "index": int32, the place in the split,
      "real": bool, false for what only fills up}, NumPy [batch_size, …]. Every host yields
      the same number of batches.
    """
    size = limit or split.size
    hosts, host = jax.process_count(), jax.process_index()
    for first in range(0, size, batch_size * hosts):
        index = first + host * batch_size + np.arange(batch_size)
        real = index < size
        index = np.where(real, index, 0)
        yield {
            **split.read(index),
            "augmented": np.zeros(batch_size, np.float32),
            "index": index.astype(np.int32),
            "real": real,
        }


# ---- sources -------------------------------------------------------------------------


def held_out(images, labels, count):
    """Splits arrays in two: a fixed random choice of `count` examples is the test split."""
    shuffled = np.random.default_rng(0).permutation(len(images))
    train, test = shuffled[:-count], shuffled[-count:]
    return tuple(
        in_memory(images[part], None if labels is None else labels[part])
        for part in (train, test)
    )


def _digits(config):
    """scikit-learn's 1,797 handwritten digits, 8 × 8, 17 levels; 360 are held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    return *held_out(images, digits.target, 360), 10


def _swirl(config):
    """20,000 points of a noisy spiral, as 1 × 1 pictures of two channels; 2,000 held out."""
    draw = np.random.default_rng(0)
    along = np.sqrt(draw.uniform(size=20_000))
    angle = 3.0 * np.pi * along
    points = along[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    points = 0.8 * points + 0.02 * draw.normal(size=points.shape)
    levels = np.clip((points + 1.0) / 2.0 * config.vocab_size, 0, config.vocab_size - 1)
    return *held_out(levels.astype(np.uint8)[:, None, None, :], None, 2_000), 0


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def _folder(config):
    """A folder of image files. With subfolders train/ and test/ (or val/) these are the
    splits, else a tenth is held out. Below that, one more level of folders is the labels."""
    root = _path(config, "a folder of images")
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if train.is_dir() and test is not None:
        parts = [_image_files(train), _image_files(test)]
    else:
        files = _image_files(root)
        shuffled = np.random.default_rng(0).permutation(len(files))
        count = max(1, len(files) // 10)
        parts = [[files[i] for i in shuffled[:-count]], [files[i] for i in shuffled[-count:]]]
    require(
        all(parts),
        f"config.data.data_dir is {str(root)!r}, where too few images were found for a "
        f"training and a test split; accepted: files that end in {', '.join(IMAGE_SUFFIXES)}.",
    )
    names = sorted({label for part in parts for _, label in part})
    number = {name: index for index, name in enumerate(names)}
    mode, size = _image_format(parts[0][0][0], config.image_size)

    def split(files):
        def read(indices):
            images = [_read_image(files[i][0], mode, size, config.image_size) for i in indices]
            labels = [number[files[i][1]] for i in indices]
            return {"image": np.stack(images), "label": np.array(labels, np.int32)}

        return Split(len(files), read, len(files) * size[0] * size[1] * len(mode), every)

    every = tuple(str(path) for part in parts for path, _ in part)  # labels depend on both splits
    return *map(split, parts), len(names) if len(names) > 1 else 0


def _image_files(root):
    """(path, label) of each image below a folder, in order of name."""
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    return [
        (path, path.relative_to(root).parts[0] if path.parent != root else "") for path in files
    ]


def _image_format(path, image_size):
    """"L" or "RGB", and (width, height), that the first image settles for all."""
    from PIL import Image

    with Image.open(path) as image:
        mode = "L" if image.mode in ("1", "L", "I;16") else "RGB"
        return mode, (image_size, image_size) if image_size else image.size


def _read_image(path, mode, size, resize):
    """One image, uint8 [height, width, channels], cropped to its middle and resized to `size`
    where `resize` allows it."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image = image.convert(mode)
        if image.size != size:
            require(
                resize,
                f"{str(path)!r} is {image.size[0]} × {image.size[1]}, the first image "
                f"{size[0]} × {size[1]}; they must be of one size. To crop and resize them "
                "all, set --config.data.image_size=SIDE.",
            )
            image = ImageOps.fit(image, size, Image.Resampling.BOX)
        pixels = np.asarray(image, np.uint8)
        return pixels.reshape(*pixels.shape[:2], -1)


def _npz(config):
    """One .npz file, or a folder of them.

    A file holds "image" (or "images"), uint8 [n, height, width(, channels)], and perhaps
    "label"; or, as the published ImageNet32/64 batches, "data" uint8 [n, 3 · side · side]
    and "labels" from 1. In a folder, names with "val" or "test" are the test split; one
    file alone may hold "test_image", else a tenth is held out.
    """
    root = _path(config, "an .npz file or a folder of them")
    files = sorted(root.glob("*.npz")) if root.is_dir() else [root]
    require(files, f"config.data.data_dir is {str(root)!r}, which holds no .npz file.")
    is_test = [any(word in path.stem for word in ("val", "test")) for path in files]
    if len(files) > 1 and any(is_test) and not all(is_test):
        train, test = (
            _joined([_npz_arrays(p) for p, test in zip(files, is_test) if test == wanted])
            for wanted in (False, True)
        )
        splits, held = (in_memory(*train), in_memory(*test)), test
    else:
        images, labels = train = _joined([_npz_arrays(path) for path in files])
        held = _npz_arrays(files[0], "test_") if len(files) == 1 else None
        if held is not None:
            splits = in_memory(*train), in_memory(*held)
        else:
            splits = held_out(images, labels, max(1, len(images) // 10))
    labels = [train[1]] if held is None else [train[1], held[1]]
    if any(one is None for one in labels):  # of one split alone, they are of no use
        return *splits, 0
    classes = np.concatenate(labels)
    require(
        classes.ndim == 1 and classes.dtype.kind in "iu" and classes.min() >= 0,
        f"the labels of {str(root)!r} are {classes.dtype} of {classes.ndim} axes, from {classes.min()}; accepted: "
        "one integer of 0 or more for each image.",
    )
    return *splits, int(classes.max()) + 1


def _npz_arrays(path, prefix=""):
    """Images and labels of a file; None where a prefix is asked for and absent."""
    try:
        arrays = np.load(path)
        names = set(arrays.files)
    except Exception as error:
        raise UserError(f"{str(path)!r} cannot be read as an .npz file: {error}") from error
    image = next((n for n in (prefix + "image", prefix + "images") if n in names), None)
    label = next((n for n in (prefix + "label", prefix + "labels") if n in names), None)
    if image is None and prefix:
        return None
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


def _joined(parts):
    images, labels = zip(*parts)
    if len({image.shape[1:] for image in images}) > 1:
        raise UserError("the .npz files hold pictures of different shapes; accepted: one shape.")
    joined = None if any(label is None for label in labels) else np.concatenate(labels)
    return np.concatenate(images), joined


def _path(config, what):
    path = pathlib.Path(os.path.expanduser(config.data_dir))
    require(
        config.data_dir and path.exists(),
        f"config.data.data_dir is {config.data_dir!r}, which does not exist; for "
        f"config.data.name = {config.name!r} it must be {what}.",
    )
    return path


def _tfds(config):
    """A TFDS data set, prepared before as array_record, which is read without TensorFlow."""
    import tensorflow_datasets as tfds

    name = config.name
    root = config.data_dir or os.path.join("~", "tensorflow_datasets")
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.registered.DatasetNotFoundError as error:
        base = name.split("/")[0].split(":")[0]
        known = tfds.list_builders(with_community_datasets=False)
        if base not in known:
            near = difflib.get_close_matches(base, [*SOURCES, *known], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"config.data.name is {name!r}; accepted: {', '.join(map(repr, SOURCES))}, or "
                f"the name of a TFDS data set.{hint}"
            ) from error
        raise _unprepared(name, root, "is not prepared") from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        kind = builder.info.file_format.value
        raise _unprepared(name, root, f"is prepared as {kind}, not as array_record,")
    splits = builder.info.splits
    held = next((key for key in ("test", "validation") if key in splits), None)
    if "train" not in splits or held is None or "image" not in builder.info.features:
        raise UserError(
            f"config.data.name is {name!r}, which has the splits {sorted(splits)} and the "
            f"features {sorted(builder.info.features)}; accepted: a data set with 'train', "
            "with 'test' or 'validation', and with 'image'."
        )
    label = builder.info.features["label"] if "label" in builder.info.features else None
    shape = builder.info.features["image"].shape

    def split(key):
        source = builder.as_data_source(split=key)

        def read(indices):
            records = source.__getitems__([int(i) for i in indices])
            labels = [record["label"] if label else 0 for record in records]
            return {
                "image": np.stack([record["image"] for record in records]),
                "label": np.array(labels, np.int32),
            }

        files = tuple(map(str, splits[key].filepaths))
        return Split(len(source), read, len(source) * int(np.prod([n or 1 for n in shape])), files)

    return split("train"), split(held), label.num_classes if label else 0


def _unprepared(name, root, state):
    return UserError(
        f"the TFDS data set {name!r} {state} in {root!r}. Where TensorFlow is installed, run "
        f"'tfds build {name} --data_dir={root} --file_format=array_record', or set "
        "config.data.data_dir to where it is prepared."
    )


SOURCES = {"digits": _digits, "swirl": _swirl, "folder": _folder, "npz": _npz}
