"""The estimator "codec": the length of a file that holds the images, checked by decompressing it."""

from collections.abc import Sequence
import dataclasses
import math
import time
from typing import ClassVar, NamedTuple

import jax
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm.codec import archive, codec
from vdm.codec.image_io import ImageSet
from vdm.contract import Ability
from vdm.errors import require
from vdm.estimate import Estimate, standard_error
from vdm.evaluation.depth import depth_row
from vdm.evaluation.elbo import OWN, chain_name
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.table import Row
from vdm.reporting.text import fixed
from vdm.run import Run


class File(NamedTuple):
    """A file to which test images were compressed, and from which they were decompressed.

    Attributes:
      size: size of the file in bytes.
      images: number of images in the file.
      values: bits/dim of each image that the model codes: "images" is the growth of its stack; "initial" and
        "header" are its share of the initial bits, and of the header and the rounding to whole words. Their
        means are those of all images.
      compress, decompress: seconds that each took, with compilation.
    """

    size: int
    images: int
    values: dict[str, Float[np.ndarray, "coded"]]
    compress: float
    decompress: float


def make_file(config: ConfigDict, run: Run) -> File:
    """The File of the first config.codec.images of the test images.

    Raises:
      UserError: codec.compress or codec.decompress raises it.
    """
    most = config.eval.images or run.data.test.size
    examples = run.data.test.read(np.arange(min(config.codec.images or most, most)))
    given = ImageSet(examples["image"], examples["label"])
    start = time.monotonic()
    made = codec.compress(config, run, given)
    data = archive.to_bytes(made.archive)
    middle = time.monotonic()
    found = codec.decompress(config, run, archive.from_bytes(data, "the file"), "the file")
    end = time.monotonic()
    assert np.array_equal(found.image, given.image)
    count, dims = len(given.image), given.image[0].size
    shares = {name: bits / count for name, bits in codec.parts(made, len(data)).items()}
    bits = {**shares, "images": made.bits}
    values = {name: np.broadcast_to(each / dims, len(made.bits)) for name, each in bits.items()}
    return File(len(data), count, values, middle - start, end - middle)


def above(file: File, bound: Row) -> tuple[float, float]:
    """The excess over a bound of the bits/dim of the images that the model codes, paired by image: mean and
    standard error."""
    count = min(len(file.values["images"]), bound.estimate.images)
    each = file.values["images"][:count] - bound.estimate.values["bpd"][:count]
    return float(each.mean()), standard_error(each)


@dataclasses.dataclass(frozen=True)
class Codec(Estimator):
    """The length of a file from which the images are recovered; config.codec has its fields."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.CODE})

    def check_config(self, config: ConfigDict) -> None:
        images = config.codec.images
        require(images >= 0, f"config.codec.images is {images}; accepted: 0 (all) or more.")
        codec.check_config(config)

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        if jax.process_count() > 1:
            return Result([], checks=["No file was made: a codec runs on a single host."])
        steps, own = config.codec.timesteps, run.model.depth is None
        bound = done[0] if own else depth_row(config, run, steps, done)
        file = make_file(config, run)
        values = {"bpd": np.sum(list(file.values.values()), axis=0), **file.values}
        estimate = Estimate(values, dict.fromkeys(values, math.nan), 1, given_label=run.model.given_label)
        evaluations = 1 if Ability.EXACT in run.model.abilities else run.model.latents(steps).timesteps
        name, bounds = ("file", OWN) if own else (f"file, T = {steps}", chain_name(steps))
        seconds, key = file.compress + file.decompress, "file" if own else f"file_T{steps}"
        row = print_row(Row(name, bounds, estimate, 2 * evaluations, seconds, id=key))
        mean, count, (more, se) = estimate.mean, file.images, above(file, bound)
        verdict = "not known" if math.isnan(se) else "NO" if more < -3.0 * se else "yes"
        checks = [
            f"The file has {file.size:,} bytes for {count} images: {mean['images']:.4f} bits/dim for the "
            f"images, {mean['initial']:.4f} for the initial bits, {mean['header']:.4f} for "
            f"the header. All images were recovered. Seconds per image: {file.compress / count:.4f} to "
            f"compress, {file.decompress / count:.4f} to decompress.",
            f"The images take no less than {bound.name}: {verdict}; by {more:+.4f} ± {fixed(se)} bits/dim, "
            f"{100.0 * more / bound.estimate.mean['bpd']:+.2f}%.",
        ]
        return Result([bound, row], checks=checks)
