"""The study of fine-tuning: what it starts from, and what it makes of it."""

import json
import shutil

import pytest

from experiments import fine_tuning
from model_helpers import save_run, tiny_config
from record_helpers import read_csv
from vdm.errors import UserError

pytestmark = pytest.mark.usefixtures("single")

FIELDS = {
    "model.net.name": "mlp",
    "model.net.depth": 1,
    "model.net.width": 16,
    "model.schedule.name": "fixed_linear",
    "model.parameterisation": "v",
    "train.steps": 4,
    "eval.images": 4,
    "sample.num": 8,
    "sample.batch_size": 8,
}


@pytest.fixture(scope="module")
def base(single, tmp_path_factory):
    """A finished run of seed 0."""
    return save_run(tmp_path_factory.mktemp("base") / "plain-0", tiny_config("digits", **FIELDS))


@pytest.fixture
def run():
    """Runs the study with these flags."""
    flags = fine_tuning.FLAGS

    def with_flags(*args):
        for name in flags:
            flags[name].unparse()
        flags(["fine_tuning", *map(str, args)])
        fine_tuning.run([])

    return with_flags


def test_bases_are_finished_and_differ_in_their_seed(base, run, tmp_path):
    twin, unfinished = tmp_path / "scaled-0", tmp_path / "plain-1"
    for copy in (twin, unfinished):
        shutil.copytree(base, copy)
    (unfinished / "eval.json").unlink()
    (unfinished / "metrics.jsonl").unlink()
    for bases, text in (
        ([base, twin], "which have the same seed"),
        ([unfinished], "has no final estimate of its newest checkpoint"),
        ([], "--base is missing"),
    ):
        with pytest.raises(UserError, match=text):
            run(f"--workdir={tmp_path / 'F'}", f"--base={','.join(map(str, bases))}")
    assert not (tmp_path / "F").exists()


@pytest.mark.slow
def test_runs_are_trained_further_and_compared(base, run, tmp_path, monkeypatch):
    monkeypatch.setattr(fine_tuning, "VARIANTS", {"elbo": fine_tuning.VARIANTS["elbo"]})
    study = (f"--workdir={tmp_path / 'F'}", "--images=3")
    folder = tmp_path / "F" / "elbo-0"
    shutil.copytree(base / "checkpoints" / "4", folder / "checkpoints" / "0")  # an interrupted import's
    run(*study, f"--base={base}", "--steps=2")
    before, _, after, _ = rows = read_csv(tmp_path / "F" / "fine_tuning.csv")
    assert [(row["variant"], row["start"]) for row in rows] == [
        (variant, kind) for variant in ("(before)", "elbo") for kind in ("uniform", "normal")
    ]
    change = float(after["bpd"]) - float(before["bpd"])
    assert float(after["minus_before"]) == pytest.approx(change, abs=1e-6) and change != 0.0
    assert json.loads((folder / "imported.json").read_text())["file"] == str(base)
    other = tmp_path / "other-0"
    shutil.copytree(base, other)
    for args, text in (
        ((f"--base={other}", "--steps=2"), "was trained further from"),
        ((f"--base={base}", "--steps=1"), "set --steps=2"),
        ((f"--base={base}", "--steps=2", "--learning_rate=0.1"), "was started with another config"),
    ):
        with pytest.raises(UserError, match=text):
            run(*study, *args)
