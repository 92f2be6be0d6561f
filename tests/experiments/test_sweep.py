"""Sweeps of stand-in commands, which count their starts and signals; and one of a real run."""

import json
import os
import signal
import subprocess
import sys

import pytest

from conftest import TINY
from experiments.running import jobs, plan
from sweep_helpers import counted, ended, start_study, study_here, trial_of, wait_for


def test_does_what_is_missing_and_says_what_failed(tmp_path):
    """A run that fails and one that is killed stop no other; again, only these are started."""
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_stopped_it_stops_its_runs_by_one_signal_and_goes_on_later(number, tmp_path):
    """The signal goes to the whole process group, as from a terminal."""
    workdir = tmp_path / "W"
    process = start_study(tmp_path, "slow good", "--jobs=1")
    wait_for(lambda: counted(workdir, "ready"))
    os.killpg(process.pid, number)
    code, out, err = ended(process)
    assert code == 130 and "the same command goes on" in out and not err.count("Traceback"), out + err
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
    assert "once more to kill" in process.stdout.readline()
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
    wait_for(lambda: again.start().poll() != "another process is at this run; wait for it, or end it")


def test_finished_is_the_last_step_evaluated_and_saved(tmp_path):
    trial = trial_of(tmp_path, "good-0")
    trial.folder.mkdir()
    assert not plan.finished(trial)
    (trial.folder / "eval.json").write_text('{"step": 3}')
    assert not plan.finished(trial)  # killed before the last checkpoint
    (trial.folder / "checkpoints" / "2").mkdir(parents=True)
    assert not plan.finished(trial)
    (trial.folder / "checkpoints" / "3").mkdir()
    assert plan.finished(trial)
    # Evaluated again at its best checkpoint, it stays finished.
    (trial.folder / "eval.json").write_text('{"step": 2}')
    assert plan.finished(trial)


def test_dry_run_prints_what_a_shell_reads_as_the_arguments_run(tmp_path):
    """A shell runs the lines with a `python` that writes its arguments down."""
    odd = "a b'c\"$HOME"
    own = {"model.schedule.name": "cosine", "train.ema": 1e-05, "train.log_every": 7}
    data = ["--config.data.name=npz", f"--config.data.data_dir={odd}"]
    flags = ["--config.train.keep", "5", "--seeds=1", "--dry_run"]
    code, out, err = study_here(tmp_path, {"plain": {}, "cosine": own}, *data, *flags)
    assert code == 0 and not (tmp_path / "W").exists(), err
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/args$(ls {tmp_path} | grep -c args)\n')
    python.chmod(0o755)
    subprocess.run(["sh", "-c", out], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    start = ["-m", "vdm.main", "--config=configs/digits.py"]
    by_user = [*data, "--config.train.keep=5"]
    plain = [*start, f"--workdir={tmp_path}/W/plain-0", *by_user, "--config.seed=0"]
    cosine = [
        *start, f"--workdir={tmp_path}/W/cosine-0", *by_user, "--config.model.schedule.name=cosine",
        "--config.train.ema=1e-05", "--config.train.log_every=7", "--config.seed=0",
    ]  # fmt: skip
    read = [(tmp_path / f"args{number}").read_text().splitlines() for number in range(2)]
    assert read == [plain, cosine]


BAD = {
    "field": (["--config.train.stepz=3"], "config.train.stepz", "Did you mean 'steps'?"),
    "seed": (["--config.seed=3"], "--config.seed", "--seeds"),
    "variant": (["--only=god"], "--only is 'god'", "'good', 'bad'", "Did you mean 'good'?"),
    "config": (["--config=configs/digit.py"], "'configs/digit.py'", "'configs/digits.py'?"),
    "another's flag": (["--mode=eval"], "--mode is no flag"),
    "a misspelt flag": (["--job=3"], "--job is no flag", "Did you mean 'jobs'?"),
    "no flag": (["here"], "'here' is no flag"),
    "a bad value": (["--seeds=0"], "--seeds=0"),
    "option": (["--cluster=local", "--cluster_options=x"], "'x'", "NAME=VALUE"),
    "name of option": (["--cluster=local", "--cluster_options=slurm_x=1"], "slurm_x"),
    "options alone": (["--cluster_options=x=1"], "'x=1'", "--cluster=slurm"),
    "no Slurm": (["--cluster=slurm"], "srun"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_starts_nothing(case, tmp_path, monkeypatch):
    flags, *texts = BAD[case]
    if case == "no Slurm":
        monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = study_here(tmp_path, {"good": {}, "bad": {}}, *flags)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    for text in texts:
        assert text in err
    assert not list(tmp_path.glob("W/*/log.txt"))


def test_help(tmp_path):
    code, out, _ = study_here(tmp_path, {"good": {}}, "--help")
    assert code == 0 and out.startswith("The help of a study.")
    assert "--workdir" in out and "of seeds 0, 1" in out


@pytest.mark.parametrize(
    "fields, texts",
    [
        ({"model.schedule.nam": "cosine"}, ("config.model.schedule.nam", "Did you mean 'name'?")),
        ({"model.schedule.name": "cosin"}, ("config.model.schedule.name", "Did you mean 'cosine'?")),
        ({"model.schedule.name": "cosine", "model.schedule.parts": 3}, ("parts", "'cosine'")),
    ],
)
def test_a_field_of_the_grid_that_is_none(fields, texts, tmp_path):
    code, _, err = study_here(tmp_path, {"good": fields})
    assert code == 2 and err.startswith("error: variant 'good': ") and err.count("\n") == 1
    assert all(text in err for text in texts), err


def test_a_variant_of_another_config(tmp_path):
    """What the user sets goes for it too; but not what the study sets itself."""
    grid = {"good": {"config": "configs/vae.py", "model.latent": 3, "train.ema": 0.5}}
    flags = ["--config.train.keep=5", "--seeds=1", "--dry_run"]
    code, out, err = study_here(tmp_path, grid | {"plain": {}}, *flags)
    assert code == 0, err
    want = "--config=configs/vae.py --workdir={}/W/good-0 --config.train.keep=5 --config.model.latent=3"
    assert want.format(tmp_path) in out
    code, out, err = study_here(tmp_path, grid, "--dry_run")
    assert code == 2 and "this study has configs of its own: configs/vae.py; leave it out" in err
    grid["plain"] = {}
    code, out, err = study_here(
        tmp_path, grid | {"bad": {"config": "configs/vae.py", "model.latnt": 3}}, "--dry_run"
    )
    assert code == 2 and "variant 'bad'" in err and "model.latnt" in err
    code, out, err = study_here(tmp_path, grid, "--config.train.ema=0.9", "--dry_run")
    assert code == 2 and "--config.train.ema cannot be set: the study itself sets it, in 'good'" in err


def test_a_study_of_real_runs(tmp_path):
    """One tiny run to its end; then there is nothing to do, and another config is refused."""
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
    # Of the curve alone, and not of the final number.
    code, out, err = study_here(tmp_path, grid, *tiny, "--config.eval.passes_in_training=3")
    assert code == 0 and "1 of 1 runs have finished; 0 to run" in out
    code, out, err = study_here(tmp_path, {"narrow": {"model.net.fourier": 2}}, *tiny)
    assert code == 2 and "model.net.fourier was 1, is 2" in err
    code, out, err = study_here(tmp_path, grid, *tiny, "--config.eval.passes=3")
    assert code == 2 and "was done with another eval.passes; set --config.eval.passes=2" in err
