"""Differences of variants from a baseline, paired by seed and image; and the smallest detectable
difference."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import textwrap
from typing import Any

from jaxtyping import Float
import numpy as np

from vdm.estimate import standard_error
from vdm.reporting.text import fixed, latex_table, markdown_table
from vdm.runtime.atomic import write_text
from vdm.sweep.output import make_folder, write_csv
from vdm.sweep.workdirs import Record, Variants, image_values, number, read_variants, same_images

LEVEL, POWER = 0.95, 0.8
CAPTION = """Bits/dim of the test split, mean over seeds. "± over seeds" is the standard error of the mean,
from the spread of the seeds; "± of one run" counts the images and the noise of evaluation. "minus {baseline}"
is the mean difference from that variant, with its standard error and {level:.0%} interval (Student's t,
degrees of freedom by Satterthwaite). {how} "could tell" is the smallest true difference that the same number
of seeds and images would detect with a probability of about {power:.0%}; a smaller one may go unnoticed."""
HOW = {
    "seeds and images": "paired by seed and by image, on the same images with the same noise; the error "
    "counts both which seeds and which images were drawn",
    "images": "paired by image, on the same images; the error counts which images were drawn, and not what "
    "another seed would change",
    "seeds": "paired by seed, as a run has no eval_images.csv of its final estimate; the error counts which "
    "seeds were drawn",
    "unpaired": "of single runs, of which one has no eval_images.csv of its final estimate; the error counts "
    "which images were drawn as if the two runs had different images, so that the interval is too wide",
    "not evaluated": "not taken, as no run of one of the two variants has been evaluated yet",
    "no common seed": "not taken, as the two variants have no seed in common",
    "other data": "not taken, as the two variants were evaluated on different images",
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference in bits/dim.

    Attributes:
      se: standard error of the mean; NaN if it cannot be estimated from one value.
      freedom: degrees of freedom of the standard error.
      seeds: number of pairs of runs.
      how: a key of HOW.
    """

    mean: float
    se: float
    freedom: float
    seeds: int
    how: str

    @property
    def half(self) -> float:
        """Half of the width of the interval at LEVEL."""
        return self._quantile(0.5 + LEVEL / 2) * self.se

    @property
    def could_tell(self) -> float:
        """The difference that is detected, at LEVEL, with a probability of POWER."""
        return (self._quantile(0.5 + LEVEL / 2) + self._quantile(POWER)) * self.se

    def _quantile(self, share):
        from scipy import stats  # imported late, as the import is slow

        if math.isinf(self.freedom):
            return float(stats.norm.ppf(share))
        return float(stats.t.ppf(share, self.freedom)) if self.freedom > 0 else math.nan


def of_grid(values: Float[np.ndarray, "seeds images"]) -> tuple[float, float, float]:
    """The mean of the differences for each seed and image; its standard error, as an estimate for all seeds
    and images; and the degrees of freedom.

    A value is the sum of a mean, an effect of its seed, an effect of its image and a residual. The means of
    seeds vary by the first effect and the residual, the means of images by the second and the residual. The
    sum of the two variances counts the residual twice, so it is subtracted once.
    """
    seeds, images = values.shape
    mean = float(values.mean())
    by_seed, by_image = values.mean(axis=1), values.mean(axis=0)
    of_images = float(by_image.var(ddof=1)) / images
    if seeds == 1:
        return mean, math.sqrt(of_images), images - 1.0
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    rest = values - by_seed[:, None] - by_image + mean
    freedom = (seeds - 1) * (images - 1)
    of_rest = float(np.square(rest).sum()) / freedom / (seeds * images)
    variance = max(of_seeds + of_images - of_rest, of_seeds, of_images)
    spread = of_seeds**2 / (seeds - 1) + of_images**2 / (images - 1) + of_rest**2 / freedom
    return mean, math.sqrt(variance), variance**2 / spread if spread else math.inf


def paired(
    ours: Mapping[int, Float[np.ndarray, "images"]], others: Mapping[int, Float[np.ndarray, "images"]]
) -> tuple[float, float]:
    """The mean difference of {seed: bits/dim of each image}, over the seeds that both have, and its standard
    error (`of_grid`); NaN if they have none in common."""
    pairs = [values - others[seed] for seed, values in ours.items() if seed in others]
    return of_grid(np.stack(pairs))[:2] if pairs else (math.nan, math.nan)


def between(ours: Sequence[Record], others: Sequence[Record]) -> Difference:
    """The difference of a variant from another, over the seeds that both have; two single runs are compared
    whatever their seeds are."""
    ours, others = ([one for one in runs if one.final] for runs in (ours, others))
    by_seed = {one.config.seed: one for one in others}
    pairs = [(one, by_seed[one.config.seed]) for one in ours if one.config.seed in by_seed]
    if len(ours) == len(others) == 1:
        pairs = [(ours[0], others[0])]
    none = Difference(math.nan, math.nan, 0.0, len(pairs), "no common seed")
    if not ours or not others:
        return dataclasses.replace(none, how="not evaluated")
    if not all(same_images(one, other) for one, other in pairs):
        return dataclasses.replace(none, how="other data")
    if not pairs:
        return none
    rows = [_by_image(one, other) for one, other in pairs]
    whole = [row for row in rows if row is not None]
    if len(whole) == len(rows) and len({len(row) for row in whole}) == 1:
        how = "seeds and images" if len(rows) > 1 else "images"
        return Difference(*of_grid(np.stack(whole)), len(pairs), how)
    drops = np.array([number(one.final, "bpd") - number(other.final, "bpd") for one, other in pairs])
    if len(drops) > 1:
        return Difference(float(drops.mean()), standard_error(drops), len(drops) - 1.0, len(pairs), "seeds")
    own = math.hypot(*(number(one.final, "bpd_se") for one in pairs[0]))
    return Difference(float(drops[0]), own, math.inf, 1, "unpaired")


def _by_image(one, other):
    ours, others = image_values(one), image_values(other)
    if ours is None or others is None or len(ours) != len(others) or len(ours) < 2:
        return None
    return ours - others


def table(variants: Mapping[str, Sequence[Record]], baseline: str) -> list[dict[str, Any]]:
    """A row of numbers for each variant."""
    rows: list[dict[str, Any]] = []
    for name, records in variants.items():
        final = np.array([number(record.final, "bpd") for record in records])
        own = float(np.mean([number(record.final, "bpd_se") for record in records]))
        row: dict[str, Any] = {"variant": name, "bpd": float(final.mean()), "seeds": len(records)}
        row |= {"bpd_se_seeds": standard_error(final), "bpd_se_run": own}
        if name != baseline and baseline in variants:
            found = between(records, variants[baseline])
            low, high = found.mean - found.half, found.mean + found.half
            row |= {"difference": found.mean, "difference_se": found.se, "low": low, "high": high}
            row |= {"could_tell": found.could_tell, "pairs": found.seeds, "how": found.how}
            if found.seeds < len(records):
                row["seeds"] = f"{len(records)}, {found.seeds} paired"
        rows.append(row)
    return rows


def write(variants: Variants, out: pathlib.Path, baseline: str) -> list[pathlib.Path]:
    """Prints the table of differences, and writes it as differences.md, .csv and .tex; returns their paths.
    Returns [] for a study of one variant, or if no run of the baseline has finished, as it then says.

    Raises:
      UserError: `read_variants` raises it.
    """
    found = read_variants(variants)
    paths = [make_folder(out) / f"differences{suffix}" for suffix in (".md", ".csv", ".tex")]
    if baseline not in found:
        print(f"no differences: no run of the baseline {baseline!r} has finished yet")
        for path in paths:
            path.unlink(missing_ok=True)  # from another baseline
    if len(found) < 2 or baseline not in found:
        return []
    rows = table(found, baseline)
    names, shown = header(baseline), [cells(row) for row in rows]
    of = {kind: [row["variant"] for row in rows if row.get("how") == kind] for kind in HOW}
    of = {kind: names_of for kind, names_of in of.items() if names_of}
    notes = [f"{', '.join(names_of)}: {HOW[kind]}." for kind, names_of in of.items()]
    how = " ".join(notes) if len(of) > 1 else f"It is {HOW[next(iter(of))]}." if of else ""
    caption = CAPTION.format(baseline=baseline, how=how, level=LEVEL, power=POWER)
    text = f"{markdown_table(names, shown)}\n\n{textwrap.fill(caption, 110)}\n"
    print(text)
    write_text(paths[0], text)
    write_csv(paths[1], rows)
    write_text(paths[2], latex_table(*_for_paper(baseline, rows)) + "\n")
    return paths


def _for_paper(baseline, rows):
    """Header and cells of a table that fits a page: an error stands beside its number."""
    with_error = lambda value, error: f"{value} ± {error}" if error not in ("", "–") else value
    body = []
    for row in rows:
        name, bpd, se, _, drop, drop_se, interval, could_tell, _ = cells(row)
        body.append([name, with_error(bpd, se), with_error(drop, drop_se), interval, could_tell])
    return ["variant", "bits/dim", f"minus {baseline}", f"{LEVEL:.0%} interval", "could tell"], body


def header(baseline: str) -> list[str]:
    """The header of the table."""
    numbers = ["bits/dim", "± over seeds", "± of one run", f"minus {baseline}", "±"]
    return ["variant", *numbers, f"{LEVEL:.0%} interval", "could tell", "seeds"]


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `table` as text."""
    numbers = [fixed(row[name]) for name in ("bpd", "bpd_se_seeds", "bpd_se_run")]
    if "difference" not in row:
        return [row["variant"], *numbers, "", "", "", "", str(row["seeds"])]
    interval = "–" if math.isnan(row["low"]) else f"{_signed(row['low'])} to {_signed(row['high'])}"
    return [row["variant"], *numbers, _signed(row["difference"]), fixed(row["difference_se"]), interval,
            fixed(row["could_tell"]), str(row["seeds"])]  # fmt: skip


def _signed(value):
    return "–" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")
