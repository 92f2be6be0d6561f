"""A process of a run on several hosts, with a parent process that watches it.

If a host dies, XLA aborts the processes of all other hosts with a long report, and Python cannot prevent it.
So the process that was started forks: the child joins the run, and the parent forwards the child's output and
its own signals, and states in one line why the child ended.
"""

import ctypes
import os
import re
import signal
import sys
from typing import Any

from vdm.errors import UserError, one_line
from vdm.runtime.stop import QUEUE_AGAIN

HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as dead

# Output of XLA and its libraries, which is shown only if nothing else reports the failure.
OWN_REPORT = re.compile(
    r"\[Gloo\]|[IWEF]\d{4} \d\d:\d\d:|Additional GRPC|:UNKNOWN:|\*\*\* Check fail|\s*@ +0x|terminate called"
    r"|  what\(\)|\d+$|\s*$|RPC: |The tasks have crashed"
    r"|=== Source Location Trace|(external|third_party)/\S+:\d+$"  # JAX 0.12
)
# Texts of errors of a failed exchange with another process.
PEER = re.compile("Gloo|NCCL|[Cc]onnection|[Ss]ocket closed|coordination|heartbeat|UNAVAILABLE|peer")

EXCHANGE = re.compile("(Gloo|NCCL).* failed")

LINE = (
    "error: another process of this run has ended, and therefore this one. Start all of them again: they "
    "resume from the newest intact checkpoint."
)


def is_of_peer(error: BaseException) -> bool:
    """Whether an error of JAX means that another process has died. It may be a ValueError, into which JAX
    turns XLA's status if the exchange fails at its start."""
    pattern = {"JaxRuntimeError": PEER, "ValueError": EXCHANGE}.get(type(error).__name__)
    return pattern is not None and bool(pattern.search(str(error)))


def watched() -> int | None:
    """Forks. Returns None in the child, and in the parent the exit code of the child after its end."""
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
        if number != signal.SIGINT or not sys.stdin.isatty():  # a terminal sends Ctrl-C to both
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
      UserError: the other processes cannot be reached.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM, as stop.Stop does
    try:
        jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the other processes cannot be joined ({one_line(error)[:200]}); if JAX does "
            "not recognise the cluster, give --coordinator=HOST:PORT, --processes=N and --process=I."
        ) from error
