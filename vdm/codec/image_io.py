"""Reads images to compress, from a folder, an .npz file or the run's test split; writes decompressed
images."""

from collections import Counter
import io
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Int, UInt8
import numpy as np

from vdm.codec import archive
from vdm.data import image_files, npz
from vdm.data.dataset import Data, Spec
from vdm.data.image_files import SUFFIXES
from vdm.errors import UserError, require

TEST = "test"


class ImageSet(NamedTuple):
    """Images, and their labels and names if they have them."""

    image: UInt8[np.ndarray, "images height width channels"]
    label: Int[np.ndarray, "images"] | None = None
    names: list[str] | None = None


def read(source: str, data: Data) -> ImageSet:
    """The images of --input.

    Raises:
      UserError: there are no images, or the model does not accept their type, shape or levels.
    """
    path = pathlib.Path(source).expanduser()
    if source == TEST:
        examples = data.test.read(np.arange(data.test.size))
        found = ImageSet(examples["image"], examples["label"])
    elif path.is_dir():
        found = _read_folder(path, data.spec)
    else:
        require(
            path.is_file(),
            f"--input is {source!r}, which does not exist; accepted: a folder of images, an .npz file, or "
            f"{TEST!r} for the test split of the run.",
        )
        found = _read_npz(path)
    shape, levels = data.spec.shape, data.spec.vocab_size
    require(found.image.size, f"--input is {source!r}, which holds no image.")
    require(
        found.image.dtype == np.uint8 and found.image.shape[1:] == tuple(shape),
        f"--input is {source!r}, of {found.image.dtype} {list(found.image.shape[1:])}; accepted by this "
        f"model: uint8 {list(shape)}.",
    )
    top = int(found.image.max())
    require(
        top < levels,
        f"--input is {source!r}, which has values up to {top}; accepted by this model: 0 to {levels - 1}.",
    )
    return found


def check_target(target: pathlib.Path) -> None:
    """Raises UserError if `write` would overwrite anything except an .npz file."""
    free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(
        free or (target.suffix == ".npz" and target.is_file()),
        f"--output is {str(target)!r}, which exists already; give a new folder, or a name that ends in .npz.",
    )


def write(target: pathlib.Path, found: ImageSet) -> None:
    """Writes images atomically: an .npz file if the name ends in .npz, otherwise a folder of PNG files.

    Raises:
      UserError: the file or folder cannot be written.
    """
    if target.suffix == ".npz":
        arrays = {"image": found.image, "label": found.label, "name": found.names}
        known: dict[str, Any] = {name: value for name, value in arrays.items() if value is not None}
        file = io.BytesIO()
        np.savez_compressed(file, **known)
        archive.write(target, file.getvalue())
        return
    with archive.atomic_output(target) as part:
        for image, name in zip(found.image, _names(found), strict=True):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            image_files.of_pixels(image).save(part / name)


def _names(given: ImageSet) -> list[str]:
    """The names of the PNG files: those of the images, with the suffix .png."""
    if given.names is None:
        digits = len(str(len(given.image) - 1))
        return [f"{number:0{digits}}.png" for number in range(len(given.image))]
    instead = "give an --output that ends in .npz."
    for name in given.names:
        path = pathlib.PurePosixPath(name)
        require(
            not path.is_absolute() and ".." not in path.parts and not {"\\", "\0"} & set(name) and path.name,
            f"an image is called {name!r}, which lies outside --output; {instead}",
        )
    found = [name if name.lower().endswith(".png") else f"{name}.png" for name in given.names]
    twice = [name for name, count in Counter(name.casefold() for name in found).items() if count > 1]
    require(not twice, f"two images would be called {', '.join(twice[:3])}; {instead}")
    return found


def _read_folder(path: pathlib.Path, spec: Spec) -> ImageSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    require(
        files,
        f"--input is {str(path)!r}, where no image was found; accepted: files that end in "
        f"{', '.join(SUFFIXES)}.",
    )
    mode = "L" if spec.shape[2] == 1 else "RGB"
    images = []
    for file in files:
        with image_files.opened(file) as image:
            own, pixels, frames = image.mode, np.asarray(image), getattr(image, "n_frames", 1)
        require(
            own == mode and frames == 1 and pixels.shape[:2] == tuple(spec.shape[:2]),
            f"{str(file)!r} is {pixels.shape[0]} × {pixels.shape[1]}, mode {own}, {frames} of them; accepted "
            f"by this model: {spec.shape[0]} × {spec.shape[1]}, mode {mode}, one. The codec is lossless and "
            "does not convert: convert the image first.",
        )
        images.append(pixels.reshape(spec.shape))
    names = [file.relative_to(path).as_posix() for file in files]
    return ImageSet(np.stack(images), None, names)


def _read_npz(path: pathlib.Path) -> ImageSet:
    try:
        arrays = {name: npz.read_array(path, name) for name in npz.array_names(path)}
    except UserError as error:
        raise UserError(f"--input is {str(path)!r}, which cannot be read as an .npz file: {error}") from error
    name = next((name for name in ("image", "images") if name in arrays), None)
    require(
        name is not None,
        f"--input is {str(path)!r}, with the arrays {', '.join(arrays) or 'none'}; accepted: 'image'.",
    )
    image, label, names = arrays[name or ""], arrays.get("label"), arrays.get("name")
    for what, array, kinds in (("label", label, "iu"), ("name", names, "U")):
        require(
            array is None or (array.shape == image.shape[:1] and array.dtype.kind in kinds),
            f"--input is {str(path)!r}, whose array {what!r} does not have one entry for each image.",
        )
    image = image[..., None] if image.ndim == 3 else image
    return ImageSet(image, label, None if names is None else names.tolist())
