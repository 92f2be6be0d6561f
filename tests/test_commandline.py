"""The command line: --config.FIELD=VALUE in all its forms, and what it refuses."""

import pytest

from conftest import ROOT
from vdm import commandline, config
from vdm.errors import UserError, one_line


def apply(*args, file="configs/digits.py", drop_unread=False):
    return commandline.apply(config.load(str(ROOT / file)), args, drop_unread)


SPLITS = {
    "equals": (["--config=a.py", "--config.seed=1"], ("a.py", ["--config.seed=1"], [])),
    "spaces": (["--config", "a.py", "--config.seed", "1"], ("a.py", ["--config.seed=1"], [])),
    "one dash": (["-config=a.py", "-config.seed=1"], ("a.py", ["-config.seed=1"], [])),
    "flags around": (
        ["--workdir=W", "--config.seed=1", "--mode", "eval", "--config=a.py", "--cache="],
        ("a.py", ["--config.seed=1"], ["--workdir=W", "--mode", "eval", "--cache="]),
    ),
    "negative": (["--config.a.gamma_min", "-9.0"], ("", ["--config.a.gamma_min=-9.0"], [])),
    "bool alone": (["--config.a", "--config.b", "2"], ("", ["--config.a", "--config.b=2"], [])),
    "bool at the end": (["--noconfig.a", "--config.b"], ("", ["--noconfig.a", "--config.b"], [])),
    "an equals sign within": (["--config.a=b=c"], ("", ["--config.a=b=c"], [])),
    "empty": (["--config.data.augment="], ("", ["--config.data.augment="], [])),
    "no config": (["--workdir=W", "x"], ("", [], ["--workdir=W", "x"])),
    "like it": (["--configs=a.py", "--configurable"], ("", [], ["--configs=a.py", "--configurable"])),
}


@pytest.mark.parametrize("case", SPLITS)
def test_parted_from_the_other_flags(case):
    argv, expected = SPLITS[case]
    assert commandline.split(["vdm", *argv]) == expected


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        (["--config.train.steps=5"], {"train.steps": 5}),
        (["--config.optimizer.learning_rate=1e-3"], {"optimizer.learning_rate": 1e-3}),
        (["--config.optimizer.learning_rate=1"], {"optimizer.learning_rate": 1.0}),
        (["--config.model.schedule.gamma_min=-9"], {"model.schedule.gamma_min": -9.0}),
        (["--config.data.augment=flip,rotate"], {"data.augment": "flip,rotate"}),
        (["--config.data.augment="], {"data.augment": ""}),
        (["--config.seed=1", "--config.seed=2"], {"seed": 2}),
        (
            ["--config.model.schedule.hidden=8", "--config.model.schedule.name=learned_net"],
            {"model.schedule.hidden": 8, "model.schedule.name": "learned_net"},
        ),
        (["--config.model.parameterisation=v"], {"model.parameterisation.name": "v"}),
        (
            ["--config.model.net=mlp", "--config.model.net.width=32"],
            {"model.net.name": "mlp", "model.net.width": 32},
        ),
    ],
)
def test_fields_are_set_by_their_type(args, fields):
    found = config.flat(apply(*args))
    for name, value in fields.items():
        assert found[name] == value and type(found[name]) is type(value)


LEARNED = "--config.model.schedule.name=learned_net"
FIELD = "config.model.schedule.learn_ends"


@pytest.mark.parametrize(
    ("arg", "value"),
    [
        ("--{}", True),
        ("--{}=true", True),
        ("--{}=1", True),
        ("--{}=false", False),
        ("--{}=0", False),
        ("--no{}", False),
    ],
)
def test_bools(arg, value):
    assert apply(LEARNED, arg.format(FIELD)).model.schedule.learn_ends is value


def test_the_config_is_locked_and_complete():
    found = apply("--config.seed=3")
    expected = config.load(str(ROOT / "configs/digits.py"))
    expected.seed = 3
    assert found.is_locked and found.to_dict() == config.complete(expected).to_dict()


REFUSED = {
    "type": (["--config.train.steps=many"], "config.train.steps is 'many'; accepted: a whole number."),
    "float": (
        ["--config.optimizer.learning_rate=x"],
        "config.optimizer.learning_rate is 'x'; accepted: a number.",
    ),
    "bool": ([LEARNED, f"--{FIELD}=maybe"], "learn_ends is 'maybe'; accepted: true or false."),
    "field": (
        ["--config.train.stepz=3"],
        "config.train.stepz is set, but there is no",
        "Did you mean 'steps'?",
    ),
    "section": (["--config.optimiser.clip=1"], "config.optimiser is set", "Did you mean 'optimizer'?"),
    "a section set": (
        ["--config.eval.chain=50"],
        "config.eval.chain is a section",
        "its fields: ",
        "timesteps",
    ),
    "below a value": (["--config.seed.x=1"], "config.seed.x is set, but there is no such field"),
    "of another component": (
        ["--config.model.schedule.name=fixed_linear", f"--{FIELD}=true"],
        "learn_ends is set, but 'fixed_linear' has no such field; accepted: name, gamma_max, gamma_min.",
    ),
    "a component twice": (
        ["--config.model.schedule=cosine", "--config.model.schedule.name=sigmoid"],
        "--config.model.schedule and --config.model.schedule.name are both given; leave one of them out.",
    ),
    "misplaced": (
        ["--config.batch_size=3"],
        "config.batch_size is set",
        "Did you mean 'config.eval.batch_size'?",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    args, *texts = REFUSED[case]
    with pytest.raises(UserError) as error:
        apply(*args)
    for text in texts:
        assert text in one_line(error.value), one_line(error.value)


def test_a_config_of_an_older_version_may_have_fields_that_are_not_read():
    raw = {"model": {"schedule": {"name": "cosine", "learn_ends": True}}}
    assert "learn_ends" not in commandline.apply(raw, ["--config.seed=1"], drop_unread=True).model.schedule
    with pytest.raises(UserError, match="learn_ends"):
        commandline.apply(raw, ["--config.seed=1"])
    with pytest.raises(UserError, match="learn_ends"):
        commandline.apply(raw, [f"--{FIELD}=true"], drop_unread=True)
