"""Rows of estimates, their comparison image by image, and their tables."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from vdm.estimate import Estimate, standard_error
from vdm.reporting.text import fixed, markdown_table


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: the estimator's display name.
      bounds: name of the model whose negative log-likelihood the estimate bounds from above.
      estimate: the estimate, over the first test images.
      evaluations: number of evaluations of the network and of products with its Jacobian, per image.
      seconds: duration, with compilation.
      other_images: whether the images are not test images, so that the row is not compared with others.
      from_below: whether the estimate bounds from below, so that it may be negative.
      id: name in files, which does not change with the display name; "" for the display name.
      depth: T if the estimate is the ELBO of a chain, 0 for T → ∞; None for all other estimates.
    """

    name: str
    bounds: str
    estimate: Estimate
    evaluations: float
    seconds: float
    other_images: bool = False
    from_below: bool = False
    id: str = ""
    depth: int | None = None

    @property
    def key(self) -> str:
        """`id`, or the name."""
        return self.id or self.name

    def json(self) -> dict[str, Any]:
        """The row as plain data, without the numbers of each image."""
        return {
            "id": self.key,
            "name": self.name,
            "bounds": self.bounds,
            **self.estimate.json(),
            "evaluations": self.evaluations,
            "seconds": self.seconds,
        }


def tables(rows: Sequence[Row], series: dict[str, list[Row]], checks: Sequence[str]) -> str:
    """The table, the table of series["depth"] if there is one, and the checks, as Markdown."""
    parts = [table(rows)]
    if "depth" in series:
        parts.append(depth_table(series["depth"]))
    if checks:
        parts.append("\n".join(f"- {line}" for line in checks))
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; each is compared with the first, image by image, on their common
    images."""
    header = (
        "estimator", "bounds −log p of", "bits/dim", "± s.e.", "± noise",
        "minus the first", "± s.e.", "images", "evaluations/image", "seconds",
    )  # fmt: skip
    cells = []
    for row in rows:
        estimate = row.estimate
        own = [estimate.mean["bpd"], estimate.se["bpd"], estimate.noise["bpd"]]
        alone = row is rows[0] or row.other_images
        above = ["", ""] if alone else map(fixed, difference(row, rows[0]))
        counts = [str(estimate.images), f"{row.evaluations:.0f}", f"{row.seconds:.0f}"]
        cells.append([row.name, row.bounds, *map(fixed, own), *above, *counts])
    return markdown_table(header, cells)


def depth_table(rows: Sequence[Row]) -> str:
    """The ELBO at each depth as a Markdown table; the last row is T → ∞."""
    cells = []
    for row in rows:
        own = [row.estimate.mean["bpd"], row.estimate.se["bpd"]]
        above = ["", ""] if row is rows[-1] else map(fixed, difference(row, rows[-1]))
        cells.append([row.name, *map(fixed, own), *above])
    return markdown_table(("depth", "bits/dim", "± s.e.", "minus T → ∞", "± s.e."), cells)


def difference(row: Row, other: Row) -> tuple[float, float]:
    """The excess of a row over another on their common images: mean and standard error, in bits/dim."""
    images = min(row.estimate.images, other.estimate.images)
    each = row.estimate.values["bpd"][:images] - other.estimate.values["bpd"][:images]
    return float(each.mean()), standard_error(each)


def smallest_step(rows: Sequence[Row]) -> tuple[Row, Row] | None:
    """The neighbours (above, below) with the smallest difference in standard errors; None if no difference is
    known."""
    pairs = list(zip(rows, rows[1:]))
    differences = [mean / max(se, 1e-12) for mean, se in (difference(*pair) for pair in pairs)]
    return pairs[int(np.nanargmin(differences))] if np.isfinite(differences).any() else None


def order_line(claim: str, above: Row, below: Row) -> str:
    """Whether `above` is above `below`, image by image, up to three standard errors."""
    mean, se = difference(above, below)
    verdict = "NO" if mean < -3.0 * se else "yes"
    return f"{claim}: {verdict}; least certain from {above.name} to {below.name}, by {mean:.4f} ± {se:.4f}."


def agreement_line(claim: str, one: Row, other: Row) -> str:
    """Whether two rows are equal on their common images, up to three standard errors; the line states the
    error, as no smaller difference can be detected."""
    mean, se = difference(one, other)
    verdict = "not known" if math.isnan(se) else f"yes, to {3.0 * se:.4f}" if abs(mean) <= 3.0 * se else "NO"
    return f"{claim}: {verdict}; {one.name} is {mean:+.4f} ± {fixed(se)} above {other.name}."


def samples_line(rows: Sequence[Row]) -> str:
    """The bits/dim of the bounds with K = 1, 2, 4, … samples."""
    numbers = ", ".join(f"{row.estimate.mean['bpd']:.4f}" for row in rows)
    return f"{rows[0].name} and up to {rows[-1].name.split(', ')[-1]}: {numbers}."
