"""The bits/dim of lossless image codecs on the same images."""

from collections.abc import Callable, Mapping
import importlib.util
import io
import math

from matplotlib.axes import Axes
import numpy as np
from tqdm import tqdm

from vdm.codec import plain
from vdm.codec.plain import Pixels
from vdm.data import image_files
from vdm.data.dataset import Images
from vdm.estimate import standard_error

Rates = Mapping[str, tuple[float, float]]  # bits/dim and their standard error over images, by name

LARGEST = 8192  # pixels of a sheet's side; WebP allows at most 16,383


def bits_per_dim(images: Images) -> Rates:
    """{codec: (bits/dim, standard error over images)} for the codecs of `lossless`: with one file per image,
    and with one sheet of all images, or as many as fit, for which the standard error is NaN."""
    found = {}
    _, height, width, _ = images.shape
    on_sheet = images[: (LARGEST // height) * (LARGEST // width)]
    for name, encode in lossless().items():
        bar = tqdm(images, name, disable=None, leave=False)
        values = np.array([8.0 * len(encode(image)) / image.size for image in bar])
        found[name] = float(values.mean()), standard_error(values)
        if len(on_sheet):
            found[f"{name}, one sheet"] = 8.0 * len(encode(sheet(on_sheet))) / on_sheet.size, math.nan
    return found


def draw_lines(axes: Axes, rates: Rates) -> None:
    """Draws a horizontal line at each rate, behind what is there; rates that are close share a label."""
    near = 0.035 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    labels: list[list[str]] = []
    for name, (rate, _) in sorted(rates.items(), key=lambda item: item[1]):
        axes.axhline(rate, color="0.6", lw=0.8, zorder=0)
        if labels and rate - rates[labels[-1][-1]][0] < near:
            labels[-1].append(name)
        else:
            labels.append([name])
    for names in labels:
        axes.annotate(
            "; ".join(names),
            xy=(1.0, rates[names[-1]][0]),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 1),
            textcoords="offset points",
            ha="right",
            fontsize=6,
        )


def sheet(images: Images) -> Pixels:
    """Tiles all images, row by row, into one nearly square image; the rest of the last row is black."""
    count, height, width, channels = images.shape
    columns = min(math.ceil(math.sqrt(count * height / width)), LARGEST // width)
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def lossless() -> dict[str, Callable[[Pixels], bytes | bytearray]]:
    """{codec: image → the bytes of its file}: PNG optimised, WebP of method 6, and, if imagecodecs is
    installed, JPEG XL of effort 9."""
    found: dict[str, Callable[[Pixels], bytes | bytearray]] = {
        "PNG": png,
        "WebP": plain.webp,
    }
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs  # an optional extra

        found["JPEG XL"] = lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=9)
    return found


def png(image: Pixels) -> bytes:
    """The bytes of an optimised PNG file."""
    file = io.BytesIO()
    image_files.of_pixels(image).save(file, "PNG", optimize=True)
    return file.getvalue()
