"""Tables of variants, with error bars over their seeds."""

from collections.abc import Iterable, Mapping, Sequence
import math
import pathlib
import textwrap

import numpy as np

from vdm.estimate import standard_error
from vdm.reporting import figures
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep.output import make_folder, write_csv
from vdm.sweep.workdirs import Record, Variants, images_note, number, read_variants

CAPTION = """Bits/dim of the test split and its terms, means over seeds. "± over seeds" is the standard error
of that mean, from the spread of the seeds. {} It counts what a seed changes: the initial parameters, the
order of the data, the noise of training and of evaluation; but not which test images were drawn, as all seeds
have the same images. "± of one run" is the mean of the standard errors of the runs, which count the images
and the Monte-Carlo error of evaluation, but not what another seed would change. Seconds count from a run's
start, and include compilation and evaluations."""


def write_table(
    variants: Variants,
    out: pathlib.Path | str,
    more: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    caption: str = "",
) -> str:
    """Writes table.md, table.csv (a row for each variant) and table_runs.csv (a row for each run); returns
    the Markdown.

    Args:
      more: further columns, {column: {variant: (mean, standard error)}}; the error may be NaN.
      caption: explains the further columns.

    Raises:
      UserError: `read_variants` or `make_folder` raises it.
    """
    found, more, out = read_variants(variants), more or {}, make_folder(out)
    terms = figures.term_names(record.final for records in found.values() for record in records)
    rows = [_variant_row(variant, records, terms, more) for variant, records in found.items()]
    runs = [_run_row(variant, record, terms) for variant, records in found.items() for record in records]
    columns = {"bits/dim": "bpd", "± over seeds": "bpd_se_seeds", "± of one run": "bpd_se_run"}
    for column, numbers in more.items():
        known = any(not math.isnan(error) for _, error in numbers.values())
        columns |= {column: column, **({f"{column} ±": f"{column}_se"} if known else {})}
    columns |= {term: term for term in terms}
    cells = [
        [row["variant"], *(fixed(row[key]) for key in columns.values()), str(row["seeds"]), row["step"],
         f"{row['seconds']:.0f}"]
        for row in rows
    ]  # fmt: skip
    text = markdown_table(["variant", *columns, "seeds", "step", "seconds"], cells)
    other = images_note(record for records in found.values() for record in records)
    note = textwrap.fill(f"{CAPTION.format(seeds_note(row['seeds'] for row in rows))} {other}".strip(), 110)
    text += f"\n\n{note}\n" + (f"{caption}\n" if caption else "")
    (out / "table.md").write_text(text)
    write_csv(out / "table.csv", rows)
    write_csv(out / "table_runs.csv", runs)
    return text


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """The mean of one value for each seed, and its standard error; NaN for one seed."""
    return float(np.mean(values)), standard_error(np.array(values))


def seeds_note(counts: Iterable[int]) -> str:
    """How well a standard error over these numbers of seeds is known: with n values it has n − 1 degrees of
    freedom, and a relative error of about 1 / √(2n − 2)."""
    from scipy import stats  # imported late, as the import is slow

    notes = []
    for count in sorted(set(counts)):
        if count == 1:
            notes.append("It cannot be estimated from one seed (–).")
            continue
        freedom, width = count - 1, stats.t.ppf(0.975, count - 1)
        plural = "s" * (freedom > 1)
        notes.append(
            f"With {count} seeds it has {freedom} degree{plural} of freedom and a relative error of "
            f"{1 / math.sqrt(2 * freedom):.0%}; a 95% interval is ± {width:.1f} times it."
        )
    return " ".join(notes)


def _variant_row(variant, records, terms, more):
    row = {"variant": variant}
    for name in ("bpd", *terms):
        values = np.array([number(record.final, name) for record in records])
        own = [number(record.final, f"{name}_se") for record in records]
        row |= {name: float(values.mean()), f"{name}_se_seeds": standard_error(values)}
        row[f"{name}_se_run"] = float(np.mean(own))
    for column, numbers in more.items():
        row[column], row[f"{column}_se"] = numbers.get(variant, (math.nan, math.nan))
    seconds = float(np.mean([number(record.newest, "seconds") for record in records]))
    return row | {"seeds": len(records), "step": progress(records), "seconds": seconds}


def _run_row(variant, record, terms):
    row = {"variant": variant, "seed": record.config.seed, "folder": record.folder}
    for name in ("bpd", *terms):
        parts = [f"{name}{part}" for part in ("", "_se", "_se_images", "_se_noise")]
        row |= {part: number(record.final, part) for part in parts}
    row |= {name: record.final.get(name, math.nan) for name in ("images", "passes", "step")}
    return row | {"steps": record.config.train.steps, "seconds": number(record.newest, "seconds")}


def progress(records: Sequence[Record]) -> str:
    """The steps after which the final numbers were evaluated: "500", "500–1500", "500 of 1500", or "–"."""
    if not all(record.final for record in records):
        return "–"
    now, end = [record.final["step"] for record in records], [record.config.train.steps for record in records]
    spans = ["–".join(map(str, sorted({min(steps), max(steps)}))) for steps in (now, end)]
    return spans[0] if now == end else " of ".join(spans)
