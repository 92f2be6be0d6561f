"""A data set: two splits with random access, and the properties of their images that a model needs."""

from collections.abc import Callable
import dataclasses

from jaxtyping import Int
import numpy as np

from vdm.arrays import Images
from vdm.errors import UserError, require

Labels = Int[np.ndarray, "images"]
# "image": uint8 [batch, height, width, channels]; "label": int32 [batch], zeros if there are no labels.
Examples = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Spec:
    """The properties of the data that a model needs: the shape of an image, its levels, its labels."""

    shape: tuple[int, int, int]  # height, width, channels
    vocab_size: int  # each value is an integer in 0 … vocab_size − 1
    classes: int  # 0 if there are no labels


@dataclasses.dataclass(frozen=True)
class Split:
    """Random access to examples.

    Attributes:
      size: number of examples.
      read: function from indices, int [batch], to the examples.
      nbytes: number of bytes of all images in memory.
      files: all files on which `read` depends; () if the images are in memory.
      cache_name: identifies the split in the cache; set by source.load. "" disables the cache.
    """

    size: int
    read: Callable[[np.ndarray], Examples]
    nbytes: int
    files: tuple[str, ...] = ()
    cache_name: str = ""


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set: its splits and its Spec; the split `validation` selects the best checkpoint."""

    train: Split
    test: Split
    spec: Spec
    validation: Split | None = None


def blank(spec: Spec) -> Examples:
    """One example whose values are all 0, with "augmented", for uses in which only the shapes matter."""
    return {
        "image": np.zeros((1, *spec.shape), np.uint8),
        "label": np.zeros(1, np.int32),
        "augmented": np.zeros(1, np.float32),
    }


def without_images(spec: Spec, why: str) -> Data:
    """A data set of which only the spec is known. Reading an image raises UserError with the message
    `why`."""

    def read(indices):
        raise UserError(why)

    return Data(Split(0, read, 0), Split(0, read, 0), spec)


def in_memory(images: Images, labels: Labels | None = None) -> Split:
    """A split over arrays.

    Raises:
      UserError: the labels are not one integer per image.
    """
    if labels is not None:
        require(
            labels.shape == (len(images),) and np.issubdtype(labels.dtype, np.integer),
            f"the labels of {len(images)} images are {labels.dtype} {list(labels.shape)}; accepted: integers "
            f"[{len(images)}].",
        )
    numbers = np.zeros(len(images), np.int32) if labels is None else labels.astype(np.int32)

    def read(indices):
        return {"image": images[indices], "label": numbers[indices]}

    return Split(len(images), read, images.nbytes)


def held_out(split: Split, count: int) -> tuple[Split, Split]:
    """Divides a split into a training and a test split; the test split is a fixed random choice of `count`
    examples."""
    shuffled = np.random.default_rng(0).permutation(split.size)
    return (
        some_of(split, shuffled[:-count], f"without {count} held out"),
        some_of(split, shuffled[-count:], f"the {count} held out"),
    )


def some_of(split: Split, numbers: Int[np.ndarray, "some"], name: str) -> Split:
    """The examples of a split with the indices `numbers`; `name` identifies them in the cache."""
    return dataclasses.replace(
        split,
        size=len(numbers),
        read=lambda indices: split.read(numbers[indices]),
        nbytes=split.nbytes // split.size * len(numbers),
        cache_name=split.cache_name and f"{split.cache_name}, {name}",
    )
