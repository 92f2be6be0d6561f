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
{more}
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
threading.Timer(0.3, print, ["ready"], {"flush": True}).start()  # when it is within the call
ctypes.CDLL(None).sleep(600)
"""


@pytest.mark.parametrize("more", ["", "stop.Stop().saved()"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
def test_within_a_long_call(number, code, more):
    busy = BUSY.replace("{more}", more)
    process = subprocess.Popen([sys.executable, "-c", busy], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=60) == code


ASKED = """
import os, signal
from vdm.errors import Stopped
from vdm.runtime import stop
one = stop.Stop()
{first}
print(one.saved())
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("first, said", [("", "False"), ("os.kill(os.getpid(), signal.SIGTERM)", "True")])
def test_what_is_saved_ends_at_once(first, said):
    """A signal before `saved` is reported there, and one after it raises Stopped."""
    program = [sys.executable, "-c", ASKED.replace("{first}", first)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split()[-1] == said and done.stderr.splitlines()[-1] == "vdm.errors.Stopped: 75"
