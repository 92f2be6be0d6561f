"""A process of a run on many hosts, watched by one that has no part in it.

Where a host dies, XLA ends the processes of all others by an abort, with a page of its own report, and Python
has no say in that. So the process that was started forks: the child joins the run, and the parent passes on
what it prints and its signals, and says in one line why it ended.
"""

import ctypes
import os
import re
import signal
import sys
from typing import Any

from vdm.errors import UserError, one_line
from vdm.runtime.stop import QUEUE_AGAIN

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead

# What XLA and its libraries print, which is shown only where nobody else says what failed.
OWN_REPORT = re.compile(
    r"\[Gloo\]|[IWEF]\d{4} \d\d:\d\d:|Additional GRPC|:UNKNOWN:|\*\*\* Check fail|\s*@ +0x|terminate called"
    r"|  what\(\)|\d+$|\s*$|RPC: |The tasks have crashed"
    r"|=== Source Location Trace|(external|third_party)/\S+:\d+$"  # JAX 0.12
)
# What a failed exchange with another process says.
PEER = re.compile("Gloo|NCCL|[Cc]onnection|[Ss]ocket closed|coordination|heartbeat|UNAVAILABLE|peer")

EXCHANGE = re.compile("(Gloo|NCCL).* failed")

LINE = (
    "error: another process of this run has ended, and so this one. Start them all again: they go on from "
    "the newest checkpoint that is whole."
)


def is_of_peer(error: BaseException) -> bool:
    """Whether an error of JAX says that another process is gone: also a ValueError, as XLA's status of an
    exchange that failed becomes one where JAX starts it at once."""
    pattern = {"JaxRuntimeError": PEER, "ValueError": EXCHANGE}.get(type(error).__name__)
    return pattern is not None and bool(pattern.search(str(error)))


def watched() -> int | None:
    """Forks. Returns None in the child, and in the parent the exit code of the child, when it has ended."""
    reader, writer = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        if sys.platform == "linux":  # PR_SET_PDEATHSIG: killed with its parent
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
        os.close(reader)
        os.dup2(writer, sys.stderr.fileno())
        os.close(writer)
        return None
    os.close(writer)

    def pass_on(number: int, _: Any) -> None:
        if number != signal.SIGINT or not sys.stdin.isatty():  # Ctrl-C in a terminal reaches both by itself
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    held = []
    with os.fdopen(reader, errors="replace") as lines:
        for line in lines:
            if OWN_REPORT.match(line):
                held.append(line)
            else:
                print(line, end="", file=sys.stderr, flush=True)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGABRT and any(PEER.search(line) for line in held):
        print(LINE, file=sys.stderr, flush=True)
        return QUEUE_AGAIN
    if code not in (0, 2, QUEUE_AGAIN, 130):
        print("".join(held), end="", file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes of the run.

    Raises:
      UserError: there is no way to them.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM: stop.Stop
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the other processes cannot be joined ({one_line(error)[:200]}); where JAX does "
            "not know the cluster, give --coordinator=HOST:PORT, --processes=N and --process=I."
        ) from error
