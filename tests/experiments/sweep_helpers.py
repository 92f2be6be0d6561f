"""Studies of stand-in commands, which count their starts and signals."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from unittest import mock

from ml_collections import ConfigDict
import pytest
import submitit  # noqa: F401  closes other log handlers' streams: import it before they are redirected

from conftest import ROOT, command
from vdm.sweep import plan, study

# Replaces vdm.main. The name of its folder determines what it does.
STAND_IN = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
kind = folder.name.split("-")[0]

def count(name):
    with (folder / name).open("a") as file:
        file.write(".")
    return len((folder / name).read_text())

starts = count("starts")
if kind == "bad":
    print("error: no such data\\nof no use")
    sys.exit(2)
if kind == "killed" and starts == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    count("ready")
    time.sleep(100)
if kind == "waiting":
    count("ready")
    while not (folder / "go").exists():
        time.sleep(0.02)
if kind == "slow" and starts == 1:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: count("signals"))
    count("ready")
    while not (folder / "signals").exists():
        time.sleep(0.02)
    time.sleep(0.5)  # for a second signal, if there is one
    print("stopped, saved")
    sys.exit(130)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "split": "final", "seconds": 7.0}))
(folder / "eval.json").write_text(json.dumps({"step": 3, "bpd": 1.5, "bpd_se": 0.25}))
(folder / "checkpoints" / "3").mkdir(parents=True, exist_ok=True)
"""

STUDY = """'''The help of a study.'''
import json, signal, sys

# The tests themselves may run with these signals ignored, as under nohup … &.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from vdm.sweep import differences, plan, study
from sweep_helpers import write_found

grid = json.loads({grid!r})
differences.write = lambda *_: []  # the stand-ins have measured no images
plan.command = lambda file, folder, args: [sys.executable, "-S", {stand_in!r}, str(folder)]
study.main(__doc__, lambda config: grid, write_found, config="configs/digits.py")
"""


def write_found(workdir, found):
    """Writes the result of the studies here, found.json: the folders of each variant's runs."""
    path = workdir / "found.json"
    path.write_text(json.dumps({name: [folder.name for folder in found[name]] for name in found}))
    return [path]


def start_study(tmp_path, variants, *args):
    """Starts a study of stand-ins in tmp_path/W; returns its process. `variants` are the stand-ins' names."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    grid = {name: {} for name in variants.split()}
    text = STUDY.format(grid=json.dumps(grid), stand_in=str(tmp_path / "stand_in.py"))
    (tmp_path / "study.py").write_text(text)
    args = [f"--workdir={tmp_path / 'W'}", "--config.train.steps=3", *args]
    env = command(tmp_path)[1]  # one device
    path = [tmp_path, ROOT, ROOT / "tests", ROOT / "tests" / "experiments"]
    env |= {"PYTHONPATH": ":".join(map(str, path)), "PATH": f"{tmp_path}:{env['PATH']}"}
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "study.py"), *args], env=env, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def study_here(tmp_path, grid, *args):
    """Exit code, stdout and stderr of a study of real runs in tmp_path/W, in this process."""
    for flag in study.FLAGS:
        study.FLAGS[flag].unparse()
    out, err = io.StringIO(), io.StringIO()
    argv = ["study", f"--workdir={tmp_path / 'W'}", *args]
    with (
        mock.patch.dict(os.environ, command(tmp_path)[1]),  # one device
        mock.patch.object(sys, "argv", argv),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit,
    ):
        study.main("The help of a study.", lambda config: grid, write_found, config="configs/digits.py")
    return exit.value.code, out.getvalue(), err.getvalue()


def ended(process):
    """Waits for a process; returns its exit code, stdout and stderr."""
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def counted(workdir, name):
    """{folder: how often its stand-in counted `name`}."""
    return {path.parent.name: len(path.read_text()) for path in workdir.glob(f"*/{name}")}


def wait_for(condition):
    """Waits until a condition holds."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def trial_of(tmp_path, name):
    """A Trial of a stand-in."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    line = [sys.executable, "-S", str(tmp_path / "stand_in.py"), str(tmp_path / name)]
    return plan.Trial(name, tmp_path / name, ConfigDict({"train": {"steps": 3}}), line)
