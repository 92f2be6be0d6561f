"""What two or more runs differ in: their configs, ELBO curves and final numbers.

  python -m experiments.compare runs/digits runs/other --out=runs/compare

Prints Markdown and writes it to compare.md; draws the curves into compare.png and compare.pdf.
Differences are to the first run, image by image where both workdirs have eval_images.csv, which
python -m vdm.main --workdir=W --mode=eval writes.
"""

import json
import math

from experiments import results, workdirs
from vdm.reporting import report
from vdm.errors import require
from vdm.evaluation.evaluate import standard_error
from vdm.config import flat

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


def config_table(runs):
    """Markdown: the fields that differ between the configs, those that do not touch training last.

    Args:
      runs: {label: Run}.
    """
    configs = [flat(run.config) for run in runs.values()]
    rows = []
    for name in sorted({name for config in configs for name in config}):
        values = [json.dumps(c[name], ensure_ascii=False) if name in c else "absent" for c in configs]
        after = name.startswith(("eval.", "sample."))
        if len(set(values)) > 1:
            rows.append((after, [f"({name})" if after else name, *values]))
    if not rows:
        return "The configs are the same."
    rows.sort(key=lambda row: row[0])
    text = report.markdown_table(["field", *runs], [cells for _, cells in rows])
    told = "\n\nIn parentheses: how a run is evaluated and sampled, which its training does not depend on."
    return text + told * rows[-1][0]


def difference(run, first):
    """How many bits/dim a run ends above the first: (mean, standard error, which of HOW)."""
    if not run.final or not first.final:
        return math.nan, math.nan, "–"
    if workdirs.image_source(run) != workdirs.image_source(first):
        return math.nan, math.nan, "other data"
    ours, others = workdirs.images(run), workdirs.images(first)
    if ours is not None and others is not None and len(ours) == len(others):
        return float((ours - others).mean()), standard_error(ours - others), "image by image"
    drop = workdirs.number(run.final, "bpd") - workdirs.number(first.final, "bpd")
    errors = (workdirs.number(one.final, "bpd_se") for one in (run, first))
    return drop, math.hypot(*errors), "unpaired"


def number_table(runs):
    """Markdown: each run's final number, and how far it is above the first's. `runs`: {label: Run}."""
    first, *_ = runs.values()
    cells = []
    for label, run in runs.items():
        own = [report.fixed(workdirs.number(run.final, f"bpd{part}")) for part in ("", "_se", "_se_noise")]
        drop, se, how = difference(run, first)
        above = ["", "", ""] if run is first else [report.fixed(drop), report.fixed(se), how]
        counts = [str(run.final.get(name, "–")) for name in ("images", "passes")]
        cells.append([label, *own, *above, *counts, results.progress([run])])
    header = ("run", "bits/dim", "± s.e.", "of it noise", "minus the first", "± s.e.", "how")
    told = [f"- {how}: {text}" for how, text in HOW.items() if how in {row[6] for row in cells}]
    table = report.markdown_table((*header, "images", "passes", "step"), cells)
    return "\n".join([table, CAPTION, "", *told]).rstrip()


def run(folders, out):
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
    runs = {label: workdirs.read(folder) for label, (folder,) in variants.items()}
    files = results.curves(variants, out, "compare")
    text = f"## Config\n\n{config_table(runs)}\n\n## Final numbers\n\n{number_table(runs)}\n"
    print(text, flush=True)
    (results.make(out) / "compare.md").write_text(f"{text}\n![ELBO curves]({files[0].name})\n")
    print(f"{out}: compare.md, {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    workdirs.main(run, "runs/compare")
