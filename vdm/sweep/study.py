"""Runs a study: trains variants of a config with several seeds each, and then computes the results.

A study is a file, such as those of experiments/, that ends with

  if __name__ == "__main__":
      study.main(__doc__, grid, results, config="configs/digits.py", seeds=2)

Each run is a `python -m vdm.main …` in its own workdir, WORKDIR/VARIANT-SEED, with its output in log.txt
there. Only unfinished runs are started, and they resume from their checkpoints: after Ctrl-C, SIGKILL or a
failure, the same command completes the study.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
import shlex
import sys
from typing import Any, NoReturn

from absl import flags

from vdm import commandline, config as config_lib
from vdm.errors import Stopped, one_of, require
from vdm.reporting.text import print_to_pipe
from vdm.runtime import cache, stop
from vdm.sweep import (
    budget,
    cluster,
    command,
    curves,
    differences,
    jobs,
    look as look_lib,
    plan,
    pool,
    saved as saved_lib,
    status,
    tables,
    variants,
    workdirs,
)

SEEDS = 3  # default for a study that only flags describe

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "workdir", None, "Folder of the study: its results, and a workdir for each run.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "seeds",
    SEEDS,
    "Number of seeds of each variant: 0, 1, …. A study that is a file may have another default.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "variant",
    [],
    "Adds a variant: 'NAME: config.FIELD=VALUE config.FIELD=VALUE'. May be repeated; a study keeps its "
    "earlier variants.",
    flag_values=FLAGS,
)
flags.DEFINE_multi_string(
    "vary",
    [],
    "Adds a variant for each value of a field: 'config.FIELD=VALUE,VALUE'. Repeated: for each combination.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "baseline", None, "The variant from which differences are taken; default: the first.", flag_values=FLAGS
)
flags.DEFINE_float(
    "width", 5.5, "Width of figures in inches: 5.5 for a page, 3.25 for a column.", flag_values=FLAGS
)
flags.DEFINE_list(
    "panels",
    [],
    "Panels of the curves: bits/dim of the test split against step, images seen, seconds, or operations "
    "(with --minutes); a term of the ELBO, such as prior; variance, of a draw in training; gamma, γ(t); "
    "density, of the bits over γ. Default: step, seconds, and the terms that change.",
    flag_values=FLAGS,
)
flags.DEFINE_list("log", [], "Logarithmic axes of bits/dim and terms: x, y.", flag_values=FLAGS)
flags.DEFINE_bool(
    "figures",
    False,
    "Draw tables and figures of the finished runs, without starting runs.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("status", False, "Print the state of each run, without starting runs.", flag_values=FLAGS)
flags.DEFINE_list("only", [], "Variants to run; default: all.", flag_values=FLAGS)
flags.DEFINE_integer(
    "jobs",
    1,
    "Number of concurrent runs on this machine; each has its share of the cores.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "gpus",
    [],
    "Indices of GPUs of this machine, such as 0,1,2,3: one run at a time on each. A GPU given twice takes "
    "two runs, if XLA_PYTHON_CLIENT_MEM_FRACTION lets them share its memory.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "cluster",
    None,
    ["slurm", "local"],
    "Submit the runs by submitit as a Slurm array, and wait; local: do the same without Slurm, as a test.",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "cluster_options",
    [],
    "Parameters of submitit, such as slurm_partition=gpu,timeout_min=600,gpus_per_node=1",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "minutes",
    None,
    "Training time of each run, in place of config.train.steps. First times a few steps of each variant, on "
    "the GPU or the share of the cores that a run gets, also with --dry_run: nothing else should run "
    "meanwhile.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "cache",
    None,
    "Folder for compiled programs and decoded images, if not that of vdm.main; '' disables the cache.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "dry_run", False, "Print the commands of the runs, or Slurm's script, and start none.", flag_values=FLAGS
)

# About half the steps of configs/digits.py: such a study ends within an hour on two cores.
SHORT = {"train.steps": 800, "train.checkpoint_every": 400}

LOOK = ("width", "panels", "log")  # flags of the figures, kept in study.json

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
    """Runs a study from its command line, and exits (stop.EXIT_CODES).

    Args:
      doc: the study's docstring, for --help.
      grid: ConfigDict → {variant: {dotted field: value}}; the config is the complete base config with the
        fields that the user set by --config.FIELD=VALUE. The field "config" is the file of another config.
      results: (workdir, {variant: [workdirs of its finished runs]}) → [paths that it wrote].
      config: file of the base config, if no --config is given.
      seeds: number of seeds, if no --seeds is given.
      fields: {dotted field: value} of all runs, for fields that the user does not set; with --minutes,
        without those of SHORT.
      minutes: training time of each run, if no --minutes is given; None: config.train.steps determines it.
    """
    FLAGS.set_default("seeds", seeds)
    FLAGS.set_default("minutes", minutes)
    given = commandline.split(sys.argv)

    def run(others):
        command.refuse_others(others)
        require(FLAGS.workdir, "--workdir is missing; give a folder for the study.")
        workdir = pathlib.Path(FLAGS.workdir).expanduser()
        saved = saved_lib.read(workdir)
        file = given.file or (saved.file if saved else config)
        args = given.args
        if saved and plan.resolved(file) == plan.resolved(saved.file):
            args = [*saved.args, *args]
        args = list({plan.field_of(arg): arg for arg in args}.values())
        for name in ("seeds", "minutes", "cache"):
            if saved and not FLAGS[name].present:
                FLAGS[name].value = getattr(saved, name)
        require(
            file,
            f"--config is missing, and {str(workdir)!r} is not the folder of a study; give a file, such as "
            "configs/digits.py.",
        )
        left_out = {*map(plan.field_of, args), *(SHORT if FLAGS.minutes is not None else ())}
        usual = [f"--config.{name}={value}" for name, value in (fields or {}).items()]
        usual = [arg for arg in usual if plan.field_of(arg) not in left_out]
        try:
            with command.stoppable():
                return study(grid, results, file, args, usual, workdir, saved)
        except (KeyboardInterrupt, Stopped):
            print("stopped; the same command resumes the study")
            raise

    command.main(doc, FLAGS, run, given.rest)


def table_and_curves(
    workdir: pathlib.Path,
    found: workdirs.Variants,
    more: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    caption: str = "",
) -> list[pathlib.Path]:
    """The usual results of a study: writes the table (`tables.write_table`) and the curves; returns their
    paths. Prints the table if it says more than that of the differences."""
    text = tables.write_table(found, workdir, more=more, caption=caption)
    if more or len(found) == 1:
        print(text)
    files = [workdir / name for name in ("table.md", "table.csv", "table_runs.csv")]
    return [*files, *curves.plot_curves(found, workdir)]


def study(
    grid: plan.Grid,
    results: Results,
    file: str,
    args: Sequence[str],
    usual: Sequence[str],
    workdir: pathlib.Path,
    saved: saved_lib.Saved | None,
) -> int:
    """Runs the missing trials, and then computes the results; returns the exit code.

    Args:
      file: file of the base config.
      args: the user's arguments --config.FIELD=VALUE for all runs.
      usual: the study's arguments, for fields that neither the user nor a variant sets.
      saved: the study as it was last run in this folder.
    """
    check_flags()
    by_flags = variants.merge(
        saved.variants if saved else {}, variants.of_grid(FLAGS.vary), variants.named(FLAGS.variant)
    )
    of_study, grid = grid, lambda config: variants.merge(of_study(config), by_flags)
    base = commandline.apply(config_lib.load(file), [*usual, *args])
    if saved:
        saved_lib.check_base(workdir, saved, base)
    described = grid(base)
    plan.check_file(described, file)
    every = list(described)
    for name in FLAGS.only:
        one_of("--only", name, every)
    baseline = FLAGS.baseline or (saved.baseline if saved else None)
    one_of("--baseline", baseline or every[0], every)
    kept_look = saved.look if saved else {}
    kept_look |= {name: FLAGS[name].value for name in LOOK if not saved or FLAGS[name].present}
    look_lib.of(kept_look).check()
    if FLAGS.minutes is not None:
        here, look = not FLAGS.cluster, FLAGS.status or FLAGS.figures
        grid = budget.fit(grid, file, args, workdir, FLAGS.minutes, FLAGS.only, here, usual, slots()[0], look)
    trials = plan.make_trials(grid, file, args, workdir, FLAGS.seeds, usual)
    if FLAGS.cache is not None:
        own = [f"--cache={FLAGS.cache}"]
        trials = [dataclasses.replace(trial, command=[*trial.command, *own]) for trial in trials]
    for trial in trials:
        checkpoint = trial.config.eval.checkpoint
        require(
            checkpoint == "newest",
            f"config.eval.checkpoint is {checkpoint!r}; accepted by a study: 'newest', as each run is "
            "evaluated after its last step.",
        )
    found: dict[str, list[pathlib.Path]] = {trial.variant: [] for trial in trials}
    saved_lib.require_different({trial.variant: trial.config for trial in trials[: len(found)]}, by_flags)
    done = [trial for trial in trials if plan.finished(trial)]
    plan.check_configs(done)
    curves.check_panels(kept_look["panels"], workdir, [trial.folder for trial in done], FLAGS.minutes)
    chosen = FLAGS.only or found
    missing = [trial for trial in trials if trial not in done and trial.variant in chosen]

    if FLAGS.status:
        print(status.table(trials))
        return stop.DONE
    if FLAGS.dry_run:
        if missing:
            print_to_pipe(dry_run(missing, workdir))
        return stop.DONE
    names = saved_lib.in_order(every, saved.names if saved else [])
    kept = saved_lib.Saved(
        plan.resolved(file), list(args), saved_lib.base_of(base), by_flags, names, baseline, FLAGS.seeds,
        FLAGS.minutes, kept_look, FLAGS.cache,
    )  # fmt: skip
    saved_lib.write(workdir, kept)
    failed: dict[pathlib.Path, str] = {}
    if not FLAGS.figures:
        failed = run_missing(missing, len(done), len(trials), workdir)
    for trial in filter(plan.finished, trials):
        found[trial.variant].append(trial.folder)
    found = {name: found[name] for name in names if found.get(name)}
    try:
        if found:
            cache.enable(cache.FOLDER if FLAGS.cache is None else FLAGS.cache)  # for what results compile
            compared = differences.write(found, workdir, baseline or names[0])
            files = [*results(workdir, found), *compared]
            print(f"{workdir}:", ", ".join(pathlib.Path(path).name for path in files))
        else:
            print("no run has finished yet")
    finally:
        if failed:
            print(
                f"{len(failed)} of {len(missing)} runs failed; the same command tries again:", file=sys.stderr
            )
        for folder, why in failed.items():
            print(f"  {folder.name}: {why} (see {folder / 'log.txt'})", file=sys.stderr)
    return stop.FAILED if failed else stop.DONE


def check_flags() -> None:
    """Raises UserError if two flags exclude each other."""
    require(
        FLAGS.cluster or not FLAGS.cluster_options,
        f"--cluster_options is {','.join(FLAGS.cluster_options)!r}, but no --cluster; add --cluster=slurm.",
    )
    for one, other in (("gpus", "jobs"), ("cluster", "gpus"), ("cluster", "jobs")):
        require(
            not (FLAGS[one].present and FLAGS[other].present),
            f"--{one} and --{other} are both given; leave one of them out.",
        )


def run_missing(
    missing: Sequence[plan.Trial], done: int, total: int, workdir: pathlib.Path
) -> dict[pathlib.Path, str]:
    """Runs the missing trials, here or on a cluster; returns {folder: reason} of those that failed."""
    names = ", ".join(dict.fromkeys(trial.variant for trial in missing))
    print(f"{done} of {total} runs have finished; {len(missing)} to run{names and f': {names}'}", flush=True)
    if not missing:
        return {}
    start: pool.Start = jobs.start
    places = slots()
    if FLAGS.cluster:
        executor = cluster.make_executor(FLAGS.cluster, workdir / "submitit", FLAGS.cluster_options)
        start, places = lambda trials, _: cluster.submit(executor, trials), [jobs.ANYWHERE] * len(missing)
    return pool.run_all(missing, start, places)


def slots() -> list[jobs.Slot]:
    """The parts of this machine on which runs take place at the same time."""
    return [jobs.Slot(gpu) for gpu in FLAGS.gpus] or jobs.shares(FLAGS.jobs)


def dry_run(missing: Sequence[plan.Trial], workdir: pathlib.Path) -> str:
    """The commands of trials, a line each; or the Slurm script, with its tasks as comments."""
    lines = [shlex.join(["python", *trial.command[1:]]) for trial in missing]
    if FLAGS.cluster == "slurm" and missing:
        executor = cluster.make_executor("slurm", workdir / "submitit", FLAGS.cluster_options)
        lines = [f"# task {task}: {line}" for task, line in enumerate(lines)]
        lines.insert(0, cluster.script(executor, len(missing)))
    return "\n".join(lines)
