"""Machine faults, caused on purpose during training."""

from collections.abc import Callable, Sequence
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import time

from vdm.runtime import checksums
from vdm.runtime.stop import QUEUE_AGAIN

PATIENCE = 120.0  # seconds within which a process must do what is expected
BEGUN = re.compile(r"(?:starting|resuming) at step (\d+) of")


class Target:
    """A run that is disturbed: its processes, and their output.

    Attributes:
      workdir: the run's workdir.
      mounted: whether the workdir is on a separate small file system.
    """

    def __init__(self, command: Sequence[str], workdir: pathlib.Path, log: pathlib.Path, processes: int):
        self.workdir, self._log, self._command, self._count = workdir, log, command, processes
        self.processes: list[subprocess.Popen[bytes]] = []
        self.mounted = False
        self._from = 0  # position in the log at which the output since the latest start begins

    def start(self) -> None:
        """Starts or resumes the run."""
        self._from = self._log.stat().st_size if self._log.exists() else 0
        port = free_port()
        more: list[list[str]] = [[]]
        if self._count > 1:
            joined = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--processes={self._count}"]
            more = [[*joined, f"--process={number}"] for number in range(self._count)]
        self.processes = [self.spawn(extra) for extra in more]

    def spawn(self, extra: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Starts one more process of the same command, with output to the same log."""
        with self._log.open("ab") as log:
            return subprocess.Popen([*self._command, *extra], stdout=log, stderr=subprocess.STDOUT)

    def output(self) -> str:
        """The output since the start."""
        return self._log.read_bytes()[self._from :].decode(errors="replace")

    def step(self) -> int:
        """The step of the newest training line since the start; 0 if there is no line yet."""
        found = re.findall(r"^step (\d+)/", self.output(), re.MULTILINE)
        return int(found[-1]) if found else 0

    def begun(self) -> int | None:
        """The step at which training began after the start; None if it has not begun."""
        found = BEGUN.search(self.output())
        return int(found[1]) if found else None

    def runs(self) -> bool:
        """Whether any of its processes is running."""
        return any(process.poll() is None for process in self.processes)

    def wait(self) -> list[int | None]:
        """Waits until all processes have ended and returns their exit codes; kills a process that does not
        end, and returns None for it."""
        until = time.monotonic() + PATIENCE
        while self.runs() and time.monotonic() < until:
            time.sleep(0.01)
        codes = [process.poll() for process in self.processes]
        self.kill()
        return codes

    def send(self, number: int, which: int) -> None:
        """Sends a signal to one of its processes."""
        self.processes[which].send_signal(number)

    def kill(self) -> None:
        """Kills its remaining processes."""
        for process in self.processes:
            process.kill()
            process.wait()

    def whole(self) -> list[int]:
        """The steps with intact checkpoints, in order."""
        folders = [path for path in self.workdir.glob("checkpoints/*") if path.name.isdigit()]
        return sorted(int(path.name) for path in folders if checksums.damage(path) is None)

    def saves(self) -> bool:
        """Whether a checkpoint is being written."""
        return any("tmp" in path.name for path in self.workdir.glob("checkpoints/*"))


def free_port() -> int:
    """A port on which no process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def mount(folder: pathlib.Path, mebibytes: int) -> bool:
    """Mounts a small file system in memory on a folder; returns whether this is allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(line, capture_output=True).returncode == 0


def unmount(folder: pathlib.Path) -> None:
    """Undoes `mount`."""
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


# ---- the faults: each ends all processes and returns what went wrong, or "" -----------------------


def kill(target: Target, draw: random.Random) -> str:
    """SIGKILL to one process. Any other process of the run must then end by itself, with QUEUE_AGAIN."""
    which = draw.randrange(len(target.processes))
    target.send(signal.SIGKILL, which)
    codes = target.wait()
    others = [code for number, code in enumerate(codes) if number != which]
    return "" if all(code == QUEUE_AGAIN for code in others) else f"the other process: exit code {others}"


def kill_while_it_saves(target: Target, draw: random.Random) -> str:
    """SIGKILL within 0.08 seconds of the beginning of a save."""
    while target.runs() and not target.saves():
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.08))
    return kill(target, draw)


def terminate(target: Target, draw: random.Random) -> str:
    """SIGTERM or SIGUSR1, twice, as a cluster may send them."""
    number = draw.choice([signal.SIGTERM, signal.SIGUSR1])
    which = draw.randrange(len(target.processes))
    for _ in range(2):
        target.send(number, which)
    codes = target.wait()
    return "" if all(code in (QUEUE_AGAIN, 0) for code in codes) else f"exit codes {codes}"


def damage(target: Target, draw: random.Random) -> str:
    """SIGKILL, and then damage to the newest checkpoint if there is an older one."""
    problem = kill(target, draw)
    steps = target.whole()
    if len(steps) < 2:
        return problem
    folder = target.workdir / "checkpoints" / str(steps[-1])
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "commit_success.txt")
    path = draw.choice(files)
    kind = draw.choice(["bytes", "cut", "gone", "all emptied", "folder emptied"])
    if kind == "bytes":
        data = bytearray(path.read_bytes())
        for _ in range(3):
            data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.write_bytes(data)
    elif kind == "cut":
        os.truncate(path, draw.randrange(path.stat().st_size))
    elif kind == "gone":
        path.unlink()
    elif kind == "all emptied":
        for path in files:
            os.truncate(path, 0)
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    return problem


def tear_the_log(target: Target, draw: random.Random) -> str:
    """SIGKILL, and half a line at the end of metrics.jsonl, as after a power failure."""
    problem = kill(target, draw)
    path = target.workdir / "metrics.jsonl"
    if path.exists() and path.stat().st_size:
        with path.open("ab") as file:
            file.write(b'{"step": 999999, "split": "tr')
    return problem


def second_process(target: Target, draw: random.Random) -> str:
    """Starts a second process with the same command, which must be refused; then SIGKILL to the first."""
    second = target.spawn()
    code = second.wait(PATIENCE)
    if code == 2:
        return kill(target, draw)
    # Otherwise the first process had just ended.
    return "" if code == 0 and target.wait() == [0] else f"the second process: exit code {code}"


def set_the_clock_back(target: Target, draw: random.Random) -> str:
    """SIGKILL; then dates all files a day ahead, as if the clock had been set back by a day."""
    problem = kill(target, draw)
    for path in target.workdir.rglob("*"):
        about = path.stat()
        os.utime(path, (about.st_atime + 86_400, about.st_mtime + 86_400))
    return problem


def stall(target: Target, draw: random.Random) -> str:
    """Imitates a disk that does not respond: halts the processes for a while, if possible during a save; then
    `terminate`."""
    until = time.monotonic() + 2.0
    while target.runs() and not target.saves() and time.monotonic() < until:
        time.sleep(0.001)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in target.processes:
            process.send_signal(number)
        time.sleep(draw.uniform(0.2, 1.5))
    return terminate(target, draw)


def fill_the_disk(target: Target, draw: random.Random) -> str:
    """Fills the disk for a while, during which the run may continue, warn or end; then SIGKILL, and frees the
    disk."""
    filler = target.workdir / "filler"
    room = os.statvfs(target.workdir)
    left = draw.choice([0, 20_000, 100_000, 400_000])
    try:
        with filler.open("wb") as file:
            file.write(bytes(max(0, room.f_bavail * room.f_frsize - left)))
    except OSError:
        pass  # the disk has less room than a moment ago
    time.sleep(draw.uniform(0.5, 2.0))
    ended = target.processes[0].poll()
    target.kill()
    filler.unlink()
    return "" if ended in (None, 0, 1) else f"exit code {ended}"


Fault = Callable[[Target, random.Random], str]
KILLS: tuple[Fault, ...] = (kill, kill_while_it_saves)
OTHERS: tuple[Fault, ...] = (
    damage, terminate, fill_the_disk, second_process, tear_the_log, set_the_clock_back, stall,
)  # fmt: skip
OF_MANY: tuple[Fault, ...] = (kill, kill, kill_while_it_saves, terminate)  # for several processes
NEEDS_MOUNT: tuple[Fault, ...] = (fill_the_disk,)
