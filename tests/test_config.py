"""The config: defaults, refused fields, a change of component, and config files."""

import pytest

from conftest import ROOT, make_config
from vdm import config
from vdm.errors import UserError, one_line

FILES = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


def raw(**sections):
    """The default config with some fields set, as in a config file."""
    c = config.default()
    for name, fields in sections.items():
        c[name].update(fields)
    return c


# ---- complete ------------------------------------------------------------------------


def test_a_default_config_is_filled_in():
    found = config.complete(config.default())
    assert found.data.name == "digits" and found.model.name == "diffusion" and found.objective.name == "elbo"
    assert set(found.model.schedule) == {"name", "gamma_min", "gamma_max"}, "what a learned line reads"
    assert found.model.net.name == "unet" and found.model.net.attention == "middle"
    assert set(found.optimizer) == {
        "name", "learning_rate", "warmup", "decay", "weight_decay", "clip", "b1", "b2", "eps"
    }  # fmt: skip
    assert found.eval.chain.samples == 16
    assert config.complete(found) == found, "a complete config stays as it is"


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_configs_is_accepted(name):
    found = config.flat(make_config(file=f"configs/{name}"))
    given = config.flat(config.load(str(ROOT / "configs" / name)))
    by_name = {f"{field}.name" if f"{field}.name" in found else field: v for field, v in given.items()}
    assert found.items() >= by_name.items()


UNREAD = {
    "learn_ends of a fixed line": (
        raw(model={"schedule": {"name": "fixed_linear", "learn_ends": True}}),
        "config.model.schedule.learn_ends is set, but 'fixed_linear' has no such field",
        "accepted: name, gamma_max, gamma_min.",
    ),
    "times of a VAE": (
        raw(model={"name": "vae", "times": "iid", "net": {"name": "mlp"}}),
        "config.model.times is set, but 'vae' has no such field",
        "accepted: name, latent, net.",
    ),
    "sampler of a VAE": (
        raw(model={"name": "vae", "sampler": "ddim", "net": {"name": "mlp"}}),
        "config.model.sampler is set",
    ),
    "schedule of a VAE": (
        raw(model={"name": "vae", "schedule": {"gamma_min": -9.0}, "net": {"name": "mlp"}}),
        "config.model.schedule is set, but 'vae' has no such field",
    ),
    "vocab_size of the digits": (
        raw(data={"name": "digits", "vocab_size": 17}),
        "config.data.vocab_size is set, but 'digits' has no such field",
    ),
    "context of one schedule for all values": (
        raw(model={"schedule": {"name": "cosine", "context": 4}}),
        "config.model.schedule.context is set, but 'cosine' has no such field",
    ),
    "patch of a U-Net": (
        raw(model={"net": {"name": "unet", "patch": 2}}),
        "config.model.net.patch is set, but 'unet' has no such field",
    ),
    "weighting of the ELBO": (
        raw(objective={"name": "elbo", "weighting": "edm"}),
        "config.objective.weighting is set, but 'elbo' has no such field",
    ),
    "a typo": (raw(model={"timestep": 3}), "config.model.timestep", "Did you mean 'timesteps'?"),
    "a typo of a run's field": (raw(train={"stepz": 3}), "config.train.stepz", "Did you mean 'steps'?"),
    "a typo of a section": (
        config.default().to_dict() | {"evaluation": {"passes": 3}},
        "config.evaluation is set",
        "accepted: codec, data, eval, loggers, model",
    ),
    "a typo of a component": (
        raw(model={"schedule": {"name": "cosin"}}),
        "config.model.schedule.name is 'cosin'",
        "Did you mean 'cosine'?",
    ),
    "a misspelt source": (raw(data={"name": "swrl", "vocab_size": 9}), "'swrl'", "Did you mean 'swirl'?"),
    "a type": ({"train": {"steps": "many"}}, "config.train.steps is 'many'", "of type int"),
    "a type of a component": (
        raw(model={"schedule": {"gamma_min": "low"}}),
        "config.model.schedule.gamma_min is 'low'",
        "of type float",
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_read_is_refused_in_one_line(case):
    given, *texts = UNREAD[case]
    with pytest.raises(UserError) as error:
        config.complete(given)
    for text in texts:
        assert text in one_line(error.value), one_line(error.value)


def test_an_integer_is_a_number():
    found = config.complete(raw(model={"schedule": {"gamma_min": -9}}))
    assert found.model.schedule.gamma_min == -9.0 and isinstance(found.model.schedule.gamma_min, float)


def test_a_change_of_component_keeps_the_fields_that_the_new_one_reads():
    given = raw(
        model={"schedule": {"name": "learned_net", "gamma_min": -9.0, "learn_ends": True, "hidden": 8}}
    )
    names = {"model.schedule.name": "piecewise"}
    found = config.complete(given, names).model.schedule
    assert found.to_dict() == {
        "name": "piecewise", "gamma_min": -9.0, "gamma_max": 5.0, "learn_ends": True, "parts": 20
    }  # fmt: skip
    found = config.complete(given, {"model.schedule.name": "cosine"}).model.schedule
    assert found.to_dict() == {"name": "cosine", "gamma_min": -9.0, "gamma_max": 5.0}
    with pytest.raises(UserError, match="hidden is set, but 'cosine' has no such field"):
        given.model.schedule.name = "cosine"
        config.complete(given)
    given.model.schedule.name = "learned_net"
    # Fields of other sections stay as they are, and are refused there.
    given.model.net.update({"name": "unet", "patch": 2})
    with pytest.raises(UserError, match="patch"):
        config.complete(given, names)


def test_another_model_drops_what_it_does_not_read_below_it_too():
    digits = config.load(str(ROOT / "configs" / "digits.py"))
    found = config.complete(digits, {"model.name": "vae", "model.net.name": "mlp"})
    assert found.model.to_dict() == {
        "name": "vae",
        "latent": 16,
        "net": {"name": "mlp", "depth": 4, "width": 64, "dropout": 0.15, "dtype": "float32"},
    }
    with pytest.raises(UserError, match="config.model.net.name is 'transformer'; accepted: 'mlp'"):
        config.complete(digits, {"model.name": "vae"})


# ---- files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("", "AttributeError"),
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_fails_is_one_line(code, text, tmp_path):
    path = tmp_path / "my_config.py"
    path.write_text(code)
    with pytest.raises(UserError) as error:
        config.load(str(path))
    assert str(path) in str(error.value) and text in str(error.value) and "get_config()" in str(error.value)


def test_a_file_can_take_an_argument(tmp_path):
    path = tmp_path / "my_config.py"
    path.write_text("from vdm import config\n\ndef get_config(seed='1'):\n    return {'seed': int(seed)}\n")
    assert config.load(str(path)) == {"seed": 1} and config.load(f"{path}:5") == {"seed": 5}


def test_a_missing_file_suggests_the_nearest(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="configs/digit.py.*Did you mean 'configs/digits.py'"):
        config.load("configs/digit.py")


def test_described_with_every_component_and_field():
    text = config.describe()
    for part in ("config.model.schedule.name", "learned_net: ", "hidden = 1024", "config.objective.name",
                 "weighting = 'sigmoid'", "config.data.name", "adamw: learning_rate = 0.0002"):  # fmt: skip
        assert part in text, part
