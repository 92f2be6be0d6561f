"""The same training time for every variant of a study: the cost of a step, and how many steps fit."""

from collections.abc import Sequence
import functools
import hashlib
import json
import math
import pathlib
import subprocess
import sys
from typing import NamedTuple
import warnings

from ml_collections import ConfigDict
from tqdm import tqdm

from vdm import commandline
from vdm.config import flat
from vdm.errors import UserError, one_of, require
from vdm.runtime import processor
from vdm.sweep import plan
from vdm.sweep.jobs import ANYWHERE, Slot, before_exec
from vdm.sweep.output import make_folder, write_json
from vdm.sweep.plan import Grid, Trial


class Cost(NamedTuple):
    """The cost of training.

    Attributes:
      start: seconds until the first step is done: reading, fitting and compiling.
      step: median seconds of each further step.
      operations: floating-point operations of a step (cost.products).
      device: the devices on which the cost was measured, and the number of cores.
    """

    start: float
    step: float
    operations: float
    device: str = ""

    def steps(self, seconds: float) -> int:
        """The number of steps that are done after `seconds`; 0 if the first is not done."""
        return max(0, math.floor((seconds - self.start) / self.step) + 1)

    def seconds(self, steps: float) -> float:
        """The seconds until `steps` steps are done, without evaluations."""
        return self.start + (steps - 1) * self.step


def fit(
    grid: Grid,
    file: str,
    args: Sequence[str],
    workdir: pathlib.Path,
    minutes: float,
    only: Sequence[str] = (),
    measure_here: bool = True,
    usual: Sequence[str] = (),
    slot: Slot = ANYWHERE,
    read_only: bool = False,
) -> Grid:
    """The grid of the variants whose cost is known, each with as many steps as the minutes allow. A variant
    that sets its number of steps keeps it.

    First measures the cost of each variant in `only` (by default all) that the study's budget.json does not
    have yet, so that all runs of a variant have the same number of steps.

    Args:
      slot: the part of this machine on which each run will be.
      read_only: whether to measure nothing, and to take the costs as they were measured, perhaps by another
        version.

    Raises:
      UserError: make_trials raises it; or a variant cannot be trained, or not a single step fits; or a cost
        has to be measured although `measure_here` is False.
    """
    given = commandline.fields_of([*usual, *args])
    require(0 < minutes < math.inf, f"--minutes is {minutes}; accepted: a number above 0.")
    require(
        "train.steps" not in given,
        "--config.train.steps is set, but --minutes determines the number of steps; leave one of them out.",
    )
    trials = {trial.variant: trial for trial in plan.make_trials(grid, file, args, workdir, 1, usual)}
    for name in only:
        one_of("--only", name, trials)
    kept = read(workdir)
    same = lambda name: read_only or kept[name][1] == digest(trials[name])
    costs = {name: kept[name][0] for name in trials if name in kept and same(name)}
    missing = [name for name in only or trials if name not in costs]
    if read_only and costs:
        missing = []
    require(
        not missing or (measure_here and not read_only),
        f"--minutes has to time {', '.join(missing)} on this machine first; run the command without --status "
        "and --figures, and, on a machine of the cluster, with --dry_run in place of --cluster.",
    )
    for name in tqdm(missing, "timing a few steps of each", disable=None):
        costs[name] = measure(trials[name], slot)
        kept[name] = costs[name], digest(trials[name])
        lines = {name: [*cost, of] for name, (cost, of) in kept.items()}
        write_json(make_folder(workdir) / "budget.json", lines)
    places = {costs[name].device: name for name in only or trials if name in costs}
    require(
        len(places) <= 1,
        "the steps of the variants were timed on different parts of a machine: "
        + "; ".join(f"{name} on {place}" for place, name in places.items())
        + ". Give --jobs or --gpus as before, or another --workdir.",
    )
    where, here = next(iter(places), ""), f" {len(slot.cpus or processor.cores())} cores"
    if measure_here and not read_only and where.endswith(" cores") and not where.endswith(here):
        print(f"note: the steps were timed on {where}; here, a run has{here}.", file=sys.stderr)
    steps = {name: cost.steps(60.0 * minutes) for name, cost in costs.items()}
    for name, number in steps.items():
        require(
            number > 0,
            f"--minutes is {minutes}; accepted: more than the {costs[name].start:.0f} s until the first step "
            f"of {name!r} is done.",
        )

    def with_steps(config: ConfigDict) -> dict[str, dict[str, object]]:
        found = {}
        for name, fields in grid(config).items():
            if name in steps:
                found[name] = {"train.steps": steps[name], **fields}
        return found

    return with_steps


def measure(trial: Trial, slot: Slot = ANYWHERE) -> Cost:
    """The Cost of a trial, measured in a separate process, so that no accelerator stays occupied.

    Args:
      slot: the part of this machine on which the process runs.

    Raises:
      UserError: the trial cannot be trained.
    """
    given = [arg for arg in trial.command[3:] if not arg.startswith("--workdir=")]
    command = [sys.executable, "-m", "vdm.sweep.cost", *given]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of JAX, as in jobs.Process
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=slot.environment,
            preexec_fn=functools.partial(before_exec, slot.cpus),
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        why = next((line for line in lines if line.startswith("error: ")), lines[-1])
        raise UserError(f"variant {trial.variant!r}: {why.removeprefix('error: ')}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def digest(trial: Trial) -> str:
    """A digest of everything that determines the cost of a trial's training step."""
    free = ("eval.", "codec.", "sample.", "loggers", "data.data_dir")
    fields = {name: value for name, value in flat(trial.config).items() if not name.startswith(free)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read(workdir: pathlib.Path) -> dict[str, tuple[Cost, str]]:
    """{variant: (Cost, digest of its trial)} in budget.json of a study; {} if the file does not exist."""
    path = workdir / "budget.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {name: (Cost(*cost), of) for name, (*cost, of) in kept.items()}
