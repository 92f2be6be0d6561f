"""Fine-tuning of a finished run, as another model or with another objective: the parameters that are kept and
those that start afresh; resuming; evaluation, sampling and compression, or their refusal."""

import shutil

import numpy as np
import pytest

from conftest import TINY_FIELDS, cli, metrics, state

pytestmark = pytest.mark.usefixtures("single")

BASE = TINY_FIELDS | {
    "train.steps": 4, "train.eval_every": 0, "train.sample_every": 0, "train.checkpoint_every": 0,
    "model.schedule.name": "fixed_linear", "model.parameterisation": "v",
    "eval.ode.nodes": 4, "eval.ode.tolerance": 0.01, "eval.ode.images": 2, "eval.ode.samples": 1,
    "eval.images": 4, "eval.batch_size": 4, "eval.chain.samples": 2, "eval.chain.timesteps": 2,
    "train.keep": 3,
}  # fmt: skip
NEW = {
    "second_order": {"objective.name": "second_order", "model.times": "importance"},
    "dequantised": {"model.name": "dequantised", "model.width": 4, "model.bins": 3},
    "learned": {"model.name": "diffenc", "model.encoder.net.name": "mlp",
                "model.encoder.net.depth": 1, "model.encoder.net.width": 8},
}  # fmt: skip


def flags(fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]


@pytest.fixture(scope="module")
def base(single, tmp_path_factory):
    """The workdir of a finished run."""
    workdir = tmp_path_factory.mktemp("base") / "W"
    given = flags({name: value for name, value in BASE.items() if name != "config"})
    assert cli("--cache=", "--config=configs/digits.py", f"--workdir={workdir}", *given) == 0
    return workdir


@pytest.fixture(scope="module", params=NEW)
def trained_on(request, base, tmp_path_factory):
    """(name, workdir of the base, workdir of the run that is fine-tuned from it)."""
    workdir = tmp_path_factory.mktemp(request.param) / "W"
    more = NEW[request.param] | {"train.steps": 6, "train.checkpoint_every": 3, "train.log_every": 1}
    taken = ("--mode=import", f"--input={base}", f"--workdir={workdir}", *flags(more))
    assert cli("--cache=", *taken) == 0
    assert cli("--cache=", f"--workdir={workdir}") == 0
    return request.param, base, workdir


def test_it_starts_from_the_average_and_the_rest_afresh(trained_on):
    name, base, workdir = trained_on
    old, new = state(base, 4), state(workdir, 0)
    ema = {key.replace("ema", "params"): value for key, value in old.items() if "['ema']" in key}
    assert ema and all(new[key] == value for key, value in ema.items())
    fresh = {key.split("']['")[1] for key in new if key.startswith("['params']") and key not in ema}
    assert fresh == {"second_order": set(), "dequantised": {"cells"}, "learned": {"x_t"}}[name]
    assert not any(np.frombuffer(value, np.float32).any() for key, value in new.items() if "['mu']" in key)


def test_a_frozen_model_stays_and_the_others_move(trained_on):
    name, _, workdir = trained_on
    before, after = state(workdir, 0), state(workdir, 6)
    moved = {key for key in before if key.startswith("['params']") and before[key] != after[key]}
    assert any("cells" in key or "x_t" in key for key in moved) == (name != "second_order")
    assert any("['net']" in key for key in moved) == (name != "dequantised")


def test_stopped_and_resumed_it_is_bit_for_bit_the_same(trained_on, tmp_path):
    _, _, workdir = trained_on
    again = tmp_path / "W"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "6")
    (again / "eval.json").unlink()
    assert cli("--cache=", f"--workdir={again}") == 0
    assert state(again, 6) == state(workdir, 6)
    assert metrics(again) == metrics(workdir)


def test_metrics_have_the_bound_and_what_is_minimised(trained_on):
    name, _, workdir = trained_on
    rows = [row for row in metrics(workdir) if row["split"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(("objective" in row) == (name == "second_order") for row in rows)
    assert all(("dequantisation" in row) == (name == "dequantised") for row in rows)


def test_evaluated_sampled_and_compressed_or_refused_in_one_line(trained_on, tmp_path, capfd):
    name, _, workdir = trained_on
    if name == "second_order":
        return  # a model like any other
    workdir = shutil.copytree(workdir, tmp_path / "W")
    all_of = ("--cache=", "--mode=eval", f"--workdir={workdir}", "--config.eval.estimators=all")
    assert cli(*all_of) == 0
    text = (workdir / "eval.md").read_text()
    assert ("variational dequantisation, K = 1 is" in text) == (name == "dequantised")
    assert ("importance-weighted" in text) == (name == "learned")
    assert cli("--cache=", "--mode=sample", f"--workdir={workdir}") == 0
    with np.load(workdir / "samples.npz") as samples:
        assert samples["image"].shape == (4, 8, 8, 1)
    capfd.readouterr()
    compress = ("--mode=compress", "--input=test", f"--output={tmp_path / 'x.vdm'}")
    assert cli("--cache=", f"--workdir={workdir}", *compress) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "codec" in error, error
    if name == "learned":
        assert cli("--cache=", "--mode=eval", f"--workdir={workdir}", "--config.eval.estimators=ode") == 2
        assert "which needs a probability-flow ODE" in capfd.readouterr().err


def test_without_its_checkpoints_it_does_not_start_again_from_nothing(trained_on, tmp_path, capfd):
    _, _, workdir = trained_on
    again = shutil.copytree(workdir, tmp_path / "W")
    shutil.rmtree(again / "checkpoints")
    capfd.readouterr()
    assert cli("--cache=", f"--workdir={again}") == 2
    assert "has no checkpoint. It was imported: import it again" in capfd.readouterr().err


def test_a_run_of_another_shape_is_refused(base, tmp_path, capfd):
    capfd.readouterr()
    taken = ("--mode=import", f"--input={base}", f"--workdir={tmp_path / 'W'}", "--config.model.net.width=24")
    assert cli("--cache=", *taken) == 2
    assert "is of another model than the config: net" in capfd.readouterr().err
    assert not (tmp_path / "W" / "config.json").exists()
