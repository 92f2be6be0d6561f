"""How far variants end from a baseline, seed by seed and image by image; and what a study could tell."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
import textwrap

from jaxtyping import Float
import numpy as np

from vdm.reporting.text import fixed, latex_table, markdown_table
from vdm.runtime.atomic import write_text
from vdm.sweep.output import make_folder, write_csv
from vdm.sweep.workdirs import Record, Variants, image_values, number, read_variants, same_images

LEVEL, POWER = 0.95, 0.8
CAPTION = """Bits/dim of the test split, mean over seeds. "± over seeds" is its standard error by how far the
seeds are apart; "± of one run" counts the images and the noise of evaluation. "minus {baseline}" is the mean
difference to that variant, {how}. Its standard error and its {level:.0%} interval (Student's t, degrees of
freedom by Satterthwaite) count {what}. "could tell" is the difference that these seeds and images would find
with a probability of {power:.0%}: a smaller one can be there unseen."""
HOW = {
    "images": "seed by seed and image by image, on the same images with the same noise",
    "seeds": "seed by seed, as a run has no eval_images.csv",
    "none": "not taken, as not all were evaluated on the same images",
}
WHAT = {
    "images": "both which seeds and which images were drawn",
    "one seed": "which images were drawn; one seed says nothing of others",
    "seeds": "which seeds were drawn",
    "none": "nothing",
}


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference in bits/dim.

    Attributes:
      se: its standard error; NaN where one value says nothing of it.
      freedom: degrees of freedom of that.
      seeds: how many pairs of runs.
      how: of HOW.
    """

    mean: float
    se: float
    freedom: float
    seeds: int
    how: str

    @property
    def half(self) -> float:
        """Half of the interval of LEVEL."""
        return self._quantile(0.5 + LEVEL / 2) * self.se

    @property
    def could_tell(self) -> float:
        """The difference that is found, at that level, with a probability of POWER."""
        return (self._quantile(0.5 + LEVEL / 2) + self._quantile(POWER)) * self.se

    def _quantile(self, share):
        from scipy import stats  # only now, as it takes a while to import

        return float(stats.t.ppf(share, self.freedom)) if self.freedom > 0 else math.nan


def of_grid(values: Float[np.ndarray, "seeds images"]) -> tuple[float, float, float]:
    """The mean of differences of each seed and image; its standard error, as an estimate for all seeds and
    images that there could be; and the degrees of freedom.

    A value is a mean, an effect of its seed, one of its image and a rest. Seeds' means vary by the first and
    the rest, images' means by the second and the rest: so that the rest is counted twice, and taken off once.
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


def between(ours: Sequence[Record], others: Sequence[Record]) -> Difference:
    """How far the runs of a variant end above those of another, by the seeds that both have."""
    by_seed = {record.config.seed: record for record in others if record.final}
    pairs = [
        (record, by_seed[record.config.seed])
        for record in ours
        if record.final and record.config.seed in by_seed
    ]
    if not pairs or not all(same_images(one, other) for one, other in pairs):
        return Difference(math.nan, math.nan, 0.0, len(pairs), "none")
    images = [(image_values(one), image_values(other)) for one, other in pairs]
    rows = [
        one - other
        for one, other in images
        if one is not None and other is not None and len(one) == len(other)
    ]
    if len(rows) == len(pairs) and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
        return Difference(*of_grid(np.stack(rows)), len(pairs), "images")
    means = np.array([number(one.final, "bpd") - number(other.final, "bpd") for one, other in pairs])
    spread = float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return Difference(float(means.mean()), spread, len(means) - 1.0, len(pairs), "seeds")


def table(variants: Mapping[str, Sequence[Record]], baseline: str) -> list[dict[str, object]]:
    """A row of numbers for each variant."""
    rows: list[dict[str, object]] = []
    for name, records in variants.items():
        final = np.array([number(record.final, "bpd") for record in records])
        spread = float(final.std(ddof=1)) / math.sqrt(len(final)) if len(final) > 1 else math.nan
        own = float(np.mean([number(record.final, "bpd_se") for record in records]))
        row: dict[str, object] = {
            "variant": name, "bpd": float(final.mean()), "bpd_se_seeds": spread, "bpd_se_run": own,
            "seeds": len(records),
        }  # fmt: skip
        if name != baseline and baseline in variants:
            found = between(records, variants[baseline])
            low, high = found.mean - found.half, found.mean + found.half
            row |= {"difference": found.mean, "difference_se": found.se, "low": low, "high": high}
            row |= {"could_tell": found.could_tell, "pairs": found.seeds, "how": found.how}
        rows.append(row)
    return rows


def write(variants: Variants, out: pathlib.Path, baseline: str) -> list[pathlib.Path]:
    """Prints the table of differences, and writes it as differences.md, .csv and .tex; returns their paths.
    None of a study of one variant.

    Raises:
      UserError: as `read_variants` does.
    """
    found = read_variants(variants)
    if len(found) < 2 or baseline not in found:
        return []
    rows = table(found, baseline)
    header = ("variant", "bits/dim", "± over seeds", "± of one run", f"minus {baseline}", "±",
              f"{LEVEL:.0%} interval", "could tell", "seeds")  # fmt: skip
    cells = [_cells(row) for row in rows]
    of = [str(row["how"]) for row in rows if "how" in row]
    how = next((kind for kind in ("none", "seeds", "images") if kind in of), "none")
    what = "one seed" if how == "images" and min(len(records) for records in found.values()) == 1 else how
    caption = CAPTION.format(baseline=baseline, how=HOW[how], what=WHAT[what], level=LEVEL, power=POWER)
    text = f"{markdown_table(header, cells)}\n\n{textwrap.fill(caption, 110)}\n"
    print(text)
    paths = [make_folder(out) / f"differences{suffix}" for suffix in (".md", ".csv", ".tex")]
    write_text(paths[0], text)
    write_csv(paths[1], rows)
    write_text(paths[2], latex_table(header, cells) + "\n")
    return paths


def _cells(row):
    numbers = [fixed(row[name]) for name in ("bpd", "bpd_se_seeds", "bpd_se_run")]
    if "difference" not in row:
        return [row["variant"], *numbers, "", "", "", "", str(row["seeds"])]
    interval = "–" if math.isnan(row["low"]) else f"{_signed(row['low'])} to {_signed(row['high'])}"
    return [row["variant"], *numbers, _signed(row["difference"]), fixed(row["difference_se"]), interval,
            fixed(row["could_tell"]), str(row["seeds"])]  # fmt: skip


def _signed(value):
    return "–" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")
