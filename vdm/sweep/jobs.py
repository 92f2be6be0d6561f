"""A run as a process on this machine, or in a job of a cluster."""

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
from vdm.runtime import processor
from vdm.runtime.stop import QUEUE_AGAIN

if TYPE_CHECKING:  # a job imports this module, and does not need JAX
    from vdm.sweep.plan import Trial

LIBC = ctypes.CDLL(None)  # loaded here, as little may be done between fork and exec
POLL = 0.2  # seconds between looks at a process
GRACE = 120.0  # seconds after which a stopped run is restarted, if its job still has time


class Slot(NamedTuple):
    """The part of this machine on which a process runs; by default the whole machine.

    Attributes:
      gpu: index of the only visible GPU; "" for all GPUs.
      cpus: indices of the CPU cores; () for all cores.
    """

    gpu: str = ""
    cpus: tuple[int, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process there."""
        return os.environ | ({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {})

    def __str__(self) -> str:
        if self.gpu:
            return f" on GPU {self.gpu}"
        return f" on CPU {', '.join(map(str, self.cpus))}" if self.cpus else ""


ANYWHERE = Slot()


def shares(count: int) -> list[Slot]:
    """Slots for `count` concurrent processes, each with its share of the cores of this machine: two processes
    with one core each are faster than two that compete for both. If there are too few cores, all slots share
    all cores."""
    cores = processor.cores()
    share = len(cores) // count
    if count == 1 or not share:
        return [ANYWHERE] * count
    return [Slot(cpus=tuple(cores[share * n : share * (n + 1)])) for n in range(count)]


class Process:
    """A command whose output is appended to log.txt of a folder. Submitit calls it as a job.

    log.txt is locked while the process lives, so that no two processes run the same trial.
    """

    def __init__(self, command: Sequence[str], folder: pathlib.Path, slot: Slot = ANYWHERE):
        self._command, self._folder, self._slot = command, folder, slot
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # position in log.txt at which its output starts
        self._refused: str | None = None  # the reason if the process could not be started

    def start(self) -> "Process":
        """Starts the command; returns self."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "log.txt").open("ab") as log, warnings.catch_warnings():
                # JAX warns that its threads may hold locks at the fork; `before_exec` takes none of them.
                warnings.simplefilter("ignore", RuntimeWarning)
                lock(log)
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    self._command,
                    env=self._slot.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that Ctrl-C reaches it only by `send`, once
                    preexec_fn=functools.partial(before_exec, self._slot.cpus),
                )
        except (UserError, OSError) as error:
            self._refused = one_line(error)
        return self

    def poll(self) -> str | None:
        """None while the process runs; then the reason of its failure, or ""."""
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
        """How the process was started, in words."""
        return f"started{self._slot}"

    def send(self, number: int) -> None:
        """Sends a signal to the process if it runs."""
        if self._process:
            self._process.send_signal(number)

    def __call__(self) -> str:
        """Runs the command as a job; returns the reason of its failure, or "".

        If the command was asked to stop, it has saved a checkpoint. If Slurm asked, to cancel or to requeue
        the job, the job ends without a result; otherwise it resumes the command after GRACE seconds.
        """
        while True:
            self.start()
            while (why := self.poll()) is None:
                time.sleep(POLL)
            # SIGTERM itself kills the run if it comes before the run has installed its handler.
            if self._process is None or self._process.returncode not in (QUEUE_AGAIN, -signal.SIGTERM):
                return why
            until = time.monotonic() + GRACE
            while time.monotonic() < until:
                if slurm_ends_this_job():
                    sys.exit(QUEUE_AGAIN)  # not an Exception, which submitit would make a result
                time.sleep(1.0)

    def checkpoint(self) -> Any:
        """Stops the command, which saves a checkpoint, and returns the submission that requeues it. Submitit
        calls this at the time limit."""
        from submitit.helpers import DelayedSubmission

        if self._process:
            # Not SIGINT: a run that was asked to stop before, as by a preemption, would end without saving.
            self.send(signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):  # not Popen.wait, whose lock a `poll` below may hold
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Process(self._command, self._folder))


def slurm_ends_this_job() -> bool:
    """Whether Slurm is about to kill this job, or has requeued it; False during a GraceTime."""
    line = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ.get('SLURM_JOB_ID')}"]
    try:
        state = subprocess.run(line, capture_output=True, text=True).stdout.strip()
    except OSError:  # no squeue: not Slurm
        return False
    return state in ("COMPLETING", "PENDING")


def lock(file: IO[bytes]) -> None:
    """Locks a file until all processes that inherit it have ended.

    Raises:
      UserError: another process holds the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError("another process runs this trial; wait for it, or end it") from error
    except OSError:
        pass  # a file system without locks


def before_exec(cpus: Sequence[int]) -> None:
    """Restricts the process to some cores, if given; ignores the signal of the time limit, which submitit
    handles; and has Linux kill the process with its parent."""
    if cpus:
        os.sched_setaffinity(0, cpus)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to all processes of a job
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG. Not SIGINT: each thread of the parent sends one, and a second ends without saving.
        LIBC.prctl(1, signal.SIGKILL)


def start(trials: "Sequence[Trial]", slots: Sequence[Slot]) -> list[Process]:
    """Starts trials on this machine, one in each slot."""
    return [Process(trial.command, trial.folder, slot).start() for trial, slot in zip(trials, slots)]
