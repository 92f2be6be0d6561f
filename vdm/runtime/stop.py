"""Handles Ctrl-C, SIGTERM and SIGUSR1, which ask a process to end; and its exit codes."""

from collections.abc import Callable, Iterator
import contextlib
import math
import os
import signal
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from vdm.errors import Stopped

DONE, FAILED, BAD_INPUT = 0, 1, 2
QUEUE_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
CTRL_C = 130

# The meaning of each exit code, for a run or a study.
EXIT_CODES = {
    DONE: "all is done",
    FAILED: "the machine failed (the same command resumes once the cause is removed), a run of a study "
    "failed, or --rerun found other numbers",
    BAD_INPUT: "bad input; one line gives the value, the accepted values and the remedy",
    QUEUE_AGAIN: "ended by SIGTERM or SIGUSR1, or because another process of the run died; a checkpoint was "
    "saved if possible. Queue the run again",
    CTRL_C: "ended by Ctrl-C",
}

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
NOT_ASKED = 0  # in place of a signal
GRACE = 1.0  # seconds for Python to end by itself after Ctrl-C

_saves = False  # whether there is a Stop with something to save before the end


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Within the context, `handler` handles these signals; one that is ignored, as by nohup, stays so."""
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def watch() -> None:
    """Unless there is a Stop with something to save, ends the process soon after a stop signal, even during a
    compilation or another call that Python cannot interrupt."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # only the wakeup, which a compilation does not delay

    def wait() -> None:
        first = True  # the first Ctrl-C is for Stop, if it has something to save
        while True:
            number = os.read(reader, 1)[0]
            if number == signal.SIGINT:
                if not (_saves and first):
                    time.sleep(GRACE)
                    os._exit(CTRL_C)
                first = False
            if number in (signal.SIGTERM, signal.SIGUSR1) and not _saves:
                os._exit(QUEUE_AGAIN)

    threading.Thread(target=wait, daemon=True).start()


class Stop:
    """Ends the run on Ctrl-C, SIGTERM or SIGUSR1 after the present chunk, with a checkpoint; on a second
    Ctrl-C, or once all is `saved`, immediately.

    Several processes must stop after the same chunk, whichever of them gets the signal. (JAX's service for
    this purpose is not used: it counts single steps, and Orbax queries it in between.)
    """

    def __init__(self) -> None:
        import jax  # imported late: main.py calls `watch` before it needs JAX

        global _saves
        _saves = True
        self._asked = NOT_ASKED  # the signal
        self._many = jax.process_count() > 1
        self._lock = threading.Lock()
        self._count, self._last = 0, math.inf  # number of chunks done, and the number after which to stop
        for number in SIGNALS:
            signal.signal(number, self._ask)
        self._thread = threading.Thread(target=self._agree, daemon=True)
        if self._many:
            self._thread.start()

    def _ask(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._asked:
            return
        self._asked = number
        tqdm.write(
            "stopping after the computation in progress, with a checkpoint; press Ctrl-C again to end "
            "immediately, without one"
        )
        if self._many:
            _store().key_value_set("stop", str(number), allow_overwrite=True)

    def _agree(self) -> None:
        """Waits until one of the processes is asked to stop; then all share their numbers of chunks, and stop
        one chunk after the largest. The lock holds each process back until this chunk is known."""
        import jax

        while True:
            try:
                number = int(_store().blocking_key_value_get("stop", 600_000))
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):  # the other processes have ended
                    return
        if number == NOT_ASKED:
            return
        with self._lock:
            _store().key_value_set(f"stop_at_{jax.process_index()}", str(self._count))
            names = (f"stop_at_{process}" for process in range(jax.process_count()))
            self._last = 1 + max(int(_store().blocking_key_value_get(name, 60_000)) for name in names)
            self._asked = number

    def asked(self) -> bool:
        """Whether to stop after this chunk; the same on all processes, each of which calls it after each
        chunk."""
        if not self._many:
            return bool(self._asked)
        with self._lock:
            self._count += 1
            return self._count >= self._last

    def saved(self) -> bool:
        """To be called when nothing is left to save: from here on, a signal ends the process immediately.
        Returns whether a signal came before, so that the run is to end now."""
        global _saves
        _saves = False
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _end)
        if self._asked and self._many:
            leave(self.reason().code, with_others=False)  # the others, if not asked, end because this one has
        return bool(self._asked)

    def close(self) -> None:
        """Ends the thread that waits for the others: Python aborts at its end if a thread waits in XLA."""
        if self._many:
            _store().key_value_set("stop", str(NOT_ASKED), allow_overwrite=True)
            self._thread.join()

    def reason(self) -> Stopped:
        """The exception to raise after the state is saved."""
        return Stopped(CTRL_C if self._asked == signal.SIGINT else QUEUE_AGAIN)


def _end(number: int, frame: Any) -> None:
    raise Stopped(QUEUE_AGAIN)


def _store():
    """The key-value store of all processes of the run."""
    from jax._src import distributed

    return distributed.global_state.client


def leave(code: int, with_others: bool) -> None:
    """Ends the process immediately, without waiting for threads such as a compilation or a failed save, and
    without Python's shutdown, during which a signal could change the exit code. After success, one of several
    processes waits for the others."""
    if with_others and code in (DONE, QUEUE_AGAIN):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)
