"""A signal ends a process at once, even within a call that Python cannot interrupt; and its exit code."""

import signal
import subprocess
import sys

import pytest

from conftest import ROOT

# sleep() stands for a compilation: it is no Python code, and other threads run meanwhile. A signal to the
# main thread would end it, so signals are blocked there and go to another thread.
BUSY = """
import ctypes, signal, threading
from vdm.runtime import stop
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored, as under nohup … &
stop.watch()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
threading.Timer(0.3, print, ["ready"], {"flush": True}).start()  # when it is within the call
ctypes.CDLL(None).sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_within_a_long_call(number, code):
    process = subprocess.Popen([sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=60) == code
