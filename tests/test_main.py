"""Bad input: one line that names the value, what is accepted and the fix; exit code 2."""

import os
import pathlib

import numpy as np
import pytest

from conftest import run
from vdm import main
from vdm.errors import UserError

# Flags, and what the one line must hold.
BAD = {
    "misspelt field": ({"config.train.stepz": 3}, "train.stepz", "Did you mean 'train.steps'"),
    "misspelt group": ({"config.optimiser.clip": 1}, "optimiser.clip", "'optimizer.clip'"),
    "wrong type": ({"config.train.steps": "many"}, "config.train.steps=many", "int"),
    "misspelt flag": ({"workdri": "x"}, "--workdri", "Did you mean 'workdir'"),
    "unknown mode": ({"mode": "fly"}, "--mode is 'fly'", "'train', 'eval', 'sample'"),
    "no such config": ({"config": "configs/digit.py"}, "configs/digit.py", "configs/digits.py"),
    "batch": ({"config.train.batch_size": 15, "devices": 2}, "batch_size is 15", "multiple of 2"),
    "eval batch": ({"config.eval.batch_size": 7, "devices": 2}, "eval.batch_size is 7", "of the 2"),
    "accumulate": ({"config.train.accumulate": 5}, "batch_size is 16", "such as 20"),
    "vocab_size": ({"config.data.vocab_size": 16}, "vocab_size is 16", "up to 16", "17 or more"),
    "vocab_size > 256": ({"config.data.vocab_size": 300}, "vocab_size is 300", "2 to 256"),
    "gammas": (
        {"config.model.schedule.gamma_min": 6.0}, "gamma_min is 6.0 and gamma_max is", "smaller",
    ),
    "data set": ({"config.data.name": "digitz"}, "'digitz'", "Did you mean 'digits'"),
    "unprepared": (
        {"config.data.name": "cifar10", "config.data.data_dir": "/nowhere"},
        "'cifar10' is not prepared", "tfds build cifar10 --data_dir=/nowhere",
    ),
    "no folder": (
        {"config.data.name": "folder", "config.data.data_dir": "/nowhere"}, "'/nowhere'", "exist",
    ),
    "schedule": ({"config.model.schedule.name": "cubic"}, "'cubic'", "'learned_linear'"),
    "net": ({"config.model.net.name": "resnet"}, "'resnet'", "'unet', 'transformer', 'mlp'"),
    "heads": ({"config.model.net.heads": 3}, "net.width is 16", "multiple of"),
    "dropout": ({"config.model.net.dropout": 1.0}, "dropout is 1.0"),
    "parallel": ({"config.parallel": "pmpa"}, "'pmpa'", "Did you mean 'pmap'"),
    "augment": ({"config.data.augment": "flip,mirror"}, "'mirror'", "flip, rotate, channels"),
    "steps": ({"config.train.steps": 0}, "train.steps is 0", "1 or more"),
    "no config": ({"config": None, "only": True}, "--config is missing", "configs/digits.py"),
    "eval without run": ({"mode": "eval"}, "no such checkpoint", "--mode=train first"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, tmp_path):
    flags, *texts = BAD[case]
    flags = dict(flags)
    if flags.pop("only", False):
        from test_resume import only

        flags |= only("workdir", str(tmp_path))
    done = run(tmp_path, devices=flags.pop("devices", 1), **flags)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for text in texts:
        assert text in done.stderr


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run.*cannot be written.*give a folder"):
        main.check_workdir(tmp_path / "file" / "run", "train")
    with pytest.raises(UserError, match="does not exist.*--mode=train first"):
        main.check_workdir(tmp_path / "nothing", "eval")


def test_checkpoint_of_another_model(tmp_path):
    """The config of the workdir is gone, and the arrays are not those of the config."""
    workdir = tmp_path / "run"
    assert run(workdir).returncode == 0
    (workdir / "config.json").unlink()
    done = run(workdir, **{"config.model.net.width": 24})
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for text in ("step 12", "another model", "is (", "--workdir"):
        assert text in done.stderr


def test_help_shows_the_commands():
    done = run("unused", help="true", config=None)
    assert done.returncode == 0
    for text in ("--config=configs/digits.py", "--mode", "--workdir", "configs/default.py"):
        assert text in done.stdout
