"""A run's command as a process of this machine, or as a job of a cluster by submitit."""

from collections.abc import Sequence
import contextlib
import ctypes
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Any
import warnings

from vdm.errors import UserError, one_line, require

if TYPE_CHECKING:  # a job imports this module, and needs no JAX
    from experiments.plan import Trial

LIBC = ctypes.CDLL(None)  # loaded here, as little may be done between fork and exec
POLL = 0.2  # seconds between looks at a process


class Process:
    """A command whose output is appended to log.txt of a folder. Submitit calls it as a job of its own.

    log.txt is locked for as long as the process lives, so that no run is done by two at once.
    """

    def __init__(self, command: Sequence[str], folder: pathlib.Path):
        self._command, self._folder = command, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # where in log.txt its own output starts
        self._refused: str | None = None  # why it could not be started

    def start(self) -> "Process":
        """Starts it; returns itself."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "log.txt").open("ab") as log, warnings.catch_warnings():
                # JAX warns of a fork beside its threads; `before_exec` takes no lock of theirs.
                warnings.simplefilter("ignore", RuntimeWarning)
                lock(log)
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches it by `send` alone, once
                    preexec_fn=before_exec,
                )
        except (UserError, OSError) as error:
            self._refused = one_line(error)
        return self

    def poll(self) -> str | None:
        """None while it runs; then why it failed, or ""."""
        code = self._process.poll() if self._process else None
        if not code:
            return "" if code == 0 else self._refused
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        log = (self._folder / "log.txt").read_bytes()[self._log_start :].decode(errors="replace")
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")

    def send(self, number: int) -> None:
        """Sends a signal, where it runs."""
        if self._process:
            self._process.send_signal(number)

    def __call__(self) -> str:
        """Runs it; returns why it failed, or ""."""
        self.start()
        while (why := self.poll()) is None:
            time.sleep(POLL)
        return why

    def checkpoint(self) -> Any:
        """Stops it, saved, and gives it back to be queued again. Submitit calls this when time is up."""
        from submitit.helpers import DelayedSubmission

        assert self._process is not None
        self.send(signal.SIGINT)
        with contextlib.suppress(ChildProcessError):  # no Popen.wait, which locks: poll may be below us
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Process(self._command, self._folder))


def lock(file: IO[bytes]) -> None:
    """Locks a file until all processes that inherit it are gone.

    Raises:
      UserError: others have it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError("another process is at this run; wait for it, or end it") from error
    except OSError:
        pass  # a file system without locks


def before_exec() -> None:
    """Ignores the signal that time is up, which submitit handles; and has Linux kill the process with its
    parent."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes of a job
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG. No SIGINT: one comes for each thread of the parent, and a second is "unsaved".
        LIBC.prctl(1, signal.SIGKILL)


def start(trials: "Sequence[Trial]") -> list[Process]:
    """Starts trials on this machine."""
    return [Process(trial.command, trial.folder).start() for trial in trials]


# ---- on a cluster -----------------------------------------------------------------------


class Job:
    """A Process that was submitted to a cluster."""

    def __init__(self, job: Any):
        self._job = job

    def poll(self) -> str | None:
        """None while it waits or runs; then why it failed, or ""."""
        if not self._job.done():
            return None
        if self._job.paths.result_pickle.exists() and not self._job.exception():
            return self._job.result()
        return f"job {self._job.job_id} left no result; see {self._job.paths.stderr}"

    def send(self, number: int) -> None:
        """Cancels it, by the cluster's own signals."""
        self._job.cancel(check=False)
        self._job.watcher.clear()  # or it would be minutes until the next look at the queue


def make_executor(cluster: str, folder: pathlib.Path, options: Sequence[str]) -> Any:
    """submitit's executor of a cluster, with its files in a folder.

    Args:
      options: ["NAME=VALUE", …], parameters of submitit.

    Raises:
      UserError: submitit or Slurm is not there, or refuses an option.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--cluster needs submitit; install it by pip install -e '.[slurm]'.") from error
    # submitit's own time is 5 minutes.
    parameters: dict[str, Any] = {"name": folder.parent.name, "timeout_min": 24 * 60}
    for option in options:
        name, equals, value = option.partition("=")
        require(equals, f"--cluster_options has {option!r}; accepted: NAME=VALUE, joined by commas.")
        parameters[name] = int(value) if value.isdigit() else value
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        executor.update_parameters(**parameters)
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--cluster={cluster}: {one_line(error)}") from error
    return executor


def submit(executor: Any, trials: "Sequence[Trial]") -> list[Job]:
    """Submits trials as one array.

    Raises:
      UserError: the cluster refuses it.
    """
    try:
        jobs = executor.submit_array([Process(trial.command, trial.folder) for trial in trials])
    except (RuntimeError, OSError) as error:
        raise UserError(f"the runs could not be submitted: {one_line(error)}") from error
    return [Job(job) for job in jobs]


def script(executor: Any, count: int) -> str:
    """What `submit` gives to sbatch for so many trials, as text."""
    slurm = executor._executor  # private: submitit gives it to sbatch alone
    if count > 1:
        slurm.parameters["map_count"] = count
    return slurm._make_submission_file_text(slurm._submitit_command_str, "")
