"""Sweeps whose processes fail, are stopped or are killed; and a sweep with a real run."""

import json
import os
import signal
import sys

import pytest

from conftest import TINY
from sweep_helpers import counted, ended, start_study, study_here, wait_for
from vdm.sweep import jobs


def test_does_what_is_missing_and_says_what_failed(tmp_path):
    """Runs that fail or are killed do not stop others; the same command again starts only these."""
    workdir = tmp_path / "W"
    code, out, err = ended(start_study(tmp_path, "good bad killed", "--jobs=2"))
    assert code == 1, out + err
    assert "0 of 6 runs have finished; 6 to run" in out and "4 of 6 runs failed" in err
    assert "6/6 " in out and "good-1: 1.5000 ± 0.2500 bits/dim, 7 s" in out
    assert f"bad-0: no such data (see {workdir}/bad-0/log.txt)" in err and "bad-1: no such data" in err
    assert "killed-0: killed by SIGKILL" in err
    assert set(counted(workdir, "starts").values()) == {1}
    assert json.loads((workdir / "found.json").read_text()) == {"good": ["good-0", "good-1"]}

    code, out, err = ended(start_study(tmp_path, "good bad killed"))
    assert code == 1 and "2 of 6 runs have finished; 4 to run" in out and "2 of 4 runs failed" in err
    assert counted(workdir, "starts") == {
        "good-0": 1, "good-1": 1, "bad-0": 2, "bad-1": 2, "killed-0": 2, "killed-1": 2,
    }  # fmt: skip
    found = {"good": ["good-0", "good-1"], "killed": ["killed-0", "killed-1"]}
    assert json.loads((workdir / "found.json").read_text()) == found

    code, out, err = ended(start_study(tmp_path, "good bad killed", "--only=good,killed"))
    assert code == 0 and "4 of 6 runs have finished; 0 to run" in out
    assert counted(workdir, "starts")["good-0"] == 1


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGHUP, 130), (signal.SIGUSR1, 75)]
)
def test_stopped_it_stops_its_runs_by_one_signal_and_goes_on_later(number, exit_code, tmp_path):
    """The signal goes to the whole process group, as from a terminal."""
    workdir = tmp_path / "W"
    process = start_study(tmp_path, "slow good", "--jobs=1")
    wait_for(lambda: counted(workdir, "ready"))
    os.killpg(process.pid, number)
    code, out, err = ended(process)
    assert code == exit_code and "the same command resumes" in out and "Traceback" not in err, out + err
    assert "slow-0: stopped, saved" in out
    assert counted(workdir, "signals") == {"slow-0": 1}
    assert counted(workdir, "starts") == {"slow-0": 1}
    assert not (workdir / "found.json").exists()

    code, out, err = ended(start_study(tmp_path, "slow good", "--seeds=1"))
    assert code == 0, out + err
    assert counted(workdir, "starts") == {"slow-0": 2, "good-0": 1}


def test_a_second_ctrl_c_kills(tmp_path):
    process = start_study(tmp_path, "stubborn", "--seeds=1")
    wait_for(lambda: counted(tmp_path / "W", "ready"))
    process.send_signal(signal.SIGINT)
    assert "started" in (process.stdout.readline() + process.stdout.readline())
    assert "again to kill" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, out, _ = ended(process)
    assert code == 130 and "stubborn-0: killed by SIGKILL" in out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_runs_do_not_outlive_a_killed_sweep(tmp_path):
    process = start_study(tmp_path, "stubborn", "--seeds=1")
    wait_for(lambda: counted(tmp_path / "W", "ready"))
    process.kill()
    process.wait()
    again = jobs.Process(["true"], tmp_path / "W" / "stubborn-0")
    wait_for(lambda: again.start().poll() != "another process runs this trial; wait for it, or end it")


def test_a_study_of_real_runs(tmp_path):
    """One tiny run completes; after that there is nothing to do, and another config is refused."""
    grid = {"narrow": {"model.net.fourier": 1}}
    tiny = [f"--{name}={value}" for name, value in TINY.items() if name != "config"]
    tiny += ["--config.train.substeps=1", "--seeds=1"]  # one program to compile
    code, out, err = study_here(tmp_path, grid, *tiny)
    assert code == 0 and "1/1 narrow-0: " in out and " bits/dim, " in out, out + err
    assert json.loads((tmp_path / "W" / "found.json").read_text()) == {"narrow": ["narrow-0"]}
    config = json.loads((tmp_path / "W" / "narrow-0" / "config.json").read_text())
    assert config["model"]["net"]["fourier"] == 1 and config["train"]["steps"] == TINY["config.train.steps"]

    code, out, err = study_here(tmp_path, grid, *tiny)
    assert code == 0 and "1 of 1 runs have finished; 0 to run" in out
    # This field affects only the curve, not the final number.
    code, out, err = study_here(tmp_path, grid, *tiny, "--config.eval.passes_in_training=3")
    assert code == 0 and "1 of 1 runs have finished; 0 to run" in out
    code, out, err = study_here(tmp_path, {"narrow": {"model.net.fourier": 2}}, *tiny)
    assert code == 2 and "model.net.fourier was 1, is 2" in err
    code, out, err = study_here(tmp_path, grid, *tiny, "--config.eval.passes=3")
    assert code == 2 and "was done with another eval.passes; set --config.eval.passes=2" in err
    code, out, err = study_here(tmp_path, grid, *tiny, "--config.model.sample_steps=7")
    assert code == 2 and "was done with another model.sample_steps; set --config.model.sample_steps=" in err
