"""The best checkpoint: chosen by validation images or, as the output then says, by test images."""

import dataclasses
import json
import shutil
import types

import numpy as np
import pytest

from conftest import TINY_FIELDS, make_config, metrics, undescribed
from vdm import run as run_lib, train, workdir as workdir_lib
from vdm.data import fingerprint, source
from vdm.estimate import Estimate
from vdm.evaluation import evaluate
from vdm.reporting.log import NoLog
from vdm.runtime.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture(scope="module")
def workdir(single, tmp_path_factory):
    """A run that improves with each step on the test images. Its validation bits/dim are shifted so that step
    4 is the best, which is neither one of the two newest nor the best by the test images."""
    folder = tmp_path_factory.mktemp("run")
    changes = {"data.validation": 0.1, "train.checkpoint_every": 4, "train.sample_every": 0, "train.keep": 2}
    changes["train.log_every"] = 4  # one length of a call, and so one program

    def made(*args):
        validate, below = make_validator(*args), iter((1.0, 0.0, 0.0))

        def validate_and_shift(*args):
            estimate, profile = validate(*args)
            bpd = estimate.values["bpd"] - next(below)
            return dataclasses.replace(estimate, values=estimate.values | {"bpd": bpd}), profile

        return validate_and_shift

    make_validator = train.make_validator
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_validator", made)
        train.run(make_config(TINY_FIELDS | changes, "configs/digits.py"), folder)
    return folder


def test_a_run_with_validation_images_keeps_its_best_by_them(workdir):
    found = {row["step"]: row for row in metrics(workdir) if row["split"] == "validation"}
    data = source.load(make_config({"data.validation": 0.1}, "configs/digits.py").data)
    assert list(found) == [4, 8, 12] and {row["images"] for row in found.values()} == {144}
    assert {row["data"] for row in found.values()} == {fingerprint.of_split(data.validation, data.spec, 144)}
    checkpoints = Checkpoints(workdir, 2, read_only=True)
    tested = {row["step"]: row["bpd"] for row in metrics(workdir) if row["split"] == "test"}
    assert list(tested) == [4, 8, 12] and tested[4] > tested[8] > tested[12]
    assert checkpoints.best([4, 8, 12]) == min(found, key=lambda step: found[step]["bpd"]) == 4
    assert checkpoints.best([8, 12]) == min([8, 12], key=lambda step: found[step]["bpd"])
    assert checkpoints.best([]) is None
    checkpoints.close()
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "8", "12"}


def test_a_run_that_was_killed_before_its_final_estimate_only_makes_this(workdir, tmp_path, capsys):
    folder, changes = tmp_path / "run", {"data.validation": 0.1, "train.checkpoint_every": 4}
    shutil.copytree(workdir, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert '"final"' in lines[-1]
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    for name in ("eval.json", "eval_images.csv", "samples.png"):
        (folder / name).unlink()
    config = make_config(TINY_FIELDS | changes, "configs/digits.py")
    train.run(config, folder)
    assert "resuming at step 12 of 12" in capsys.readouterr().out
    assert metrics(folder) == metrics(workdir)
    for name in ("eval.json", "eval_images.csv", "samples.png"):
        assert (folder / name).read_bytes() == (workdir / name).read_bytes()
    train.run(config, folder)
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize("validated", [True, False])
def test_what_chooses_is_the_validation_images_where_there_are_any(validated):
    def estimate(value):
        return lambda *args, **named: (Estimate({"bpd": np.array([value, value])}, {"bpd": 0.0}, 2), None)

    config = make_config(TINY_FIELDS, "configs/digits.py")
    log = NoLog(config, None, 0, 0.0, None)
    running = types.SimpleNamespace(means=lambda: {"loss": 1.0})
    validate = estimate(1.5) if validated else None
    found = train.report(config, 4, None, running, estimate(2.0), validate, lambda ema: None, log)
    assert found == (1.5 if validated else 2.0)


@pytest.mark.slow
def test_the_heading_says_by_what_the_best_was_chosen(workdir, capsys):
    config = make_config(
        TINY_FIELDS | {"data.validation": 0.1, "eval.checkpoint": "best"}, "configs/digits.py"
    )
    evaluate.run(config, workdir)
    assert ", the best checkpoint by 144 validation images" in capsys.readouterr().out
    written = json.loads((workdir / "eval.json").read_text())
    assert "the best checkpoint by 144 validation" in written["of"] and written["step"] == 4
    assert not undescribed(workdir, workdir_lib.FILES)
    config.eval.checkpoint = "newest"
    run = run_lib.restore(config, workdir)
    assert evaluate._choice(config, run) == ""
    config.eval.checkpoint = "best"
    without = run._replace(data=run.data.__class__(run.data.train, run.data.test, run.data.spec))
    assert "by these test images" in evaluate._choice(config, without)
