"""A run's command as a process of this machine, or of a job of a cluster."""

from collections.abc import Sequence
import contextlib
import ctypes
import fcntl
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Any, NamedTuple
import warnings

from vdm.errors import UserError, one_line
from vdm.runtime.stop import QUEUE_AGAIN

if TYPE_CHECKING:  # a job imports this module, and needs no JAX
    from vdm.sweep.plan import Trial

LIBC = ctypes.CDLL(None)  # loaded here, as little may be done between fork and exec
POLL = 0.2  # seconds between looks at a process
GRACE = 120.0  # seconds after which a run that was asked to stop goes on, where its job still may


class Slot(NamedTuple):
    """Where on this machine a process runs; by default on all of it.

    Attributes:
      gpu: number of the only GPU that it sees; "" for all.
      cpus: numbers of the CPU cores that it runs on; () for all.
    """

    gpu: str = ""
    cpus: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.gpu:
            return f" on GPU {self.gpu}"
        return f" on CPU {', '.join(map(str, self.cpus))}" if self.cpus else ""


ANYWHERE = Slot()


def shares(count: int) -> list[Slot]:
    """Slots for so many processes at a time, each with its share of the cores of this machine: two processes
    on one core each do more than two that both want both. They share all cores where these are too few."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = len(cores) // count
    if count == 1 or not share:
        return [ANYWHERE] * count
    return [Slot(cpus=tuple(cores[share * n : share * (n + 1)])) for n in range(count)]


class Process:
    """A command whose output is appended to log.txt of a folder. Submitit calls it as a job of its own.

    log.txt is locked for as long as the process lives, so that no run is done by two at once.
    """

    def __init__(self, command: Sequence[str], folder: pathlib.Path, slot: Slot = ANYWHERE):
        self._command, self._folder, self._slot = command, folder, slot
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
                own = {"CUDA_VISIBLE_DEVICES": self._slot.gpu} if self._slot.gpu else {}
                self._process = subprocess.Popen(
                    self._command,
                    env=os.environ | own,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches it by `send` alone, once
                    preexec_fn=functools.partial(before_exec, self._slot.cpus),
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

    @property
    def begun(self) -> str:
        """How it was started, in words."""
        return f"started{self._slot}"

    def send(self, number: int) -> None:
        """Sends a signal, where it runs."""
        if self._process:
            self._process.send_signal(number)

    def __call__(self) -> str:
        """Runs it as a job; returns why it failed, or "".

        Asked to stop, it has saved. Where it was Slurm that asked, to cancel the job or to queue it again,
        the job ends without a result; else it goes on after a while.
        """
        while True:
            self.start()
            while (why := self.poll()) is None:
                time.sleep(POLL)
            # By SIGTERM itself, where it came before the run had begun.
            if self._process is None or self._process.returncode not in (QUEUE_AGAIN, -signal.SIGTERM):
                return why
            until = time.monotonic() + GRACE
            while time.monotonic() < until:
                if slurm_ends_this_job():
                    sys.exit(QUEUE_AGAIN)  # no Exception, of which submitit would make a result
                time.sleep(1.0)

    def checkpoint(self) -> Any:
        """Stops it, saved, and gives it back to be queued again. Submitit calls this when time is up."""
        from submitit.helpers import DelayedSubmission

        if self._process:
            # No SIGINT, which is "unsaved" for a run that was asked before, as by a preemption.
            self.send(signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):  # no Popen.wait, which locks: poll may be below us
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Process(self._command, self._folder))


def slurm_ends_this_job() -> bool:
    """Whether Slurm is about to kill this job, or has queued it again; in a GraceTime it is not yet."""
    line = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ.get('SLURM_JOB_ID')}"]
    try:
        state = subprocess.run(line, capture_output=True, text=True).stdout.strip()
    except OSError:  # no Slurm
        return False
    return state in ("COMPLETING", "PENDING")


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


def before_exec(cpus: Sequence[int]) -> None:
    """Keeps to some cores, where there are any; ignores the signal that time is up, which submitit handles;
    and has Linux kill the process with its parent."""
    if cpus:
        os.sched_setaffinity(0, cpus)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes of a job
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG. No SIGINT: one comes for each thread of the parent, and a second is "unsaved".
        LIBC.prctl(1, signal.SIGKILL)


def start(trials: "Sequence[Trial]", slots: Sequence[Slot]) -> list[Process]:
    """Starts trials on this machine, each in a slot of its own."""
    return [Process(trial.command, trial.folder, slot).start() for trial, slot in zip(trials, slots)]
