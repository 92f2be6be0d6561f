"""Runs a study: variants of a config, each with several seeds, and then what the study makes of them.

A study is a file beside this one that ends with

  if __name__ == "__main__":
      sweep.main(__doc__, grid, results, config="configs/digits.py", seeds=2)

Each run is a plain `python -m vdm.main …` in its own workdir W/VARIANT-SEED, its output in log.txt there.
Only runs that have not finished are started, and go on from their own checkpoints: after Ctrl-C, SIGKILL
or a failure the same command does what is missing.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import re
import shlex
import signal
import sys
import time

from absl import flags, logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments import jobs
from vdm import main as vdm_main
from vdm.reporting import report
from vdm.runtime import workdir as workdir_lib
from vdm.errors import UserError, one_line, one_of, require
from vdm.config import flat

FLAGS = flags.FLAGS
# About half the digits' steps: a study of them ends within an hour on two cores.
SHORT = {"train.steps": 800, "train.eval_every": 200, "train.checkpoint_every": 400}

LOOK = 2.0  # seconds between looks at the metrics


def main(doc, grid, results, config, seeds=2, fields=None):
    """Runs a study from its command line, and exits: with 1 where a run failed, 2 on bad input.

    Args:
      doc: the study's docstring, for --help.
      grid: ConfigDict → {variant: {dotted field: value}}; the config is the base config with
        what the user set by --config.FIELD=VALUE. The field "config" is another config's file.
      results: (workdir, {variant: [workdirs of its finished runs]}) → [paths that it wrote].
      config: file of the base config, where no --config is given.
      seeds: how many, where no --seeds is given.
      fields: {dotted field: value} of all runs, where the user sets no other.
    """
    define_flags(seeds)
    if any(re.fullmatch("--?h(elp(=true)?)?", arg) for arg in sys.argv[1:]):
        print(f"{doc}\n{FLAGS.module_help(__name__)}")
        sys.exit(0)
    file, rest = vdm_main.value_of("config", sys.argv) or config, without_config(sys.argv[1:])
    # The config flag looks for its fields in sys.argv, and a field's last value counts.
    set_fields = [f"--config.{name}={value}" for name, value in (fields or {}).items()]
    sys.argv = [sys.argv[0], f"--config={file}", *set_fields, *rest]
    try:
        rest = vdm_main.parse(sys.argv)[1:]
        require(not rest, f"{' '.join(rest)!r} is no flag; see --help.")
        logging.set_verbosity(logging.ERROR)  # the libraries' own reports are not the study's
        sys.exit(study(grid, results))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there")
        sys.exit(130)


def without_config(args):
    """Arguments without --config=FILE or --config FILE."""
    pairs = zip(args, ["", *args])
    alone = ("--config", "-config")
    return [a for a, before in pairs if a not in alone and before not in alone and not re.match("--?config=", a)]


def define_flags(seeds):
    """Defines the flags of a study in place of vdm.main's, of which it has --config alone."""
    for flag in list(FLAGS.flags_by_module_dict()[vdm_main.__name__]):
        if flag.name != "config":
            delattr(FLAGS, flag.name)
    flags.declare_key_flag("config")
    flags.DEFINE_string("workdir", None, "Folder of the study: its results, and a workdir for each run.")
    flags.DEFINE_integer("seeds", seeds, "How many runs of each variant, of seeds 0, 1, …", lower_bound=1)
    flags.DEFINE_list("only", [], "Variants to run; all, where none is given.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time on this machine.", lower_bound=1)
    text = "Submit the runs by submitit, as an array of Slurm, and wait; local: try that without Slurm."
    flags.DEFINE_enum("cluster", None, ["slurm", "local"], text)
    text = "submitit's parameters, such as slurm_partition=gpu,timeout_min=600,gpus_per_node=1"
    flags.DEFINE_list("cluster_options", [], text)
    flags.DEFINE_bool("dry_run", False, "Print the command of each run, or Slurm's script, and run none.")


def study(grid, results):
    """Does the missing runs, and then the results; returns the exit code."""
    require(FLAGS.workdir, "--workdir is missing; give a folder for the study.")
    require(
        FLAGS.cluster or not FLAGS.cluster_options,
        f"--cluster_options is {','.join(FLAGS.cluster_options)!r}, but no --cluster; add --cluster=slurm.",
    )
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    runs = plan(grid, FLAGS["config"], workdir, FLAGS.seeds)
    variants = {run.variant: [] for run in runs}
    for name in FLAGS.only:
        one_of("--only", name, variants)
    done = [run for run in runs if finished(run)]
    check_configs(done)
    missing = [run for run in runs if run not in done and run.variant in (FLAGS.only or variants)]

    if FLAGS.dry_run:
        print(dry_run(missing, workdir), end="\n" if missing else "")
        return 0

    start, at_once = jobs.start, FLAGS.jobs
    if FLAGS.cluster:
        executor = jobs.make_executor(FLAGS.cluster, workdir / "submitit", FLAGS.cluster_options)
        start, at_once = lambda runs: jobs.submit(executor, runs), len(missing)
    print(f"{len(done)} of {len(runs)} runs have finished; {len(missing)} to run", flush=True)
    failed = run_all(missing, start, at_once) if missing else {}
    for run in filter(finished, runs):
        variants[run.variant].append(run.folder)
    found = {name: folders for name, folders in variants.items() if folders}
    if found:
        print(f"{workdir}:", ", ".join(pathlib.Path(path).name for path in results(workdir, found)))
    if failed:
        print(f"{len(failed)} of {len(missing)} runs failed; the same command tries again:", file=sys.stderr)
    for folder, why in failed.items():
        print(f"  {folder.name}: {why} (see {folder / 'log.txt'})", file=sys.stderr)
    return 1 if failed else 0


def dry_run(missing, workdir):
    """The commands of runs, a line each; or the script for Slurm, with its tasks as comments."""
    lines = [shlex.join(["python", *run.command[1:]]) for run in missing]
    if FLAGS.cluster == "slurm" and missing:
        executor = jobs.make_executor("slurm", workdir / "submitit", FLAGS.cluster_options)
        lines = [f"# task {task}: {line}" for task, line in enumerate(lines)]
        lines.insert(0, jobs.script(executor, len(missing)))
    return "\n".join(lines)


# ---- what there is to run ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """A variant with a seed: its workdir, and the command that trains it, or goes on with that."""

    variant: str
    folder: pathlib.Path
    config: ConfigDict
    command: list

    @property
    def steps(self):
        return self.config.train.steps


def plan(grid, flag, workdir, seeds):
    """[Run] of every variant and seed, the first seed of all variants first.

    Args:
      flag: --config, which knows its file and the fields that the user set.

    Raises:
      UserError: the file is none, or the grid sets what is no field, or what the user set too.
    """
    base, given = config_flags.get_config_filename(flag), config_flags.get_override_values(flag)
    require(
        pathlib.Path(base.partition(":")[0]).is_file(),
        f"--config is {base!r}, which does not exist. {vdm_main.nearest_file(base)}",
    )
    require("seed" not in given, "--config.seed is the study's to set; give --seeds, how many there are.")
    runs, variants = [], grid(flag.value)
    own = {fields.get("config", base) for fields in variants.values()}
    require(
        base in own,
        f"--config is {base!r}, but this study has configs of its own: {', '.join(sorted(own))}; leave it out, "
        "and set fields by --config.FIELD=VALUE.",
    )
    for seed, (variant, fields) in itertools.product(range(seeds), variants.items()):
        fields = dict(fields)
        file = fields.pop("config", base)
        twice = sorted(set(given) & set(fields))
        require(
            not twice,
            f"--config.{' and --config.'.join(twice)} cannot be set: the study itself sets it, in {variant!r}.",
        )
        fields = {**given, **fields, "seed": seed}
        config = flag.value.copy_and_resolve_references() if file == base else vdm_main.load_config(file).lock()
        folder = workdir / f"{variant}-{seed}"
        line = command(file, folder, fields)
        try:
            config.update_from_flattened_dict(fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"variant {variant!r}: {vdm_main.unknown_field(line, error)}") from error
        runs.append(Run(variant, folder, config, line))
    return runs


def command(file, folder, fields):
    """The command of a run with a config file and {dotted field: value}."""
    line = [sys.executable, "-m", "vdm.main", f"--config={file}", f"--workdir={folder}"]
    return line + [f"--config.{name}={value}" for name, value in fields.items()]


def finished(run):
    """Whether the last step was saved, which is the last thing that a run does."""
    return (run.folder / "eval.json").exists() and (workdir_lib.newest(run.folder) or 0) >= run.steps


def check_configs(done):
    """Raises UserError where a finished run is one of another config, or was evaluated in another way, and so
    is no result of this study."""
    for run in done:
        workdir_lib.check_config(run.folder, run.config)
        path, asked = run.folder / "config.json", flat(run.config)
        was = flat(json.loads(path.read_text())) if path.exists() else {}
        other = [name for name in asked if name.startswith("eval.") and was.get(name, asked[name]) != asked[name]]
        require(
            not other,
            f"{str(run.folder)!r} was evaluated with another {' and '.join(other)}; set "
            + ", ".join(f"--config.{name}={was[name]}" for name in other)
            + ", or give another --workdir.",
        )


# ---- all runs ---------------------------------------------------------------------------


def run_all(runs, start, at_once):
    """Does runs, so many at once, and tells how it goes.

    Args:
      start: [Run] → [jobs.Process or jobs.Job], started.

    Returns:
      {folder: why it failed}.

    Raises:
      KeyboardInterrupt: asked to stop, by Ctrl-C, SIGTERM or the end of the terminal, all have.
    """
    waiting, running, failed, answered = list(runs), [], {}, 0
    with stop_signals() as asked, contextlib.closing(Progress(runs)) as progress:
        while running or waiting and not asked:
            if waiting and not asked and len(running) < at_once:
                new = waiting[: at_once - len(running)]
                running += zip(new, start(new))
                del waiting[: len(new)]
                for run in new:
                    progress.say(f"{run.folder.name}: started")
            for _ in asked[answered:]:
                for _, job in running:
                    job.send(signal.SIGKILL if answered else signal.SIGINT)  # at SIGINT it saves
                answered += 1
                progress.say("stopping; once more to kill the runs, unsaved")
            for run, job in list(running):
                why = job.poll()
                if why is None:
                    continue
                running.remove((run, job))
                if asked and not finished(run):
                    progress.say(f"{run.folder.name}: {why}")
                    continue
                if not finished(run):
                    failed[run.folder] = why or f"it ended without a checkpoint of step {run.steps}"
                progress.end(run, failed.get(run.folder))
            progress.look([run for run, _ in running])
            time.sleep(jobs.POLL)
    if asked:
        raise KeyboardInterrupt
    return failed


@contextlib.contextmanager
def stop_signals():
    """Collects signals to stop in the list that it yields; one that is ignored, as by nohup, stays so."""
    asked = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Progress:
    """A bar over the steps of all runs, and a line for each run; lines alone off a terminal."""

    def __init__(self, runs):
        self._steps = {run.folder: reached(run) for run in runs}
        self._total = {run.folder: run.steps for run in runs}
        self._ended, self._failed = 0, 0
        self._first = sum(self._steps.values())
        self._began = self._looked = time.monotonic()
        self._bar = tqdm(
            total=sum(self._total.values()), initial=self._first, unit="step", smoothing=0,
            disable=None, dynamic_ncols=True,
        )  # fmt: skip

    def look(self, running):
        """Moves the bar, now and then."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        self._steps |= {run.folder: reached(run) for run in running}
        self._bar.total = sum(self._total.values())
        self._bar.update(sum(self._steps.values()) - self._bar.n)
        done = self._ended - self._failed
        self._bar.set_postfix_str(f"{done} done, {self._failed} failed, {len(running)} running")

    def end(self, run, why):
        """Tells of a run that ended, and why where it failed."""
        self._looked = 0.0
        self._ended += 1
        self._failed += bool(why)
        self._steps[run.folder] = reached(run) if why else run.steps
        self._total[run.folder] = self._steps[run.folder]  # no time goes to the rest
        steps, left = sum(self._steps.values()), sum(self._total.values()) - sum(self._steps.values())
        text = f"{self._ended}/{len(self._total)} {run.folder.name}: {why or score(run)}"
        if left and steps > self._first:
            seconds = left * (time.monotonic() - self._began) / (steps - self._first)
            text += f"; {tqdm.format_interval(seconds)} left"
        self.say(text)

    def say(self, text):
        """Prints a line without breaking the bar."""
        with contextlib.suppress(OSError):  # the terminal may be gone, but not the runs
            tqdm.write(text)
            sys.stdout.flush()

    def close(self):
        """Leaves the bar as it is in the end."""
        self.look([])
        self._bar.close()


def reached(run):
    """The step of the newest line of metrics."""
    rows = report.read_metrics(run.folder / "metrics.jsonl")
    return min(rows[-1]["step"], run.steps) if rows else 0


def score(run):
    """Bits/dim of a finished run, and the seconds that it took."""
    found = json.loads((run.folder / "eval.json").read_text())
    rows = report.read_metrics(run.folder / "metrics.jsonl")
    bpd, se = (math.nan if found.get(name) is None else found[name] for name in ("bpd", "bpd_se"))
    seconds = f", {rows[-1]['seconds']:.0f} s" if rows else ""
    return f"{report.fixed(bpd)} ± {report.fixed(se)} bits/dim{seconds}"
