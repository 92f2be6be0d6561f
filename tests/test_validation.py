"""The best checkpoint: chosen on validation images, or else said to be chosen on those it is tested by."""

import json
import types

import numpy as np
import pytest

from conftest import TINY, make_config, metrics
from vdm import run as run_lib, train
from vdm.data import fingerprint, sources
from vdm.evaluation import evaluate
from vdm.evaluation.estimate import Estimate
from vdm.reporting.log import NoLog
from vdm.runtime.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("single")

FEW = {name.removeprefix("config."): value for name, value in TINY.items() if "config." in name}


@pytest.fixture(scope="module")
def workdir(single, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    changes = {"data.validation": 0.1, "train.checkpoint_every": 4, "train.sample_every": 0}
    train.run(make_config(FEW | changes, "configs/digits.py"), folder)
    return folder


def test_a_run_with_validation_images_keeps_its_best_by_them(workdir):
    found = {row["step"]: row for row in metrics(workdir) if row["split"] == "validation"}
    data = sources.load(make_config({"data.validation": 0.1}, "configs/digits.py").data)
    assert list(found) == [4, 8, 12] and {row["images"] for row in found.values()} == {144}
    assert {row["data"] for row in found.values()} == {fingerprint.of_split(data.validation, data.spec, 144)}
    checkpoints = Checkpoints(workdir, 2, read_only=True)
    assert checkpoints.best() == min(found, key=lambda step: found[step]["bpd"])
    checkpoints.close()
    assert len([row for row in metrics(workdir) if row["split"] == "test"]) == 3


@pytest.mark.parametrize("validated", [True, False])
def test_what_chooses_is_the_validation_images_where_there_are_any(validated):
    def estimate(value):
        return lambda *args, **named: (Estimate({"bpd": np.array([value, value])}, {"bpd": 0.0}, 2), None)

    config = make_config(FEW, "configs/digits.py")
    log = NoLog(config, None, 0, 0.0, None)
    running = types.SimpleNamespace(means=lambda: {"loss": 1.0})
    validate = estimate(1.5) if validated else None
    found = train.report(config, 4, None, running, estimate(2.0), validate, lambda ema: None, log)
    assert found == (1.5 if validated else 2.0)


def test_the_heading_says_by_what_the_best_was_chosen(workdir, capsys):
    config = make_config(FEW | {"data.validation": 0.1, "eval.checkpoint": "best"}, "configs/digits.py")
    evaluate.run(config, workdir)
    assert ", the best by 144 validation images" in capsys.readouterr().out
    assert "the best by 144 validation" in json.loads((workdir / "eval.json").read_text())["of"]
    config.eval.checkpoint = "newest"
    run = run_lib.restore(config, workdir)
    assert evaluate._choice(config, run) == ""
    config.eval.checkpoint = "best"
    without = run._replace(data=run.data.__class__(run.data.train, run.data.test, run.data.spec))
    assert "by these test images themselves" in evaluate._choice(config, without)
