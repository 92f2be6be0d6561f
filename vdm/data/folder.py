"""A folder of image files, which are read whenever they are needed."""

import dataclasses
import pathlib

from jaxtyping import UInt8
import numpy as np

from vdm.component import accept
from vdm.data import image_files
from vdm.data.damaged import Damaged
from vdm.data.dataset import Data, Spec, Split
from vdm.data.image_files import SUFFIXES
from vdm.data.source import Source, existing_path
from vdm.errors import UserError, require

GREY = ("1", "L", "LA", "I", "I;16", "I;16B")  # modes of Pillow
LARGEST = 8192  # largest image_size

Labelled = tuple[pathlib.Path, str]  # an image and the name of its label


@dataclasses.dataclass(frozen=True)
class Folder(Source):
    """A folder of image files with 256 levels; its subfolder test/ (or val/), or a tenth of it, is held out.

    Subfolders train/ and test/ (or val/) are the splits; without them, a tenth of the images is held out. The
    names of the folders below are the labels. The first readable image determines whether all images are grey
    or in colour.

    Attributes:
      data_dir: the folder.
      image_size: side of the square to which images are cropped, at their centre, and resized; 0: unchanged.
    """

    data_dir: str = ""
    image_size: int = 0

    def check(self) -> None:
        super().check()
        accept("image_size", 0 <= self.image_size <= LARGEST, f"0 (unchanged) to {LARGEST}")

    def load(self) -> Data:
        root = existing_path(self.data_dir, self.name, "a folder of images")
        parts = _parts(root)
        require(
            all(parts),
            f"config.data.data_dir is {str(root)!r}, which has too few images for a training and a "
            f"test split; accepted: files that end in {', '.join(SUFFIXES)}.",
        )
        names = sorted({label for part in parts for _, label in part})
        number = {name: index for index, name in enumerate(names)}
        mode, size = self._format([path for path, _ in parts[0]])
        files = tuple(str(path) for part in parts for path, _ in part)  # labels depend on both splits

        def split(part: list[Labelled]) -> Split:
            def read(indices):
                images = [_read(part[i][0], mode, size, bool(self.image_size)) for i in indices]
                labels = [number[part[i][1]] for i in indices]
                return {"image": np.stack(images), "label": np.array(labels, np.int32)}

            return Split(len(part), read, len(part) * size[0] * size[1] * len(mode), files)

        train, test = map(split, parts)
        classes = len(names) if len(names) > 1 else 0
        return Data(train, test, Spec((size[1], size[0], len(mode)), 256, classes))

    def _format(self, paths: list[pathlib.Path]) -> tuple[str, tuple[int, int]]:
        """The mode "L" or "RGB" of all images, and their width and height: those of the first image."""
        for path in paths:
            try:
                with image_files.opened(path) as image:
                    if self.skip_damaged:
                        image.load()
                    mode, size = "L" if image.mode in GREY else "RGB", image.size
                return mode, (self.image_size, self.image_size) if self.image_size else size
            except Damaged:
                if not self.skip_damaged:
                    raise
        raise UserError(f"config.data.data_dir is {self.data_dir!r}, where no training image can be read.")


def _parts(root: pathlib.Path) -> tuple[list[Labelled], list[Labelled]]:
    """The images of the training and of the test split."""
    train = root / "train"
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if train.is_dir() and test is not None:
        return _images(train), _images(test)
    files = _images(root)
    shuffled = np.random.default_rng(0).permutation(len(files))
    count = max(1, len(files) // 10)
    return [files[i] for i in shuffled[:-count]], [files[i] for i in shuffled[-count:]]


def _images(root: pathlib.Path) -> list[Labelled]:
    """All images below a folder with their labels, sorted by path."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [(path, path.relative_to(root).parts[0] if path.parent != root else "") for path in files]


def _read(
    path: pathlib.Path, mode: str, size: tuple[int, int], resize: bool
) -> UInt8[np.ndarray, "height width channels"]:
    """One image, cropped at its centre and resized to `size` if `resize`."""
    from PIL import Image, ImageOps

    with image_files.opened(path) as file:
        image = image_files.of_eight_bits(file).convert(mode)
    if image.size != size:
        require(
            resize,
            f"{str(path)!r} is {image.size[0]} × {image.size[1]}, the first image {size[0]} × {size[1]}; "
            "all must have the same size. To crop and resize them, set --config.data.image_size=SIDE.",
        )
        image = ImageOps.fit(image, size, Image.Resampling.BOX)
    pixels = np.asarray(image, np.uint8)
    return pixels.reshape(*pixels.shape[:2], -1)
