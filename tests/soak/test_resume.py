"""Processes that are killed at several moments and resumed end as an uninterrupted run, bit for bit."""

import csv
import json
import shutil
import signal
import subprocess
import time

import numpy as np
from PIL import Image
import pytest

from conftest import ROOT, command, metrics, only, run, state
from vdm.data import fingerprint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def assert_same(workdir, whole):
    assert metrics(workdir) == metrics(whole)
    assert state(workdir) == state(whole)
    for name in ("eval.json", "samples.png"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()


def kill_when(line, env, ready):
    """Starts a run and kills it as soon as `ready()` holds; returns whether it was killed."""
    process = subprocess.Popen(line, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not ready():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_during_a_save_at_a_save_and_between(tmp_path, whole):
    """SIGKILL while the first checkpoint is being written, after that of step 4 is complete, and when the
    metrics are ahead of the newest checkpoint; then the run completes."""
    workdir = tmp_path / "killed"
    line, env = command(workdir)
    checkpoints = workdir / "checkpoints"

    def saving():
        return any("tmp" in path.name for path in checkpoints.glob("*"))

    def saved(step):
        return lambda: any(path.name.isdigit() and int(path.name) >= step for path in checkpoints.glob("*"))

    def logged(step):
        return lambda: any(row["step"] >= step for row in metrics(workdir))

    for moment in (saving, saved(4), logged(9)):
        assert kill_when(line, env, moment), "the run ended before it could be killed"
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert_same(workdir, whole)


def test_stopped_by_ctrl_c_saves_and_goes_on(tmp_path, whole):
    workdir = tmp_path / "stopped"
    line, env = command(workdir, **{"config.train.checkpoint_every": 100})
    process = subprocess.Popen(
        line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not any(row["step"] >= 3 for row in metrics(workdir)):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130, output
    assert "the same command resumes" in output and "Traceback" not in output
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    assert "resuming at step" in done.stdout
    assert_same(workdir, whole)


def test_stopped_during_the_final_evaluation_ends_at_once(tmp_path, whole):
    workdir = tmp_path / "evaluating"
    line, env = command(workdir, **{"config.eval.passes": 100_000})
    process = subprocess.Popen(
        line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert any(text == "evaluating\n" for text in process.stdout)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    assert_same(workdir, whole)


def test_finished_run_says_so(whole):
    before = metrics(whole)
    done = run(whole)
    assert done.returncode == 0 and "finished" in done.stdout
    assert metrics(whole) == before


def test_more_steps_go_on_and_other_fields_are_refused(tmp_path, whole):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    refused = run(workdir, **{"config.model.net.width": 24, "config.seed": 5})
    assert refused.returncode == 2 and refused.stdout == ""
    for text in ("model.net.width was 16, is 24", "seed was 0, is 5"):
        assert text in refused.stderr
    assert refused.stderr.count("\n") == 1
    other = json.loads((whole / "data.json").read_text()) | {"test": "360 images, 0123456789abcdef"}
    (workdir / "data.json").write_text(json.dumps(other))
    for mode in ("train", "eval"):
        refused = run(workdir, mode=mode, **{"config.train.steps": 14})
        assert refused.returncode == 2 and "the test images are not those with which" in refused.stderr
    shutil.copyfile(whole / "data.json", workdir / "data.json")
    more = run(workdir, **{"config.train.steps": 14, "config.train.log_every": 1})
    assert more.returncode == 0 and "resuming at step 12 of 14" in more.stdout
    assert metrics(workdir)[-1]["step"] == 14


def test_keeps_the_newest_and_the_best(whole):
    kept = sorted(int(path.name) for path in (whole / "checkpoints").iterdir() if path.name.isdigit())
    tests = {row["step"]: row["bpd"] for row in metrics(whole) if row["split"] == "test"}
    assert kept == sorted({10, 12, min(tests, key=tests.get)})


def test_eval_and_sample_take_the_config_of_the_workdir(whole):
    """The ELBO is the one at the end of training. The table has every other estimator, the files have its
    numbers, and the figures are written."""
    trained = json.loads((whole / "eval.json").read_text())
    metrics_text = (whole / "metrics.jsonl").read_text()
    few = dict(
        config_eval_passes=2, config_eval_estimators="all", config_eval_depths="1,4",
        config_eval_chain_timesteps=3, config_eval_chain_samples=2, config_eval_images=6,
        config_eval_ode_nodes=8, config_eval_ode_images=3, config_eval_ode_tolerance=1e-3,
    )  # fmt: skip
    evaluated = run(whole, mode="eval", **only(**few))
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads((whole / "eval.json").read_text())
    assert "digits" in fingerprint.named(trained["data"]) and trained["data"] in metrics_text
    assert len(found["data"]) == 16 and found["data"] != trained["data"]
    assert found["images"] == 6 and [row["images"] for row in found["rows"]] == [6, 6, 6, 6, 6, 3, 3, 6]
    assert [row["name"] for row in found["depth"]] == ["ELBO, T = 1", "ELBO, T = 4", "ELBO, T → ∞"]
    heading, text = (whole / "eval.md").read_text().split("\n\n", 1)
    assert heading in evaluated.stdout and text in evaluated.stdout
    for row in found["rows"]:
        assert f"{row['bpd']:.4f}" in evaluated.stdout and row["evaluations"] >= 2
    with (whole / "eval_images.csv").open() as file:
        table = list(csv.DictReader(file))
    column = np.array([float(line["elbo_Tinf"]) for line in table])
    assert len(column) == 6 and column.mean() == pytest.approx(found["bpd"])
    for name in ("density.png", "distortion.png", "depth.png"):
        with Image.open(whole / name) as image:
            assert image.size[0] > 500

    again = run(whole, mode="eval", **only(config_eval_passes=2))
    assert again.returncode == 0, again.stderr
    found = json.loads((whole / "eval.json").read_text())
    assert found.pop("of") == "digits, test split, step 12, EMA" and found == trained
    for name in ("reconstruction", "prior", "diffusion", "total (ELBO)"):
        assert name in again.stdout
    sampled = run(whole, mode="sample", **only(config_sample_num=5))
    assert sampled.returncode == 0, sampled.stderr
    with np.load(whole / "samples.npz") as samples, Image.open(whole / "samples.png") as grid:
        assert samples["image"].shape == (5, 8, 8, 1) and grid.size[0] > 300


def test_checkpoint_of_another_model(tmp_path, whole):
    """The workdir has no config, and the arrays of its checkpoint do not fit the given config."""
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "config.json").unlink()
    done = run(workdir, **{"config.model.net.width": 24, "config.train.steps": 14})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for text in ("step 12", "another model", "is [", "--workdir"):
        assert text in done.stderr
    assert not (workdir / "config.json").exists()
