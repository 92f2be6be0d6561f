"""Rows of estimates, how they compare image by image, and their table."""

import dataclasses
import math

import numpy as np

from vdm.evaluation import evaluate
from vdm.reporting import report


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: the estimator.
      bounds: whose negative log-likelihood it bounds from above.
      estimate: evaluate.Estimate, of the first so many test images.
      evaluations: of the network and of products with its Jacobian, per image.
      seconds: that it took, compilation included.
    """

    name: str
    bounds: str
    estimate: evaluate.Estimate
    evaluations: float
    seconds: float

    def json(self):
        """Flat."""
        return {
            "name": self.name,
            "bounds": self.bounds,
            **self.estimate.json(),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }


def tables(rows, series, checks):
    """The table, that of the depths, and the checks, as Markdown."""
    parts = [table(rows)]
    if "depth" in series:
        parts.append(depth_table(series["depth"]))
    if checks:
        parts.append("\n".join(f"- {line}" for line in checks))
    return "\n\n".join(parts) + "\n"


def table(rows):
    """The rows as a Markdown table; each against the first, image by image on the same images."""
    header = (
        "estimator", "bounds −log p of", "bits/dim", "± s.e.", "of it noise",
        "minus the first", "± s.e.", "images", "evaluations/image", "seconds",
    )  # fmt: skip
    cells = []
    for row in rows:
        estimate = row.estimate
        drop, se = drop_of(row, rows[0])
        numbers = [estimate.mean["bpd"], estimate.se["bpd"], estimate.noise["bpd"], drop, se]
        numbers = [report.fixed(number) for number in numbers]
        if row is rows[0]:
            numbers[3:] = ["", ""]
        counts = [str(estimate.images), f"{row.evaluations:.0f}", f"{row.seconds:.0f}"]
        cells.append([row.name, row.bounds, *numbers, *counts])
    return report.markdown_table(header, cells)


def depth_table(rows):
    """The ELBO at each depth as a Markdown table; the last row is T → ∞."""
    cells = []
    for row in rows:
        drop, se = drop_of(row, rows[-1])
        numbers = [row.estimate.mean["bpd"], row.estimate.se["bpd"], drop, se]
        numbers = [report.fixed(number) for number in numbers]
        if row is rows[-1]:
            numbers[2:] = ["", ""]
        cells.append([row.name, *numbers])
    return report.markdown_table(("depth", "bits/dim", "± s.e.", "minus T → ∞", "± s.e."), cells)


def drop_of(row, other):
    """How far a row is above another on the images of both: mean and standard error, bits/dim."""
    images = min(row.estimate.images, other.estimate.images)
    drop = row.estimate.values["bpd"][:images] - other.estimate.values["bpd"][:images]
    return float(drop.mean()), evaluate.standard_error(drop)


def least_drop(rows):
    """The neighbours whose drop is the least in standard errors, as [(above, below)]; [] where
    there are none."""
    pairs = list(zip(rows, rows[1:]))
    drops = [drop / max(se, 1e-12) for drop, se in (drop_of(*pair) for pair in pairs)]
    return [pairs[int(np.nanargmin(drops))]] if np.isfinite(drops).any() else []


def order(claim, above, below):
    """A line on whether `above` is above `below`, image by image, but for three s.e."""
    drop, se = drop_of(above, below)
    verdict = "NO" if drop < -3.0 * se else "yes"
    return (
        f"{claim}: {verdict}; least surely from {above.name} to {below.name}, "
        f"by {drop:.4f} ± {se:.4f}."
    )


def agreement(claim, one, other):
    """A line on whether two rows are the same on the same images, but for three s.e."""
    drop, se = drop_of(one, other)
    verdict = "not known" if math.isnan(se) else "yes" if abs(drop) <= 3.0 * se else "NO"
    return f"{claim}: {verdict}; {one.name} is {drop:+.4f} ± {report.fixed(se)} above {other.name}."


def list_of(rows):
    """A line with the bits/dim of each K."""
    numbers = ", ".join(f"{row.estimate.mean['bpd']:.4f}" for row in rows)
    return f"{rows[0].name} and up to {rows[-1].name.split(', ')[-1]}: {numbers}."
