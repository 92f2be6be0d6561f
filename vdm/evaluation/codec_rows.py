"""The estimator "codec": the length of a file that the images are compressed to, and come back from."""

from collections.abc import Sequence
import dataclasses
import math
import time

from ml_collections import ConfigDict
import numpy as np

from vdm.codec import archive, codec
from vdm.codec.pictures import Pictures
from vdm.contract import Ability
from vdm.errors import require
from vdm.evaluation.depth_rows import depth_row
from vdm.evaluation.elbo_rows import OWN, chain_name
from vdm.evaluation.estimate import Estimate
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.table import Row, difference
from vdm.reporting.text import fixed
from vdm.run import Run


def _check(config: ConfigDict) -> None:
    images = config.codec.images
    require(images >= 0, f"config.codec.images is {images}; accepted: 0 (all) or more.")
    codec.check_config(config)


def _measure(config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
    """The file of the first config.codec.images of the test images, decompressed once more.

    What it has but the bits of each image, which are its random first bits and its header, is shared out
    among the images.
    """
    steps = config.codec.timesteps
    bound = done[0] if run.model.depth is None else depth_row(config, run, steps, done)
    most = config.eval.images or run.data.test.size
    examples = run.data.test.read(np.arange(min(config.codec.images or most, most)))
    given = Pictures(examples["image"], examples["label"])
    count, dims = len(given.image), given.image[0].size
    start = time.monotonic()
    made = codec.compress(config, run, given)
    data = archive.to_bytes(made.archive)
    there = time.monotonic()
    found = codec.decompress(config, run, archive.from_bytes(data, "the file"), "the file")
    back = time.monotonic()
    require(np.array_equal(found.image, given.image), "the images did not come back from the file.")

    header = 8 * len(data) - made.bits.sum() - made.initial
    parts = {"images": made.bits, "initial": made.initial / count, "header": header / count}
    values = {name: np.broadcast_to(bits / dims, count) for name, bits in parts.items()}
    values["bpd"] = np.sum(list(values.values()), axis=0)
    estimate = Estimate(values, dict.fromkeys(values, math.nan), 1, given_label=run.model.given_label)
    evaluations = 1 if Ability.EXACT in run.model.abilities else run.model.latents(steps).timesteps
    own = run.model.depth is None
    name, bounds = ("file", OWN) if own else (f"file, T = {steps}", chain_name(steps))
    row = print_row(Row(name, bounds, estimate, 2 * evaluations, back - start))
    images = Row("images", bounds, dataclasses.replace(estimate, values={"bpd": values["images"]}), 0, 0)
    above, se = difference(images, bound)
    verdict = "not known" if math.isnan(se) else "NO" if above < -3.0 * se else "yes"
    mean = estimate.mean
    checks = [
        f"The file has {len(data):,} bytes for {count} images: {mean['images']:.4f} bits/dim for the images, "
        f"{mean['initial']:.4f} for the random bits before the first, {mean['header']:.4f} for the header. "
        f"All came back. Seconds an image: {(there - start) / count:.4f} to compress, "
        f"{(back - there) / count:.4f} to decompress.",
        f"The images take no less than {bound.name}: {verdict}; by {above:+.4f} ± {fixed(se)} bits/dim, "
        f"{100.0 * above / bound.estimate.mean['bpd']:+.2f}%.",
    ]
    return Result([bound, row], checks=checks)


CODEC = Estimator(frozenset({Ability.CODE}), _check, _measure)
