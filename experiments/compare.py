"""What two or more runs differ in: their configs, ELBO curves and final numbers.

  python -m experiments.compare runs/digits runs/other --out=runs/compare

Prints Markdown and writes it to compare.md; plots the curves into compare.png and compare.pdf.
Differences are to the first run, image by image where both workdirs have eval_images.csv, which
python -m vdm.main --workdir=W --mode=eval writes.
"""

from collections.abc import Mapping, Sequence
import json
import math
import pathlib

from absl import flags

from vdm.config import flat
from vdm.errors import require
from vdm.estimate import standard_error
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import command, curves, tables, workdirs
from vdm.sweep.output import make_folder
from vdm.sweep.workdirs import Record

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "runs/compare", "Folder for what is written.", flag_values=FLAGS)

# How a difference was taken, and what its error bar is.
HOW = {
    "image by image": "on the same test images, so that what the runs have in common cancels.",
    "unpaired": "± is √(a² + b²) of the runs' own. As the test images are the same, that is too large "
    "where both find the same images hard. For one image by image, give --mode=eval to both runs.",
    "other data": "not taken, as bits/dim of different test images do not compare the models.",
}
CAPTION = """
± is a standard error: it counts which test images were drawn, and the Monte-Carlo noise of evaluation,
but not what another training seed would change."""


def config_table(records: Mapping[str, Record]) -> str:
    """Markdown: the fields that differ between the configs, those that do not touch training last. A field
    that no component of a run reads is absent."""
    configs = [flat(record.config) for record in records.values()]
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
    note = "\n\nIn parentheses: how a run is evaluated and sampled, which its training does not depend on."
    return text + note * rows[-1][0]


def difference(record: Record, first: Record) -> tuple[float, float, str]:
    """How many bits/dim a run ends above the first: mean, standard error, and which of HOW."""
    if not record.final or not first.final:
        return math.nan, math.nan, "–"
    if not workdirs.same_images(record, first):
        return math.nan, math.nan, "other data"
    ours, others = workdirs.image_values(record), workdirs.image_values(first)
    if ours is not None and others is not None and len(ours) == len(others):
        return float((ours - others).mean()), standard_error(ours - others), "image by image"
    drop = workdirs.number(record.final, "bpd") - workdirs.number(first.final, "bpd")
    errors = (workdirs.number(one.final, "bpd_se") for one in (record, first))
    return drop, math.hypot(*errors), "unpaired"


def number_table(records: Mapping[str, Record]) -> str:
    """Markdown: each run's final number, and how far it is above the first's."""
    first, *_ = records.values()
    cells = []
    for label, record in records.items():
        own = [fixed(workdirs.number(record.final, f"bpd{part}")) for part in ("", "_se", "_se_noise")]
        drop, se, how = difference(record, first)
        above = ["", "", ""] if record is first else [fixed(drop), fixed(se), how]
        counts = [str(record.final.get(name, "–")) for name in ("images", "passes")]
        cells.append([label, *own, *above, *counts, tables.progress([record])])
    header = ("run", "bits/dim", "± s.e.", "± noise", "minus the first", "± s.e.", "how")
    notes = [f"- {how}: {text}" for how, text in HOW.items() if how in {row[6] for row in cells}]
    table = markdown_table((*header, "images", "passes", "step"), cells)
    return "\n".join([table, CAPTION, "", *notes]).rstrip()


def run(folders: Sequence[str], out: pathlib.Path | str) -> None:
    """Prints and writes what the runs differ in.

    Raises:
      UserError: a folder holds no run, there is but one, or none has measured anything yet.
    """
    require(folders, "no folder is given; give the workdirs of two runs or more.")
    variants = workdirs.find(folders)
    for label, some in variants.items():
        more = f"{label!r} is {len(some)} runs, such as {str(some[0])!r}; give each run's workdir, once."
        require(len(some) == 1, more)
    require(len(variants) > 1, f"{folders[0]!r} is one run; give the workdirs of two or more.")
    records = {label: workdirs.read(folder) for label, (folder,) in variants.items()}
    files = curves.plot_curves(variants, out, "compare")
    text = f"## Config\n\n{config_table(records)}\n\n## Final numbers\n\n{number_table(records)}\n"
    print(text, flush=True)
    (make_folder(out) / "compare.md").write_text(f"{text}\n![ELBO curves]({files[0].name})\n")
    print(f"{out}: compare.md, {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, lambda folders: run(folders, FLAGS.out))
