"""Faults that a run survives: a second process, signals, a full disk, non-finite numbers."""

import re
import signal
import subprocess
import time

import pytest

from conftest import ROOT, command, metrics, one_line, run, state


def started(workdir, **flags):
    """A long training process that has saved a checkpoint of step 4 or later."""
    slow = {"config.train.steps": 100_000, "config.train.log_every": 2, "config.train.sample_every": 0}
    line, env = command(workdir, **slow | {"config.train.eval_every": 0} | flags)
    process = subprocess.Popen(
        line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    checkpoints = workdir / "checkpoints"
    while not any(path.name.isdigit() and int(path.name) >= 4 for path in checkpoints.glob("*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    return process


def test_one_writer_and_many_readers(tmp_path):
    """A second process is refused, and its error names the first; an evaluation writes to its own folder;
    after the first process is killed, the next one resumes."""
    workdir = tmp_path / "run"
    flags = {"config.train.checkpoint_every": 500}
    process = started(workdir, **flags | {"config.train.checkpoint_every": 20})
    try:
        second = run(workdir, **{"config.train.steps": 100_000})
        assert second.returncode == 2
        assert f"is being written by process {process.pid} on" in one_line(second.stderr)
        read = run(workdir, mode="eval", **{"config.eval.estimators": "elbo"})
        assert read.returncode == 0, read.stderr
        written = {path.name for folder in workdir.glob("step-*") for path in folder.iterdir()}
        assert {"eval.json", "eval.md"} <= written and not (workdir / "eval.json").exists()
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    third = run(workdir, **{"config.train.steps": newest + 2, "config.train.eval_every": 0})
    assert third.returncode == 0 and f"resuming at step {newest}" in third.stdout, third.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1])  # SIGTERM is in test_hosts.py
def test_a_cluster_ends_it_saved_to_be_queued_again(number, tmp_path):
    process = started(tmp_path / "run", **{"config.train.checkpoint_every": 4})
    process.send_signal(number)
    process.send_signal(number)  # as two processes of a cluster may do
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75 and "Traceback" not in output, output
    step = int(re.search(r"stopped at step (\d+), with a checkpoint", output)[1])
    assert (tmp_path / "run" / "checkpoints" / str(step) / "checksums.json").exists()


# ---- a full disk -------------------------------------------------------------------------


def limited(workdir, nbytes, **flags):
    """A run whose files cannot exceed `nbytes`: a quota that needs no privileges."""
    line, env = command(workdir, **flags)
    line = ["bash", "-c", f'ulimit -f {nbytes // 1024}; exec "$@"', "bash", *line]
    return subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_no_room_for_a_checkpoint_warns_and_the_run_goes_on(tmp_path):
    """Each save is attempted, and none is left incomplete; the last save fails, so the exit code is 1. With
    enough space, the same command ends as an undisturbed run."""
    flags = {"config.model.net.width": 96, "config.train.checkpoint_every": 4}
    flags |= {"config.train.eval_every": 0, "config.train.sample_every": 0}
    done = limited(tmp_path / "run", 150_000, **flags)
    assert done.returncode == 1
    *warnings, error = done.stderr.splitlines()
    assert [re.search(r"step (\d+) could not be written", line)[1] for line in warnings] == ["4", "8", "12"]
    assert error.startswith("error: the checkpoint of step 12") and "the same command" in error
    assert [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()] == []
    for name in ("run", "whole"):
        assert run(tmp_path / name, **flags).returncode == 0
    assert state(tmp_path / "run") == state(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_no_room_at_all_is_one_line(tmp_path):
    workdir = tmp_path / "run"
    done = limited(workdir, 2_048)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: File too large") and "training resumes from the newest intact" in error
    assert not list(workdir.rglob("*.part*")), "nothing half-written is left"
    for name in ("samples.png", "elbo.png", "eval.json"):
        assert not (workdir / name).exists() or (workdir / name).stat().st_size < 2_048


# ---- non-finite numbers ---------------------------------------------------------------------


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path):
    """Also between two lines of the log: a diverged state does not replace a good checkpoint."""
    flags = {"config.optimizer.learning_rate": 1e30, "config.train.log_every": 0, "config.train.keep": 1}
    few = {"config.train.eval_every": 0, "config.train.sample_every": 0, "config.train.checkpoint_every": 1}
    done = run(tmp_path / "run", **flags | few)
    assert done.returncode == 2
    error = one_line(done.stderr)
    assert "has diverged" in error and "at step" in error and "learning_rate" in error
    step = int(re.search(r"at step (\d+)", error)[1])
    kept = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert kept == [step - 1] if step > 1 else kept == []
