"""Runs as cluster jobs, which submitit submits once, and which are found again by the job id."""

import ast
from collections.abc import Sequence
import json
import os
import pathlib
import re
import shlex
import subprocess
import time
from typing import Any

from vdm.errors import UserError, one_line, require
from vdm.runtime.atomic import write_text
from vdm.sweep.jobs import Process
from vdm.sweep.plan import Trial, resolved

LOOK = 5.0  # seconds between queries of Slurm's queue
LATE = 15.0  # seconds for a result to appear on a shared file system after its job has left the queue


class Queue:
    """The user's jobs in Slurm's queue, waiting or running."""

    def __init__(self) -> None:
        self._ids: set[str] | None = None
        self._until = 0.0  # time of the next query

    def has(self, job_id: str) -> bool:
        """Whether a job is in the queue. If Slurm does not answer, the last answer holds."""
        if time.monotonic() > self._until:
            line = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
            found = subprocess.run(line, capture_output=True, text=True)
            require(
                self._ids is not None or found.returncode == 0,
                f"--cluster=slurm: squeue does not answer: {one_line(found.stderr)}",
            )
            if found.returncode == 0:
                self._ids = set(found.stdout.split())
            self._until = time.monotonic() + LOOK
        return job_id in (self._ids or ())

    def look(self) -> None:
        """Makes the next `has` query the queue."""
        self._until = 0.0


class Job:
    """A Process that was submitted to a cluster; if there is a `queue`, to Slurm.

    Attributes:
      begun: how the job was started, in words.
    """

    def __init__(self, job: Any, queue: Queue | None, begun: str):
        self._job, self._queue, self.begun = job, queue, f"{begun} {job.job_id}"
        self._cancelled = False
        self._left: float | None = None  # when the job was first found to have left the queue

    def poll(self) -> str | None:
        """None while the job waits or runs; then the reason of its failure, or ""."""
        paths = self._job.paths
        if self._queue and not paths.result_pickle.exists():
            if self._queue.has(self._job.job_id):
                return None
            if self._cancelled:
                return f"job {self._job.job_id} was cancelled"
            self._left = self._left or time.monotonic()
            if time.monotonic() < self._left + LATE:
                return None
        elif not self._queue and not self._job.done():
            return None
        if paths.result_pickle.exists() and not self._job.exception():
            return self._job.result()
        return f"job {self._job.job_id} left no result; see {paths.stderr}"

    def send(self, number: int) -> None:
        """Cancels the job. The cluster sends it signals, on which it saves a checkpoint."""
        self._cancelled = True
        self._job.cancel(check=False)
        if self._queue:
            self._queue.look()
        else:
            self._job.watcher.clear()  # otherwise the next query is minutes away


def make_executor(cluster: str, folder: pathlib.Path, options: Sequence[str]) -> Any:
    """submitit's executor of a cluster, with its files in a folder.

    Args:
      options: ["NAME=VALUE", …], parameters of submitit.

    Raises:
      UserError: submitit or Slurm is missing, or refuses an option.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--cluster needs submitit; install it by pip install -e '.[slurm]'.") from error
    # submitit's default time limit is 5 minutes.
    parameters: dict[str, Any] = {"name": folder.parent.name, "timeout_min": 24 * 60}
    often: dict[str, Any] = {}
    if cluster == "slurm":  # requeued if its node fails, and at every time limit instead of only three times
        parameters["slurm_additional_parameters"] = {"requeue": True}
        often["slurm_max_num_timeout"] = 10_000
    for option in joined(options):
        name, equals, value = option.partition("=")
        require(equals, f"--cluster_options has {option!r}; accepted: NAME=VALUE, joined by commas.")
        parameters[name] = value_of(value)
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, **often)
        executor.update_parameters(**parameters)
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--cluster={cluster}: {one_line(error)}") from error
    return executor


def joined(options: Sequence[str]) -> list[str]:
    """The options NAME=VALUE of a list that was split at its commas, also at those within a value."""
    found: list[str] = []
    for part in options:
        if found and not re.match(r"\w+=", part):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return found


def value_of(text: str) -> Any:
    """A number, a truth value or a list, as Python writes them; otherwise the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | list) else text


def submit(executor: Any, trials: Sequence[Trial]) -> list[Job]:
    """Submits trials as one array, except those whose earlier job is still in Slurm's queue.

    Raises:
      UserError: the cluster refuses the array, or the earlier job of a trial has another command.
    """
    inner = executor._executor  # private: submitit has no public access to it
    queue = Queue() if executor.cluster == "slurm" else None
    jobs: dict[pathlib.Path, Job] = {}
    for trial in trials if queue else ():
        job_id, line = _remembered(trial.folder)
        if queue and job_id and queue.has(job_id):
            require(
                line == _own(trial),
                f"job {job_id} is still in the queue for {str(trial.folder)!r}, with other arguments: "
                f"{shlex.join(line)}; use these, or cancel the job by scancel {job_id}.",
            )
            jobs[trial.folder] = Job(
                inner.job_class(inner.folder, job_id), queue, "still in the queue, as job"
            )
    new = [trial for trial in trials if trial.folder not in jobs]
    try:
        submitted = (
            executor.submit_array([Process(trial.command, trial.folder) for trial in new]) if new else []
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"the runs could not be submitted: {one_line(error)}") from error
    for trial, job in zip(new, submitted):
        trial.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"job": job.job_id, "args": _own(trial)})
        write_text(trial.folder / "job.json", text + "\n")
        jobs[trial.folder] = Job(job, queue, "submitted as job")
    if queue:
        queue.look()
    return [jobs[trial.folder] for trial in trials]


def _own(trial: Trial) -> list[str]:
    """A trial's command without the paths of Python and of the workdir, whose spelling may differ, and with
    the absolute path of the config file."""
    start = "--config="
    kept = [arg for arg in trial.command[1:] if not arg.startswith("--workdir=")]
    return [f"{start}{resolved(arg[len(start) :])}" if arg.startswith(start) else arg for arg in kept]


def _remembered(folder: pathlib.Path) -> tuple[str | None, list[str]]:
    """The last job of a run, and `_own` of its trial; None and [] if it was never submitted."""
    try:
        found = json.loads((folder / "job.json").read_text())
        return found["job"], found["args"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, []


def script(executor: Any, count: int) -> str:
    """The script that `submit` passes to sbatch for `count` trials."""
    slurm = executor._executor  # private: submitit writes the script only for sbatch
    if count > 1:
        slurm.parameters["map_count"] = count
    return slurm._make_submission_file_text(slurm._submitit_command_str, "")
