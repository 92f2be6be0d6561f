"""ELBO curves of runs and sweeps, finished or active.

  python -m experiments.elbo_curves runs/digits
  python -m experiments.elbo_curves runs/digits runs/sweep --out=runs/curves

Takes workdirs and sweeps. A sweep is a folder of workdirs named VARIANT-SEED, drawn as one curve per variant
with a band over the seeds. Plots bits/dim of the test split against steps and against seconds, and the terms
that change, into elbo_curves.png and elbo_curves.pdf. Prints the progress of each run and its latest
bits/dim; the standard error includes the choice of test images and the Monte-Carlo error.
"""

from collections.abc import Sequence
import pathlib

from absl import flags

from vdm.errors import require
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import command, curves, workdirs

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "runs/curves", "Folder for the output.", flag_values=FLAGS)


def table(variants: workdirs.Variants) -> str:
    """Markdown: the progress of each run, and its latest bits/dim."""
    header = ("run", "step", "of", "seconds", "bits/dim", "± s.e.", "at step")
    cells = []
    for variant, records in workdirs.read_variants(variants).items():
        for record in records:
            name = f"{variant}, seed {record.config.seed}" if len(records) > 1 else variant
            steps = [str(record.newest["step"]), str(record.config.train.steps)]
            seconds = f"{workdirs.number(record.newest, 'seconds'):.0f}" if record.newest["step"] else "–"
            last = [fixed(workdirs.number(record.final, key)) for key in ("bpd", "bpd_se")]
            cells.append([name, *steps, seconds, *last, str(record.final.get("step", "–"))])
    return markdown_table(header, cells)


def run(folders: Sequence[str], out: pathlib.Path | str) -> None:
    """Prints the table, and plots the curves.

    Raises:
      UserError: a folder holds no run, or no run has measurements yet.
    """
    require(folders, "no folder is given; give workdirs or sweeps, such as runs/digits.")
    variants = workdirs.find(folders)
    print(table(variants), flush=True)
    files = curves.plot_curves(variants, out, "elbo_curves")
    print(f"{out}: {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, lambda folders: run(folders, FLAGS.out))
