"""What a workdir stores: the config and the modules of custom components; workdirs of older versions."""

import copy
import json
import sys

from ml_collections import ConfigDict
import pytest

from conftest import make_config
from vdm import workdir as workdir_lib
from vdm.errors import UserError, one_line

DIGITS = "configs/digits.py"


def test_the_newest_checkpoint(tmp_path):
    assert workdir_lib.newest(tmp_path) is None
    for name in ("2", "10", "9", "12.orbax-checkpoint-tmp-3", "state"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert workdir_lib.newest(tmp_path) == 10


def test_written_and_read(tmp_path):
    config = make_config({"model.schedule.name": "learned_net", "model.schedule.hidden": 8}, DIGITS)
    workdir_lib.write_config(tmp_path, config)
    assert workdir_lib.read_config(tmp_path).to_dict() == config.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not the workdir of a run: it has no config.json"),
        ('{"seed": ', "is damaged .*another --workdir"),
        ("[1]", "is damaged .*no object.*another --workdir"),
    ],
)
def test_no_config_or_a_damaged_one_is_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        workdir_lib.read_config(tmp_path)


# ---- what may differ -----------------------------------------------------------------

HARMLESS = {
    "train.steps": 7, "train.keep": 5, "train.log_every": 3, "train.eval_every": 3,
    "train.checkpoint_every": 3, "train.sample_every": 3, "eval.passes": 3,
    "eval.ode.nodes": 8, "sample.num": 8, "model.sampler.name": "ddim", "model.sample_steps": 9,
    "model.net.dtype": "bfloat16", "model.net.remat": "block", "data.on_device_gib": 0.0,
    "parallel": "shard_map",
}  # fmt: skip


def test_what_changes_no_number_of_the_training_may_differ(tmp_path):
    workdir_lib.write_config(tmp_path, make_config(file=DIGITS))
    changed = make_config(HARMLESS, DIGITS)
    workdir_lib.check_config(tmp_path, changed)
    for name, value in HARMLESS.items():
        assert workdir_lib.flat(changed)[name] == value != workdir_lib.flat(make_config(file=DIGITS))[name]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": 5}, "seed was 0, is 5"),
        (
            {"train.batch_size": 64, "train.ema": 0.9},
            "train.batch_size was 128, is 64; train.ema was 0.999, is 0.9",
        ),
        ({"model.net.width": 32}, "model.net.width was 64, is 32"),
        ({"model.schedule.name": "cosine"}, "model.schedule.name was 'learned_linear', is 'cosine'"),
        ({"optimizer.name": "adamw"}, "optimizer.name was 'muon', is 'adamw'"),
        (
            {"model.schedule.name": "piecewise", "objective.name": "least_variance"},
            "model.schedule.parts was not there, is 20; objective.name was 'elbo', is 'least_variance'",
        ),
        ({"train.substeps": 5}, "train.substeps was 20, is 5"),
    ],
)
def test_what_changes_the_run_is_refused(changes, text, tmp_path):
    workdir_lib.write_config(tmp_path, make_config(file=DIGITS))
    with pytest.raises(UserError) as error:
        workdir_lib.check_config(tmp_path, make_config(changes, DIGITS))
    line = one_line(error.value)
    assert text in line and "Set these fields back, or give another --workdir." in line, line


def test_a_field_is_harmless_by_its_whole_name():
    """train.steps and everything below eval may differ; train.steps_more may not."""
    old, new = {"train": {"steps_more": 1}, "eval": {"x": 1}}, {"train": {"steps_more": 2}, "eval": {"x": 2}}
    assert workdir_lib.differences(old, new) == [("train.steps_more", 1, 2)]
    assert workdir_lib.differences({"a": 1}, {"b": 2}) == [("a", 1, None), ("b", None, 2)]


# ---- custom components ---------------------------------------------------------------

CODE = """
from vdm.diffusion.schedule import Schedule

class Line(Schedule):
    bend: float = 0.5

    def __call__(self, t):
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """(folder of the package my_package, workdir, config with the schedule my_package.lines:Line)."""
    folder, workdir = tmp_path / "code", tmp_path / "W"
    (folder / "my_package").mkdir(parents=True)
    workdir.mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "lines.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    yield folder, workdir, make_config({"model.schedule.name": "my_package.lines:Line"}, DIGITS)
    for name in ("my_package.lines", "my_package"):
        sys.modules.pop(name, None)


def test_its_module_is_kept_and_loaded_from_there(own, monkeypatch):
    folder, workdir, config = own
    workdir_lib.write_config(workdir, config)
    kept = workdir / "components" / "my_package.lines.py"
    assert kept.read_text() == CODE and [path.name for path in kept.parent.iterdir()] == [kept.name]
    for name in ("my_package.lines", "my_package"):
        sys.modules.pop(name)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    with pytest.raises(UserError, match="is code: read it, and to execute it, add --components=.*components"):
        workdir_lib.read_config(workdir)
    assert "my_package.lines" not in sys.modules
    workdir_lib.load_modules(kept.parent)
    found = workdir_lib.read_config(workdir)
    assert found.model.schedule.to_dict() == {
        "name": "my_package.lines:Line", "gamma_min": -9.0, "gamma_max": 5.0, "bend": 0.5
    }  # fmt: skip
    assert sys.modules["my_package.lines"].__file__ == str(kept)
    workdir_lib.check_config(workdir, found)


def test_a_module_that_is_kept_and_fails_is_one_line(own):
    _, workdir, config = own
    workdir_lib.write_config(workdir, config)
    (workdir / "components" / "my_package.lines.py").write_text("import no_such_module")
    with pytest.raises(UserError, match="lines.py' cannot be loaded: ModuleNotFoundError: .*no_such_module"):
        workdir_lib.load_modules(workdir / "components")


def test_code_beside_the_checkpoints_of_a_run_is_not_run(own, monkeypatch):
    """As when the command is run inside a workdir of unknown origin."""
    _, workdir, config = own
    workdir_lib.write_config(workdir, config)
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace("my_package.lines:Line", "stranger:Line"))
    (workdir / "stranger.py").write_text(f"open({str(workdir / 'it_ran')!r}, 'w')\n{CODE}")
    monkeypatch.syspath_prepend(workdir)
    with pytest.raises(UserError, match="'stranger:Line', whose module is not in the current"):
        workdir_lib.read_config(workdir)
    assert not (workdir / "it_ran").exists()


def test_a_folder_without_modules_is_refused(tmp_path):
    with pytest.raises(UserError, match="--components is .* which holds no module"):
        workdir_lib.load_modules(tmp_path)


def test_another_version_is_refused_before_a_field_that_differs(own):
    folder, workdir, config = own
    workdir_lib.write_config(workdir, config)
    (folder / "my_package" / "lines.py").write_text(CODE + "# changed")
    with pytest.raises(UserError, match="lines.py' has changed since .* was started .*; restore it"):
        workdir_lib.check_config(workdir, config)
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    with pytest.raises(UserError, match="has changed since"):
        workdir_lib.write_config(workdir, config)
    kept = workdir / "components" / "my_package.lines.py"
    assert kept.read_text() == CODE
    # Without a checkpoint, as the start was refused, the mended module replaces it.
    (workdir / "checkpoints" / "2").rmdir()
    workdir_lib.write_config(workdir, config)
    assert kept.read_text() == CODE + "# changed"


def test_built_in_components_are_not_kept(tmp_path):
    workdir_lib.write_config(tmp_path, make_config({"model.schedule.name": "vdm.diffusion.schedule:Cosine"}))
    assert not (tmp_path / "components").exists()


# ---- older versions ------------------------------------------------------------------

# The config of configs/digits.py in the version before components owned their fields.
OLD = {
    "data": {
        "augment": "", "data_dir": "", "image_size": 0, "name": "digits", "on_device_gib": 1.0,
        "vocab_size": 17,
    },
    "eval": {
        "batch_size": 120, "chain": {"samples": 16, "timesteps": 50}, "checkpoint": "newest",
        "depths": "1,2,5,10,20,50,100,200,500,1000", "estimators": "elbo", "images": 0, "max_passes": 1000,
        "ode": {"images": 48, "nodes": 128, "samples": 4, "tolerance": 1e-05}, "passes": 20,
        "passes_in_training": 2, "target_se": 0.0,
    },
    "model": {
        "condition": "none", "drop_label": 0.0, "guidance": 0.0, "latent": 16, "name": "diffusion",
        "net": {
            "attention": "middle", "depth": 4, "dropout": 0.15, "dtype": "float32", "fourier": 0, "heads": 2,
            "highest": 0.0, "name": "transformer", "patch": 2, "remat": "dots", "width": 64,
        },
        "parameterisation": "levels", "restrictions": "", "sample_steps": 250, "sampler": "ancestral",
        "schedule": {
            "context": 0, "gamma_max": 5.0, "gamma_min": -9.0, "learn_ends": False, "name": "learned_linear",
        },
        "times": "stratified", "timesteps": 0,
    },
    "optimizer": {
        "b1": 0.9, "b2": 0.99, "clip": 1.0, "decay": "cosine", "eps": 1e-08, "learning_rate": 0.006,
        "name": "muon", "warmup": 50, "weight_decay": 0.01,
    },
    "parallel": "pmap",
    "sample": {"batch_size": 64, "num": 64},
    "seed": 0,
    "train": {
        "accumulate": 1, "batch_size": 128, "checkpoint_every": 500, "ema": 0.999, "eval_every": 500,
        "keep": 2, "log_every": 100, "sample_every": 0, "steps": 2000, "substeps": 20,
    },
}  # fmt: skip


def old(tmp_path, schedule="learned_linear", context=0, **model):
    """A workdir of the older version."""
    found = copy.deepcopy(OLD)
    found["model"] |= model
    found["model"]["schedule"] |= {"name": schedule, "context": context}
    (tmp_path / "config.json").write_text(json.dumps(found))
    return tmp_path


def test_an_older_run_of_the_digits_is_a_run_of_the_digits(tmp_path):
    """No field that matters differs, so training continues with the same config file."""
    workdir, digits = old(tmp_path), make_config(file="configs/digits.py")
    workdir_lib.check_config(workdir, digits)
    found = workdir_lib.read_config(workdir)
    assert found.objective.name == "elbo" and "vocab_size" not in found.data and "latent" not in found.model
    assert workdir_lib.differences(found, digits) == []
    assert found.eval.passes_in_training == 2


@pytest.mark.parametrize(
    ("schedule", "context", "encoder", "name"),
    [
        ("multivariate", 4, {"name": "identity"}, "mulan"),
        ("multivariate", 0, {"name": "identity"}, "diffusion"),
        ("cosine", 0, {"name": "learned", "net": {"name": "mlp", "width": 32}}, "diffenc"),
        ("cosine", 0, {"name": "scaled"}, "diffenc"),
    ],
)
def test_an_older_method_is_a_model(schedule, context, encoder, name, tmp_path):
    """It was a field of the only model; parameterisation, times and sampler were plain names."""
    model = {"encoder": encoder, "times": "importance", "sampler": "dpm2m"}
    found = workdir_lib.read_config(old(tmp_path, schedule, context, **model)).model
    assert (found.name, found.schedule.name, found.parameterisation.name) == (name, schedule, "categorical")
    assert (found.times.name, found.sampler.name) == ("importance", "dpm2m")
    if name == "mulan":
        assert found.context == 4 and "context" not in found.schedule
    if name == "diffenc":
        assert found.encoder.name == encoder["name"]
        assert encoder["name"] == "scaled" or found.encoder.net.width == 32


def test_an_older_vae_has_no_schedule(tmp_path):
    workdir = old(tmp_path, name="vae", net=OLD["model"]["net"] | {"name": "mlp", "width": 256})
    found = workdir_lib.read_config(workdir)
    assert found.objective.name == "elbo"
    assert found.model.to_dict() == {
        "name": "vae",
        "latent": 16,
        "net": {"name": "mlp", "depth": 4, "width": 256, "dropout": 0.15, "dtype": "float32"},
    }


def test_a_newer_config_is_not_renamed(tmp_path):
    digits = make_config({"model.schedule.name": "piecewise"}, "configs/digits.py")
    (tmp_path / "config.json").write_text(json.dumps(digits.to_dict()))
    assert workdir_lib.read_config(tmp_path).objective.name == "elbo"
    assert isinstance(workdir_lib.read_config(tmp_path), ConfigDict)
