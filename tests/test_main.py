"""Bad input: one line that names the value, what is accepted and the fix; exit code 2."""

import jax
import pytest

from conftest import ROOT, cli, command, make_config, only, run
from vdm import main, train
from vdm.errors import UserError, one_line
from vdm.evaluation import estimator

# {case: (flags, texts that the one-line error must contain)}
BAD_FLAGS = {
    "misspelt field": ({"config.train.stepz": 3}, "config.train.stepz", "Did you mean 'steps'"),
    "misspelt group": ({"config.optimiser.clip": 1}, "config.optimiser", "Did you mean 'optimizer'"),
    "wrong type": (
        {"config.train.steps": "many"},
        "config.train.steps is 'many'",
        "accepted: a whole number",
    ),
    "misspelt flag": ({"workdri": "x"}, "--workdri is not", "Did you mean '--workdir'"),
    "unknown mode": ({"mode": "fly"}, "--mode is 'fly'", "'train', 'eval', 'sample'"),
    "no such config, alone": (only(config="configs/digit.py"), "configs/digit.py", "configs/digits.py"),
    "no such config": ({"config": "configs/digit.py"}, "configs/digit.py", "configs/digits.py"),
    "no config": (only(), "--config is missing", "configs/digits.py"),
    "field without config": (only(config_seed=1), "--config is missing", "configs/digits.py"),
    "workdir": ({"workdir": "/dev/null/x"}, "'/dev/null/x'", "cannot be written", "give a folder"),
    "eval without run": ({"mode": "eval"}, "has no checkpoint", "--mode=train first"),
    "a config value": ({"config.data.name": "digitz"}, "'digitz'", "Did you mean 'digits'"),
}

# The same with fields of the digits' config, on the eight devices of the tests.
BAD_VALUES = {
    "batch": ({"train.batch_size": 15}, "batch_size is 15", "multiple of 8", "such as 16"),
    "eval batch": ({"eval.batch_size": 7}, "eval.batch_size is 7", "of the 8 devices"),
    "sample batch": ({"sample.batch_size": 7}, "sample.batch_size is 7", "of the 8 devices"),
    "accumulate": ({"train.accumulate": 5}, "batch_size is 128", "such as 160"),
    "vocab_size": ({"data.vocab_size": 17}, "data.vocab_size", "'digits' has no such field"),
    "vocab_size > 256": ({"data.name": "swirl", "data.vocab_size": 300}, "vocab_size is 300", "2 to 256"),
    "gammas": ({"model.schedule.gamma_min": 6.0}, "gamma_min is 6.0", "less than gamma_max, which is 5.0"),
    "unprepared": (
        {"data.name": "cifar10", "data.data_dir": "/nowhere"},
        "'cifar10' is not prepared",
        "tfds build cifar10 --data_dir=/nowhere",
    ),
    "no folder": ({"data.name": "folder", "data.data_dir": "/nowhere"}, "'/nowhere'", "exist"),
    "schedule": ({"model.schedule.name": "cubic"}, "'cubic'", "'learned_linear'"),
    "net": ({"model.net.name": "resnet"}, "'resnet'", "'unet', 'transformer', 'mlp'"),
    "heads": ({"model.net.heads": 3}, "net.width is 64", "multiple of"),
    "patch": ({"model.net.patch": 3}, "patch is 3", "height 8 and width 8"),
    "dropout": ({"model.net.dropout": 1.0}, "dropout is 1.0"),
    "fourier": ({"model.net.fourier": -1}, "fourier is -1", "0 or more"),
    "label": (
        {"data.name": "swirl", "model.net.name": "mlp", "model.condition": "label"},
        "no labels",
        "'none'",
    ),
    "optimizer": ({"optimizer.name": "adam"}, "'adam'", "Did you mean 'adamw'"),
    "decay": ({"optimizer.decay": "step"}, "'step'", "'constant', 'cosine'"),
    "parallel": ({"parallel": "pmpa"}, "'pmpa'", "Did you mean 'pmap'"),
    "augment": ({"data.augment": "flip,mirror"}, "'mirror'", "flip, rotate, channels"),
    "steps": ({"train.steps": 0}, "train.steps is 0", "1 or more"),
    "target": ({"eval.target_se": -1.0}, "target_se is -1.0", "0 (none)"),
    "passes": ({"eval.passes": 0}, "eval.passes is 0", "1 or more"),
    "samples": ({"sample.num": 0}, "sample.num is 0", "1 or more"),
    "estimators": ({"eval.estimators": "elbo,odd"}, "estimators is 'odd'", "Did you mean 'ode'"),
    "gaussian": (
        {"model.parameterisation": "wiener", "model.schedule.name": "multivariate"},
        "config.model.parameterisation.name is 'wiener'",
        "such as 'eps', 'x', 'v'",
    ),
    "depths": ({"eval.depths": "1,x"}, "eval.depths", "'1,x'"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_are_one_line_and_exit_code_2(case, tmp_path, monkeypatch, capfd):
    flags, *texts = BAD_FLAGS[case]
    line, _ = command(**{"workdir": tmp_path, "cache": ""} | flags)
    monkeypatch.chdir(ROOT)
    assert cli(*line[3:]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for text in texts:
        assert text in error


@pytest.mark.parametrize("text", ['{"seed": ', "[1]"])
def test_a_damaged_config_of_a_workdir_is_told_of(text, tmp_path):
    """In a separate process, as users run it."""
    (tmp_path / "config.json").write_text(text)
    done = run(tmp_path, **only())
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "config.json' is damaged" in done.stderr and "another --workdir" in done.stderr


@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused_before_training(case, tmp_path):
    changes, *texts = BAD_VALUES[case]
    assert jax.device_count() == 8
    with pytest.raises(UserError) as error:
        train.run(make_config(changes, "configs/digits.py"), tmp_path)
    for text in texts:
        assert text in one_line(error.value)


BAD_EVALS = {
    "estimator": ({"estimators": "elbo,odd"}, "'odd'", "Did you mean 'ode'"),
    "depths": ({"depths": "1,x"}, "depths is '1,x'", "such as '1,10,100'"),
    "paths": ({"chain.samples": 0}, "chain.samples is 0", "1 or more"),
    "nodes": ({"ode.nodes": 6}, "ode.nodes is 6", "multiple of 4"),
    "tolerance": ({"ode.tolerance": 0.0}, "ode.tolerance is 0.0", "such as 1e-5"),
}


@pytest.mark.parametrize("case", BAD_EVALS)
def test_bad_values_are_refused_before_evaluation(case):
    changes, *texts = BAD_EVALS[case]
    config = make_config({f"eval.{name}": value for name, value in changes.items()}, "configs/digits.py")
    with pytest.raises(UserError) as error:
        estimator.check(config)
    for text in texts:
        assert text in one_line(error.value)


def test_workdir_of_no_run():
    with pytest.raises(UserError, match="does not exist.*--mode=train first"):
        main.check_workdir(main.pathlib.Path("/nowhere"), "eval")


def test_help_shows_the_commands():
    done = run("unused", help="true", **only())
    assert done.returncode == 0, done.stderr
    for text in (
        "--config=configs/digits.py",
        "--mode",
        "--workdir",
        "config.model.schedule.name",
        "gamma_min = -13.3",
        "train.steps",
    ):
        assert text in done.stdout
