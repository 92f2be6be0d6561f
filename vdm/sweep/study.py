"""Runs a study: variants of a config, each with several seeds, and then what the study makes of them.

A study is a file beside this one that ends with

  if __name__ == "__main__":
      study.main(__doc__, grid, results, config="configs/digits.py", seeds=2)

Each run is a plain `python -m vdm.main …` in its own workdir W/VARIANT-SEED, its output in log.txt there.
Only runs that have not finished are started, and go on from their own checkpoints: after Ctrl-C, SIGKILL
or a failure the same command does what is missing.
"""

from collections.abc import Callable, Mapping, Sequence
import pathlib
import shlex
import sys
from typing import Any, NoReturn

from absl import flags

from vdm import commandline
from vdm.errors import one_of, require
from vdm.sweep import budget, cluster, command, jobs, plan, pool

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "workdir", None, "Folder of the study: its results, and a workdir for each run.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "seeds", 2, "How many runs of each variant, of seeds 0, 1, …", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_list("only", [], "Variants to run; all, where none is given.", flag_values=FLAGS)
flags.DEFINE_integer("jobs", 1, "Runs at a time on this machine.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum(
    "cluster",
    None,
    ["slurm", "local"],
    "Submit the runs by submitit, as an array of Slurm, and wait; local: try that without Slurm.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "cluster_options",
    [],
    "submitit's parameters, such as slurm_partition=gpu,timeout_min=600,gpus_per_node=1",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "minutes",
    None,
    "Training time of each run, in place of config.train.steps. A few steps of each variant are timed first, "
    "with --dry_run too: let nothing else run meanwhile.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "dry_run", False, "Print the command of each run, or Slurm's script, and run none.", flag_values=FLAGS
)

# About half the digits' steps: a study of them ends within an hour on two cores.
SHORT = {"train.steps": 800, "train.eval_every": 200, "train.checkpoint_every": 400}

Results = Callable[[pathlib.Path, dict[str, list[pathlib.Path]]], Sequence[pathlib.Path]]


def main(
    doc: str | None,
    grid: plan.Grid,
    results: Results,
    config: str,
    seeds: int = 2,
    fields: Mapping[str, Any] | None = None,
    minutes: float | None = None,
) -> NoReturn:
    """Runs a study from its command line, and exits: with 1 where a run failed, 2 on bad input.

    Args:
      doc: the study's docstring, for --help.
      grid: ConfigDict → {variant: {dotted field: value}}; the config is the base config, complete, with
        what the user set by --config.FIELD=VALUE. The field "config" is another config's file.
      results: (workdir, {variant: [workdirs of its finished runs]}) → [paths that it wrote].
      config: file of the base config, where no --config is given.
      seeds: how many, where no --seeds is given.
      fields: {dotted field: value} of all runs, where the user sets no other; without those of SHORT, where
        there are --minutes.
      minutes: how long each run trains, where no --minutes is given; None: as config.train.steps says.
    """
    FLAGS.set_default("seeds", seeds)
    FLAGS.set_default("minutes", minutes)
    given = commandline.split(sys.argv)
    set_by_user = commandline.fields_of(given.args)

    def run(others):
        command.refuse_others(others)
        left_out = {*set_by_user, *(SHORT if FLAGS.minutes is not None else ())}
        own = [f"--config.{name}={value}" for name, value in (fields or {}).items() if name not in left_out]
        try:
            return study(grid, results, given.file or config, [*own, *given.args])
        except KeyboardInterrupt:
            print("stopped; the same command goes on from there")
            raise

    command.main(doc, FLAGS, run, given.rest)


def study(grid: plan.Grid, results: Results, file: str, args: Sequence[str]) -> int:
    """Does the missing runs, and then the results; returns the exit code.

    Args:
      file: of the base config.
      args: --config.FIELD=VALUE of all runs.
    """
    require(FLAGS.workdir, "--workdir is missing; give a folder for the study.")
    require(
        FLAGS.cluster or not FLAGS.cluster_options,
        f"--cluster_options is {','.join(FLAGS.cluster_options)!r}, but no --cluster; add --cluster=slurm.",
    )
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    if FLAGS.minutes is not None:
        grid = budget.fit(grid, file, args, workdir, FLAGS.minutes, FLAGS.only, not FLAGS.cluster)
    trials = plan.make_trials(grid, file, args, workdir, FLAGS.seeds)
    variants: dict[str, list[pathlib.Path]] = {trial.variant: [] for trial in trials}
    for name in FLAGS.only:
        one_of("--only", name, variants)
    done = [trial for trial in trials if plan.finished(trial)]
    plan.check_configs(done)
    chosen = FLAGS.only or variants
    missing = [trial for trial in trials if trial not in done and trial.variant in chosen]

    if FLAGS.dry_run:
        print(dry_run(missing, workdir), end="\n" if missing else "")
        return 0

    start: pool.Start = jobs.start
    at_once = FLAGS.jobs
    if FLAGS.cluster:
        executor = cluster.make_executor(FLAGS.cluster, workdir / "submitit", FLAGS.cluster_options)
        start, at_once = lambda trials: cluster.submit(executor, trials), len(missing)
    print(f"{len(done)} of {len(trials)} runs have finished; {len(missing)} to run", flush=True)
    failed = pool.run_all(missing, start, at_once) if missing else {}
    for trial in filter(plan.finished, trials):
        variants[trial.variant].append(trial.folder)
    found = {name: folders for name, folders in variants.items() if folders}
    if found:
        print(f"{workdir}:", ", ".join(pathlib.Path(path).name for path in results(workdir, found)))
    if failed:
        print(f"{len(failed)} of {len(missing)} runs failed; the same command tries again:", file=sys.stderr)
    for folder, why in failed.items():
        print(f"  {folder.name}: {why} (see {folder / 'log.txt'})", file=sys.stderr)
    return 1 if failed else 0


def dry_run(missing: Sequence[plan.Trial], workdir: pathlib.Path) -> str:
    """The commands of trials, a line each; or the script for Slurm, with its tasks as comments."""
    lines = [shlex.join(["python", *trial.command[1:]]) for trial in missing]
    if FLAGS.cluster == "slurm" and missing:
        executor = cluster.make_executor("slurm", workdir / "submitit", FLAGS.cluster_options)
        lines = [f"# task {task}: {line}" for task, line in enumerate(lines)]
        lines.insert(0, cluster.script(executor, len(missing)))
    return "\n".join(lines)
