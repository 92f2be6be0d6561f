"""One writer per workdir: a lock that the operating system releases when its process ends."""

from collections.abc import Iterator
import contextlib
import errno
import json
import os
import pathlib
import socket
import sys

import filelock

from vdm.errors import UserError
from vdm.runtime.atomic import write_text

WAIT = 5.0  # seconds: an evaluation holds the lock only while it writes its results


@contextlib.contextmanager
def hold(workdir: pathlib.Path, waits: int = 1) -> Iterator[None]:
    """Holds the lock of the workdir within the context, so that no other process writes the run meanwhile;
    first waits for it up to `waits` times WAIT seconds.

    The lock is an flock on the file "lock". The kernel releases it when the process ends, so that it is never
    stale. It works between hosts if the file system supports that: NFS 4, Lustre with -o flock, GPFS, CephFS.
    "holder.json" names the holder.

    Raises:
      UserError: another process holds the lock.
    """
    lock = filelock.FileLock(workdir / "lock")
    if not _acquire(lock, waits * WAIT):
        raise UserError(
            f"{str(workdir)!r} is being written by {holder(workdir)}; wait for it, end it, or give another "
            "--workdir."
        )
    try:
        about = {"host": socket.gethostname(), "process": os.getpid()}
        write_text(workdir / "holder.json", json.dumps(about) + "\n")
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def place_for_results(workdir: pathlib.Path, step: int) -> Iterator[pathlib.Path]:
    """The folder for the results of evaluation or sampling at a step: the workdir itself, which is then
    locked; or, while another process trains there, its folder step-STEP, which is locked instead."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(workdir))
        except UserError:
            workdir = workdir / f"step-{step}"
            workdir.mkdir(exist_ok=True)
            stack.enter_context(hold(workdir, waits=12))  # while another evaluation writes its results
        yield workdir


def is_free(workdir: pathlib.Path) -> bool:
    """Whether this process may write the workdir, and no other process holds its lock."""
    lock = filelock.FileLock(workdir / "lock")
    try:
        free = _acquire(lock, 0)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return False
    lock.release()
    return free


def holder(workdir: pathlib.Path) -> str:
    """ "process N on HOST", from holder.json."""
    try:
        about = json.loads((workdir / "holder.json").read_text())
        return f"process {about['process']} on {about['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _acquire(lock, seconds):
    """Whether the lock was acquired, or the file system has no locks."""
    try:
        lock.acquire(timeout=seconds)
    except filelock.Timeout:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        print(f"{lock.lock_file}: no locks on this file system; start no second run there", file=sys.stderr)
    return True
