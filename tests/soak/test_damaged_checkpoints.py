"""Damaged checkpoints: training and evaluation use the newest intact one."""

import json
import shutil

import pytest

from conftest import metrics, one_line, run, state

MORE = {"config.train.steps": 14, "config.train.keep": 3}


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """A run of 12 steps with checkpoints at 8, 10 and 12."""
    workdir = tmp_path_factory.mktemp("twelve")
    done = run(workdir, **{"config.train.keep": 3})
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def fourteen(twelve, tmp_path_factory):
    """The same run, continued to 14 steps without damage."""
    workdir = tmp_path_factory.mktemp("fourteen") / "run"
    shutil.copytree(twelve, workdir)
    assert run(workdir, **MORE).returncode == 0
    return workdir


def flip(folder):
    for path in folder.glob("state/ocdbt.process_0/d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)


def test_training_goes_on_from_the_newest_that_is_whole(twelve, fourteen, tmp_path):
    """It ends as the run without damage, bit for bit. Other kinds of damage: runtime/test_checksums.py."""
    workdir = tmp_path / "run"
    shutil.copytree(twelve, workdir)
    flip(workdir / "checkpoints" / "12")
    done = run(workdir, **MORE)
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 12 is damaged" in one_line(done.stderr)
    assert "resuming at step 10 of 14" in done.stdout
    assert (workdir / "damaged" / "12").is_dir()
    assert state(workdir, 14) == state(fourteen, 14)
    # The run without damage first ended at step 12, so it has a final estimate there, too.
    last = lambda rows: [row for row in rows if row["split"] != "final" or row["step"] == 14]
    assert last(metrics(workdir)) == last(metrics(fourteen))


def test_evaluation_takes_the_newest_that_is_whole(twelve, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(twelve, workdir)
    flip(workdir / "checkpoints" / "12")
    done = run(workdir, mode="eval")
    assert done.returncode == 0, done.stderr
    assert "the checkpoint of step 12 is damaged" in one_line(done.stderr)
    assert json.loads((workdir / "eval.json").read_text())["step"] == 10


def test_where_none_is_whole_one_line_says_so_each_time(twelve, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(twelve, workdir)
    for folder in (workdir / "checkpoints").iterdir():
        flip(folder)
    before = (workdir / "metrics.jsonl").read_bytes()
    for mode, lines in (("train", 4), ("train", 1), ("eval", 1)):
        done = run(workdir, mode=mode, **MORE)
        assert done.returncode == 2 and done.stderr.count("\n") == lines, done.stderr
        error = done.stderr.splitlines()[-1]
        assert error.startswith("error: ") and "no checkpoint that is intact" in error and "damaged/" in error
    assert (workdir / "metrics.jsonl").read_bytes() == before
