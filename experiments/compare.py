"""The differences between runs: their configs, ELBO curves and final numbers.

  python -m experiments.compare runs/digits runs/other --out=runs/compare
  python -m experiments.compare runs/schedules runs/other

Takes workdirs and studies. A study is a folder of workdirs named VARIANT-SEED, and has one row per variant.
Prints Markdown and writes it to compare.md; plots the curves into compare.png and compare.pdf. Differences
are from the first row, or, for a single study, from its baseline. They are paired by seed and by image if
possible; the column "how" states which.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib

from absl import flags

from vdm.config import flat
from vdm.errors import require
from vdm.reporting.text import markdown_table
from vdm.sweep import command, curves, differences, saved, tables, workdirs
from vdm.sweep.output import make_folder
from vdm.sweep.workdirs import Record

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "runs/compare", "Folder for the output.", flag_values=FLAGS)

CAPTION = """
"± over seeds" is from the spread of the seeds. "± of one run" counts which test images were drawn, and the
Monte-Carlo error of evaluation, but not what another training seed would change. The pairing of differences,
and what their errors count:"""
UNPAIRED = " For a difference image by image, run --mode=eval on both."


def config_table(records: Mapping[str, Record]) -> str:
    """Markdown: the fields that differ between the configs; those that do not affect training are last. A
    field that no component of a run reads is marked as absent."""
    configs = [flat(record.config) | {"seed": 0} for record in records.values()]
    rows = []
    for name in sorted({name for config in configs for name in config}):
        values = [json.dumps(c[name], ensure_ascii=False) if name in c else "absent" for c in configs]
        after = name.startswith(("eval.", "sample."))
        if len(set(values)) > 1:
            rows.append((after, [f"({name})" if after else name, *values]))
    if not rows:
        return "The configs are the same."
    rows.sort(key=lambda row: row[0])
    text = markdown_table(["field", *records], [cells for _, cells in rows])
    note = "\n\nIn parentheses: fields of evaluation and sampling, on which training does not depend."
    return text + note * rows[-1][0]


def number_table(variants: Mapping[str, Sequence[Record]]) -> str:
    """Markdown: each variant's final number, and its difference from the first."""
    baseline = next(iter(variants))
    cells = []
    for row, records in zip(differences.table(variants, baseline), variants.values()):
        cells_of_row = differences.cells(row)
        counts = [_spread(records, name) for name in ("images", "passes")]
        cells.append(
            [
                *cells_of_row[:-1],
                str(row.get("how", "")),
                *cells_of_row[-1:],
                *counts,
                tables.progress(records),
            ]
        )
    header = [*differences.header(baseline)[:-1], "how", "seeds", "images", "passes", "step"]
    hows = [how for how in differences.HOW if how in {row[8] for row in cells}]
    notes = [f"- {how}: {differences.HOW[how]}." for how in hows]
    table = markdown_table(header, cells)
    return "\n".join([table, CAPTION, "", *notes]).rstrip() + UNPAIRED * ("unpaired" in hows)


def _spread(records, name):
    """The value of a field of the final estimates, or its range if the records differ."""
    values = sorted({record.final[name] for record in records if name in record.final})
    return "–".join(map(str, values[:: max(1, len(values) - 1)])) or "–"


def run(folders: Sequence[str], out: pathlib.Path | str) -> None:
    """Prints and writes the differences between runs.

    Raises:
      UserError: a folder holds no run, there is only one run, or no run has measurements yet.
    """
    require(folders, "no folder is given; give the workdirs of two runs or more, or a study.")
    variants = workdirs.find(folders)
    study = saved.read(pathlib.Path(folders[0]).expanduser())
    if study and len(folders) == 1:
        variants = {name: variants[name] for name in (study.baseline, *study.names) if name in variants}
    require(len(variants) > 1, f"{folders[0]!r} is one run; give the workdirs of two or more, or a study.")
    records = workdirs.read_variants(variants)
    files = curves.plot_curves(variants, out, "compare")
    configs = config_table({name: of[0] for name, of in records.items()})
    text = f"## Config\n\n{configs}\n\n## Final numbers\n\n{number_table(records)}\n"
    print(text, flush=True)
    (make_folder(out) / "compare.md").write_text(f"{text}\n![ELBO curves]({files[0].name})\n")
    print(f"{out}: compare.md, {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, lambda folders: run(folders, FLAGS.out))
