"""Trains finished runs further, and measures the change in the likelihood of the probability-flow ODE: with
the ELBO, with the second-order objective, and with variational dequantisation of the frozen model.

  python -m experiments.encoders --workdir=runs/E --only=plain
  python -m experiments.fine_tuning --workdir=runs/F --base=runs/E/plain-0,runs/E/plain-1,runs/E/plain-2

Each run is imported into a new workdir, WORKDIR/VARIANT-SEED (--mode=import), and trained there; the same
command resumes after an interruption. Writes fine_tuning.md and fine_tuning.csv.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import shutil
import sys
import textwrap
import time
from typing import Any

from absl import flags
import numpy as np

from vdm import commandline, run as run_lib, workdir as workdir_lib
from vdm.errors import Failed, require
from vdm.estimate import standard_error
from vdm.evaluation import ode
from vdm.reporting.text import fixed, markdown_table
from vdm.runtime import cache
from vdm.sweep import command, jobs, plan, pool, tables, workdirs
from vdm.sweep.output import make_folder, write_csv

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the study.", flag_values=FLAGS)
flags.DEFINE_list("base", [], "Workdirs of finished runs that differ in their seed.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 200, "Number of further training steps.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("learning_rate", 1e-3, "Learning rate, except for q(u|x).", flag_values=FLAGS)
flags.DEFINE_integer("images", 120, "Number of test images for the ODE.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("jobs", 1, "Number of concurrent runs.", lower_bound=1, flag_values=FLAGS)

# Times by importance sampling, as in i-DODE.
ON = {"model.times": "importance", "objective.name": "elbo"}
VARIANTS: dict[str, dict[str, Any]] = {
    "elbo": ON,
    "second_order": ON | {"objective.name": "second_order"},
    "dequantised": {
        "model.name": "dequantised",
        "objective.name": "elbo",
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 2e-3,
    },
}
ODE = {"eval.ode.nodes": 64, "eval.ode.tolerance": 1e-4}

Values = dict[str, list[float]]  # kind of dequantisation to the bits/dim of each image


def check_bases(bases: Sequence[pathlib.Path]) -> None:
    """Raises UserError if there is no run to start from, or one is not finished, or two have the same
    seed."""
    require(bases, "--base is missing; give the workdirs of finished runs, separated by commas.")
    seeds: dict[int, pathlib.Path] = {}
    for base in bases:
        record, newest = workdirs.read(base), workdir_lib.newest(base)
        require(
            newest and record.final.get("step") == newest,
            f"--base has {str(base)!r}, which has no final estimate of its newest checkpoint; finish it: "
            f"python -m vdm.main --workdir={base}",
        )
        other = seeds.setdefault(record.config.seed, base)
        require(
            other is base,
            f"--base has {str(other)!r} and {str(base)!r}, which have the same seed; give runs that "
            "differ in their seed.",
        )


def trial_from(base: pathlib.Path, variant: str, workdir: pathlib.Path) -> plan.Trial:
    """The run of a variant that starts from `base`."""
    fields = {
        "train.steps": FLAGS.steps, "train.eval_every": 0, "train.sample_every": 0, "optimizer.warmup": 20,
        "optimizer.learning_rate": FLAGS.learning_rate, **VARIANTS[variant],
    }  # fmt: skip
    args = [f"--config.{name}={value}" for name, value in fields.items()]
    config = commandline.apply(workdir_lib.read_raw(base), args, drop_unread=True)
    folder = workdir / f"{variant}-{config.seed}"
    line = [sys.executable, "-m", "vdm.main", f"--workdir={folder}", *args]
    return plan.Trial(variant, folder, config, line)


def import_base(base: pathlib.Path, trial: plan.Trial) -> None:
    """Imports a run into the folder of a trial, unless this is done.

    Raises:
      UserError: the folder has a run from another base, with another config, or of more steps.
      Failed: the import fails.
    """
    folder = trial.folder
    if (folder / "config.json").exists():
        source = json.loads((folder / "imported.json").read_text())["file"]
        require(
            pathlib.Path(source).resolve() == base.resolve(),
            f"{str(folder)!r} was trained further from {source!r}, not from {str(base)!r}; give another "
            "--workdir.",
        )
        workdir_lib.check_config(folder, trial.config)
        newest = workdir_lib.newest(folder) or 0
        require(
            newest <= trial.steps,
            f"{str(folder)!r} was trained for {newest} steps, and --steps is {trial.steps}; set "
            f"--steps={newest}, or give another --workdir.",
        )
        return
    if workdir_lib.newest(folder) == 0:  # an import was interrupted before it wrote config.json
        shutil.rmtree(folder / "checkpoints")
    process = jobs.Process([*trial.command, "--mode=import", f"--input={base}"], folder).start()
    while (why := process.poll()) is None:
        time.sleep(jobs.POLL)
    if why:
        raise Failed(f"the import of {str(base)!r} failed: {why} (see {folder / 'log.txt'})")


def kept_ode(folder: pathlib.Path) -> dict[str, Any]:
    """`measure`, cached for this number of images."""
    return workdirs.kept(folder, f"ode_{FLAGS.images}", measure)


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """{kind of dequantisation: the bits/dim of each image by the ODE}."""
    config = workdir_lib.read_config(folder)
    config.update_from_flattened_dict(ODE | {"eval.images": FLAGS.images})
    run = run_lib.restore(config, folder)
    rows = {kind: ode.flow_row(config, run, kind) for kind in run.model.flow_kinds}
    return {kind: row.estimate.values["bpd"].tolist() for kind, row in rows.items()}


def row_of(variant: str, folders: Sequence[pathlib.Path], before: Sequence[Values]) -> list[dict[str, Any]]:
    """One row per kind of dequantisation: the mean over seeds, and the change from the original runs, paired
    by image."""
    found = [kept_ode(folder) for folder in folders]
    elbo = np.array([workdirs.number(workdirs.read(folder).final, "bpd") for folder in folders])
    rows = []
    for kind in [kind for kind in found[0] if kind != "step"]:
        # The flow with q(u|x) starts at the same γ as with the uniform distribution.
        old = [values["uniform" if kind == "variational" else kind] for values in before]
        drops = [np.array(new[kind]) - np.array(was) for new, was in zip(found, old)]
        means = np.array([drop.mean() for drop in drops])
        rows.append(
            {
                "variant": variant,
                "start": kind,
                "bpd": float(np.mean([values[kind] for values in found])),
                "minus_before": float(means.mean()),
                "se_seeds": standard_error(means),
                "se_images": float(np.mean([standard_error(drop) for drop in drops])),
                "elbo": float(elbo.mean()),
                "elbo_se_seeds": standard_error(elbo),
                "seeds": len(folders),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]], steps: int, images: int) -> str:
    """The rows as Markdown."""
    header = ("trained on by", "the ODE starts", "bits/dim", "minus before", "± over seeds", "± of one run",
              "ELBO", "± over seeds")  # fmt: skip
    names = ("bpd", "minus_before", "se_seeds", "se_images", "elbo", "elbo_se_seeds")
    cells = [[row["variant"], row["start"], *(fixed(row[name]) for name in names)] for row in rows]
    note = f"""Bits/dim of the first {images} test images by the probability-flow ODE, one point for each; the
ELBO is of all test images. "minus before" is the difference from the original run, before {steps} further
steps, image by image, with the same points and probes; for `variational` from its start `uniform`. "± over
seeds" is from the spread of the seeds, "± of one run" counts the images.
{tables.seeds_note(row["seeds"] for row in rows)}"""
    return f"{markdown_table(header, cells)}\n\n{textwrap.fill(note, 110)}\n"


def run(others: Sequence[str]) -> None:
    """Trains and measures the runs that are missing, and prints and writes the table."""
    command.refuse_others(others)
    require(FLAGS.workdir, "--workdir is missing; give a folder for the study.")
    bases = [pathlib.Path(name).expanduser() for name in FLAGS.base]
    check_bases(bases)
    workdir = make_folder(FLAGS.workdir)
    cache.enable(cache.FOLDER)
    trials = {(base, name): trial_from(base, name, workdir) for name in VARIANTS for base in bases}
    for (base, _), trial in trials.items():
        import_base(base, trial)
    missing = [trial for trial in trials.values() if not plan.finished(trial)]
    failed = pool.run_all(missing, jobs.start, jobs.shares(FLAGS.jobs))
    if failed:
        folder, why = next(iter(failed.items()))
        raise Failed(
            f"{len(failed)} of {len(missing)} runs failed, and the same command tries again; the first, "
            f"{folder.name}: {why} (see {folder / 'log.txt'})"
        )
    before = [kept_ode(base) for base in bases]
    rows = row_of("(before)", bases, before)
    for name in VARIANTS:
        rows += row_of(name, [trials[base, name].folder for base in bases], before)
    text = table(rows, FLAGS.steps, FLAGS.images)
    print(text)
    (workdir / "fine_tuning.md").write_text(text)
    write_csv(workdir / "fine_tuning.csv", rows)
    print(f"{workdir}: fine_tuning.md, fine_tuning.csv")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, run)
