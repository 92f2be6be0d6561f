"""ELBO curves of runs and sweeps, also of those that are still going.

  python -m experiments.elbo_curves runs/digits
  python -m experiments.elbo_curves runs/digits runs/sweep --out=runs/curves

Takes workdirs, and sweeps: folders of workdirs named VARIANT-SEED, whose variants become one curve
each, with a band over the seeds. Draws bits/dim of the test split against steps and against seconds,
and each term, into elbo_curves.png and elbo_curves.pdf. Prints how far each run is, and its last number
with the standard error, which counts the test images and the Monte-Carlo noise.
"""

from experiments import results, workdirs
from vdm.reporting import report
from vdm.errors import require


def table(variants):
    """Markdown: of each run how far it is, and the last number.

    Args:
      variants: {variant: [workdirs]}.
    """
    header = ("run", "step", "of", "seconds", "bits/dim", "± s.e.", "at step")
    cells = []
    for variant, runs in workdirs.read_variants(variants).items():
        for run in runs:
            name = f"{variant}, seed {run.config['seed']}" if len(runs) > 1 else variant
            steps = [str(run.newest["step"]), str(run.config["train"]["steps"])]
            seconds = f"{workdirs.number(run.newest, 'seconds'):.0f}" if run.newest["step"] else "–"
            last = [report.fixed(workdirs.number(run.final, key)) for key in ("bpd", "bpd_se")]
            cells.append([name, *steps, seconds, *last, str(run.final.get("step", "–"))])
    return report.markdown_table(header, cells)


def run(folders, out):
    """Prints the table, and draws the curves.

    Raises:
      UserError: a folder holds no run, or none has measured anything yet.
    """
    require(folders, "no folder is given; give workdirs or sweeps, such as runs/digits.")
    variants = workdirs.find(folders)
    print(table(variants), flush=True)
    files = results.curves(variants, out, "elbo_curves")
    print(f"{out}: {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    workdirs.main(run, "runs/curves")
