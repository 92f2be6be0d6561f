"""How a process is asked to end: Ctrl-C, SIGTERM, SIGUSR1."""

import os
import signal
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

from vdm.errors import Stopped

CTRL_C = 130  # the exit codes: of a process that Ctrl-C ended,
QUEUE_AGAIN = 75  # and of one that may be queued again: EX_TEMPFAIL of sysexits.h

GRACE = 1.0  # seconds for Python to end by itself after Ctrl-C

_saves = False  # whether a Stop is there to save what was done


def watch() -> None:
    """Ends the process soon after a signal that asks for it, until there is a Stop: also within a compilation
    or another call that Python cannot interrupt."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # the wakeup alone, which a compilation does not hold up

    def wait() -> None:
        while True:
            number = os.read(reader, 1)[0]
            if number == signal.SIGINT and signal.getsignal(number) is signal.default_int_handler:
                time.sleep(GRACE)
                os._exit(CTRL_C)
            if number in (signal.SIGTERM, signal.SIGUSR1) and not _saves:
                os._exit(QUEUE_AGAIN)

    threading.Thread(target=wait, daemon=True).start()


class Stop:
    """Ctrl-C, SIGTERM or SIGUSR1 ends the run after the chunk in hand, saved; a second Ctrl-C at once.

    Many processes must stop at the same step: there SIGTERM and SIGUSR1 go through JAX's own service, which
    they agree by, and Ctrl-C ends them at once.
    """

    def __init__(self) -> None:
        import jax  # only now: main.py asks for `watch` before it needs JAX

        global _saves
        _saves = True
        self._asked = 0
        self._many = jax.process_count() > 1
        if self._many:  # JAX itself has taken SIGTERM
            signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not self._asked:
            self._asked = number
            tqdm.write(
                "stopping after the steps in hand, or ending if they are the last; Ctrl-C once more to leave "
                "at once, unsaved"
            )

    def asked(self, checkpoints: Any, step: int) -> bool:
        """Whether to stop after this step; the same on all processes."""
        return bool(self._asked) or self._many and checkpoints.preempted(step)

    def reason(self) -> Stopped:
        """What to raise when all is saved."""
        return Stopped(CTRL_C if self._asked == signal.SIGINT else QUEUE_AGAIN)


def leave(code: int) -> None:
    """Ends the process; where something went wrong, without waiting for other threads, such as a compilation
    or a save that failed."""
    if code in (0, QUEUE_AGAIN):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    os._exit(code)
