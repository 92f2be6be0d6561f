"""The parts of the GPU report: those that fail or take too long, and the tables."""

import json
import pathlib
import subprocess
import sys
import time

import pytest

from conftest import ROOT
from experiments import on_gpu

CASE = {
    "size": "laptop",
    "dtype": "float32",
    "case": "pyramid 2 × 128, batch 128, float32",
    "step": 12.345,
    "images": 10_368.7,
    "share": 0.417,
    "rate": 402.0,
    "roofline": None,
    "over": None,
    "kernels": 1164.2,
    "compile": 33.4,
}


def module(folder, text):
    """Writes a module to a folder; returns the environment with which processes find it."""
    (folder / "of_test.py").write_text(text)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def test_a_part_that_takes_too_long_is_stopped_with_what_it_started(tmp_path):
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    env = module(
        tmp_path,
        f"import subprocess, sys, time\nprint('begun', flush=True)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(60)\n",
    )
    began = time.monotonic()
    code, lines = on_gpu.process(tmp_path, "part", ["of_test"], 2.0, env)
    assert code is None and lines == ["begun"] and time.monotonic() - began < 20
    assert on_gpu.ended(code, lines, 2.0) == "Stopped after 2 s."
    time.sleep(4)
    assert not mark.exists()


def test_a_part_that_fails_says_how(tmp_path):
    env = module(tmp_path, "import sys\nprint('one')\nsys.exit('error: no GPU')\n")
    code, lines = on_gpu.process(tmp_path, "part", ["of_test"], 30.0, env)
    assert on_gpu.ended(code, lines, 30.0) == "Failed with exit code 1: error: no GPU"


def test_the_table_of_steps_is_of_what_was_timed(tmp_path, monkeypatch):
    on_gpu.FLAGS(["on_gpu"])
    (tmp_path / "steps.json").write_text(json.dumps({"device": "none", "cases": [CASE]}))
    monkeypatch.setattr(on_gpu, "process", lambda *_: (None, ["pyramid"]))
    table, note = on_gpu.steps_part(tmp_path, time.monotonic() + 100.0)
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    assert cells == [CASE["case"], "12.3", "10,369", "42%", "402", "–", "–", "1,164", "33"]
    assert note == "Stopped after 40 s."


def test_without_seconds_of_a_step_there_is_no_training_and_no_codec(tmp_path):
    assert on_gpu.training_part(tmp_path, 0.0)[0].startswith("Not started")
    assert on_gpu.codec_part(tmp_path, 0.0)[0].startswith("Not started")


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--sizes=lapptop", "accepted: 'laptop', 'small', 'paper'. Did you mean 'laptop'"),
        ("--minutes=0", "--minutes is 0.0; accepted: a number above 0."),
        ("--tests=nests", "--tests has ['nests']; accepted: files and folders in tests/"),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(flag, text, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.on_gpu", flag, f"--out={tmp_path / 'out'}"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(ROOT),
    )
    assert done.returncode == 2 and text in done.stderr and not (tmp_path / "out").exists()
