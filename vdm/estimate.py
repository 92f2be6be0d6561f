"""An estimate of bits per dimension: its mean over images, and its standard errors."""

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import json
import math
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np

from vdm.contract import bits_per_dim
from vdm.errors import require
from vdm.runtime.atomic import atomic_path, write_text

PerImage = Float[np.ndarray, "images"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate of the negative log-likelihood of some images, in bits/dim.

    Attributes:
      values: {term: value of each image, float64}; "bpd" is the sum of the terms.
      noise: {term: Monte-Carlo error, the standard error of the mean over exactly these images}. NaN for a
        single set of draws; too large if the sets differ in size.
      passes: number of times that each image was evaluated.
      exact: whether the estimate is of the negative log-likelihood itself, and not of the negative ELBO.
      given_label: whether the likelihood is that of images given their labels.
      data: fingerprint of the images; "" if it is unknown.
    """

    values: dict[str, PerImage]
    noise: dict[str, float]
    passes: int
    exact: bool = False
    given_label: bool = False
    data: str = ""

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.values["bpd"])

    @property
    def mean(self) -> dict[str, float]:
        """The mean over images."""
        return {name: float(values.mean()) for name, values in self.values.items()}

    @property
    def se(self) -> dict[str, float]:
        """The standard error of the mean, as an estimate for all images of the distribution.

        It includes the choice of the test images and the Monte-Carlo error, which adds to the spread between
        images.
        """
        return {name: standard_error(values) for name, values in self.values.items()}

    @property
    def images_se(self) -> dict[str, float]:
        """The part of `se` that is due to the choice of the test images; NaN if `noise` is NaN."""
        return {
            name: float(np.sqrt(np.maximum(se**2 - self.noise[name] ** 2, 0.0)))
            for name, se in self.se.items()
        }

    def json(self) -> dict[str, float | int | str | None]:
        """All numbers: NAME, NAME_se, and its parts NAME_se_images and NAME_se_noise; images; passes; and the
        fingerprint of the images if it is known. A number that is not finite is None."""
        numbers: dict[str, float] = {}
        for name, mean in self.mean.items():
            numbers |= {name: mean, f"{name}_se": self.se[name]}
            numbers |= {f"{name}_se_images": self.images_se[name], f"{name}_se_noise": self.noise[name]}
        numbers |= {"images": self.images, "passes": self.passes}
        found = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return found | ({"data": self.data} if self.data else {})


def standard_error(values: Float[np.ndarray, "n"]) -> float:
    """The standard error of the mean of independent values; NaN for one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def combine(sets: Sequence[tuple[int, dict[str, PerImage]]], shape: tuple[int, ...]) -> Estimate:
    """The Estimate from independent sets of draws.

    Args:
      sets: for each set, the number of passes, and the sum of each term over these passes, in nats.
      shape: shape of an image.
    """
    passes = np.array([length for length, _ in sets], np.float64)
    bits = {name: bits_per_dim(np.stack([terms[name] for _, terms in sets]), shape) for name in sets[0][1]}
    bits = {"bpd": sum(bits.values())} | bits if "bpd" not in bits else bits
    values = {name: sums.sum(axis=0) / passes.sum() for name, sums in bits.items()}

    def noise(name):
        # A mean of n_r passes counts n_r times: Σ n_r (m_r − m)² measures the spread of the means m_r.
        if len(sets) == 1:
            return math.nan
        means = bits[name] / passes[:, None]
        spread = passes @ np.square(means - values[name]) / (len(sets) - 1) / passes.sum()
        return math.sqrt(spread.mean() / spread.size)

    return Estimate(values, {name: noise(name) for name in values}, int(passes.sum()))


def require_possible(estimate: Estimate, what: str = "the bound") -> None:
    """Raises UserError if an estimate is not a number, or is impossibly low: as x is discrete, −log P(x) and
    every upper bound on it are at least 0."""
    for name, bits in reversed(estimate.mean.items()):  # the sum is the first
        require(
            not math.isnan(bits),
            f"{what} is not a number{_of_term(name)}: the network or another component gives NaN, or "
            "training has diverged.",
        )
    bits, se = estimate.mean["bpd"], estimate.se["bpd"]
    terms = ", ".join(f"{name} {value:.4f}" for name, value in estimate.mean.items() if name != "bpd")
    require(
        bits >= -max(5.0 * se if se == se else 0.0, 1e-3),
        f"{what} is {bits:.4f} bits/dim, which is impossible: no probability of discrete values exceeds "
        "1. A term is wrong: its sign is wrong, γ(t) decreases or its slope is not its derivative, `draw` "
        "omits a term or takes a density for a probability, or the weights of times are not 1/q(t)."
        + (f" The terms: {terms}." if terms else ""),
    )


def _of_term(name: str) -> str:
    return "" if name == "bpd" else f" in its term {name!r}"


def write_images(
    path: pathlib.Path | str, columns: Mapping[str, Float[np.ndarray, "some"]], images: int
) -> None:
    """Writes the numbers of each image as a CSV file, atomically. Shorter columns are empty at their end."""
    with atomic_path(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        writer.writerows(
            [i, *(values[i] if i < len(values) else "" for values in columns.values())] for i in range(images)
        )


def write_json(
    path: pathlib.Path | str, estimate: Estimate, step: int, more: Mapping[str, Any] | None = None
) -> None:
    """Writes an Estimate as JSON: its kind, its step, and all numbers; `more` comes last."""
    bound = "ELBO: an upper bound on the negative log-likelihood"
    kind = "exact negative log-likelihood" if estimate.exact else bound
    text = json.dumps(
        {
            "estimator": kind + (" given the label" if estimate.given_label else ""),
            "unit": "bits/dim",
            "step": step,
            **estimate.json(),
            **(more or {}),
        },
        indent=2,
    )
    write_text(path, text + "\n")
