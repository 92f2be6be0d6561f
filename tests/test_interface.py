"""The Python interface returns what the modes of the command write, and refuses bad input."""

import csv
import dataclasses
import json
import pickle
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import ROOT, TINY_FIELDS, cli, make_config, state
import vdm
from vdm import interface, likelihood, run as run_lib, train as train_lib
from vdm.data import source
from vdm.errors import Stopped, UserError
from vdm.runtime.randomness import Rng

pytestmark = pytest.mark.usefixtures("single")

FIELDS = TINY_FIELDS | {
    "train.steps": 4,
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.checkpoint_every": 2,
    "train.log_every": 2,
}
FIELDS |= {"model.schedule.name": "cosine", "eval.passes": 4}


@pytest.fixture(scope="module")
def workdir(single, tmp_path_factory):
    """A run that the interface trained, and that the command sampled, evaluated and exported to W/model."""
    path = tmp_path_factory.mktemp("interface") / "W"
    vdm.train_model(vdm.config_of(ROOT / "configs" / "digits.py", **FIELDS), path)
    for mode in (("--mode=sample",), ("--mode=eval",), ("--mode=export", f"--output={path / 'model'}")):
        assert cli("--cache=", f"--workdir={path}", *mode) == 0
    return path


@pytest.fixture(scope="module")
def model(workdir):
    return vdm.load(workdir)


@pytest.fixture(scope="module")
def digits():
    """All test images and their labels."""
    test = source.load(make_config(file="configs/digits.py").data).test
    found = test.read(np.arange(test.size))
    return found["image"], found["label"]


def column(path, name):
    """A column of a CSV file, as numbers."""
    with path.open() as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def test_a_workdir_and_its_export_are_the_same_model(workdir, model):
    other = vdm.load(str(workdir / "model"))
    assert jax.tree.all(jax.tree.map(np.array_equal, model.params, other.params))
    assert (model.spec, model.model, model.step) == (other.spec, other.model, other.step)
    assert model.step == 4 and model.spec.shape == (8, 8, 1)
    assert repr(model) == repr(other) and "'digits', uint8 [8, 8, 1], 17 levels; step 4>" in repr(model)
    ema = {name: value for name, value in state(workdir, 4).items() if "ema" in name}
    assert sorted(ema.values()) == sorted(np.asarray(v).tobytes() for v in jax.tree.leaves(other.params))


def test_an_export_is_loaded_where_its_images_are_not(workdir, model, tmp_path):
    """An export of an older version needs its images, because it does not describe the data set."""
    shutil.copytree(workdir / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    about = json.loads(path.read_text())
    about["data"] |= {"name": "cifar10", "data_dir": "/nowhere"}
    path.write_text(json.dumps(about))
    np.testing.assert_array_equal(vdm.load(tmp_path / "model").sample(4), model.sample(4))
    del about["data_set"]
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match="tfds build cifar10 --data_dir=/nowhere"):
        vdm.load(tmp_path / "model")


def test_samples_are_those_of_the_mode(workdir, model):
    with np.load(workdir / "samples.npz") as file:
        np.testing.assert_array_equal(model.sample(4), file["image"])
    other = model.sample(np.int64(3), seed=1)
    assert other.shape == (3, 8, 8, 1) and other.dtype == np.uint8 and other.max() < 17
    assert not np.array_equal(other, model.sample(3))


@pytest.mark.parametrize(("wrong", "error"), [("z_1 + 'x'", "TypeError"), ("z_1.shap", "AttributeError")])
def test_a_sampler_that_fails_is_named(wrong, error, workdir, tmp_path, monkeypatch, capfd):
    """Although it is compiled before the model is verified."""
    text = "from vdm.diffusion import sampler\nclass Bad(sampler.Ancestral):\n"
    text += f"    def sample(self, predict_x, gammas, z_1, keys):\n        return {wrong}\n"
    (tmp_path / f"fails_with_{error}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    bad = f"--config.model.sampler=fails_with_{error}:Bad"
    assert cli("--cache=", f"--workdir={workdir}", "--mode=sample", bad) == 2
    assert f"error: sampler Bad fails with {error}" in capfd.readouterr().err


def test_bits_per_dim_of_the_test_images_are_those_of_the_mode(workdir, model, digits):
    found = model.bits_per_dim(digits[0], passes=4)
    written = json.loads((workdir / "eval.json").read_text())
    assert written == written | found.json() and found.passes == 4
    np.testing.assert_array_equal(found.values["bpd"], column(workdir / "eval_images.csv", "elbo_Tinf"))
    assert f"total (ELBO)    {written['bpd']:>10.4f}" in str(found)
    assert sum(found.mean[name] for name in ("reconstruction", "prior", "diffusion")) == pytest.approx(
        found.mean["bpd"]
    )


def test_bits_per_dim_of_images_given(model, digits):
    """Two seeds and the mean of independent draws of the model itself agree within the noise."""
    images = digits[0][:6]
    one, other = (model.bits_per_dim(images, passes=200, seed=seed) for seed in (0, 1))
    assert one.images == 6 and not np.array_equal(one.values["bpd"], other.values["bpd"])
    noise = np.hypot(one.noise["bpd"], other.noise["bpd"])
    assert abs(one.mean["bpd"] - other.mean["bpd"]) < 4.0 * noise < 0.15 * one.mean["bpd"]
    batch = {"image": np.repeat(images, 500, axis=0), "label": np.zeros(3000, int)}
    draw = jax.jit(lambda rng: model.model.draw(model.params, rng, batch).terms)
    nats = sum(np.float64(v) for v in draw(Rng(jax.random.key(5), jnp.arange(3000), 3000)).values())
    by_hand = nats.reshape(6, 500) / (64 * np.log(2.0))
    error = np.hypot(noise, by_hand.std() / np.sqrt(3000))
    assert abs(by_hand.mean() - 0.5 * (one.mean["bpd"] + other.mean["bpd"])) < 4.0 * error
    alone = model.bits_per_dim(images[:1])
    assert alone.images == 1 and "nan" not in str(alone)


def test_a_second_call_compiles_nothing(workdir, digits, monkeypatch):
    model, traced = vdm.load(workdir), []
    for name in ("draw", "sample"):
        whole = getattr(type(model.model), name)
        counted = lambda *args, name=name, whole=whole, **rest: traced.append(name) or whole(*args, **rest)
        monkeypatch.setattr(type(model.model), name, counted)
    images = lambda seed: digits[0][seed : seed + 6]
    call = lambda seed: (model.sample(4, seed=seed), model.bits_per_dim(images(seed), seed=seed))
    first, count = call(0), len(traced)
    second = call(1)
    assert {"draw", "sample"} == set(traced) and len(traced) == count
    assert not np.array_equal(first[0], second[0]) and first[1].mean != second[1].mean
    assert np.array_equal(first[0], call(0)[0])
    assert len(pickle.dumps(model)) > 0


def test_gamma_is_the_schedule(model):
    """α = cos(π s/2), with s linear in t, from γ(0) = −9 to γ(1) = 5."""
    t = np.linspace(0.0, 1.0, 7)
    s = 2.0 / np.pi * np.arctan(np.exp([-4.5, 2.5]))
    signal_to_noise = 1.0 / np.tan(0.5 * np.pi * (s[0] + (s[1] - s[0]) * t)) ** 2
    np.testing.assert_allclose(model.gamma(t), -np.log(signal_to_noise), atol=1e-4)
    assert model.gamma(0.5).shape == () and model.gamma([[0, 1]]).shape == (1, 2)


def test_density_adds_up_to_the_diffusion_term(workdir, model, digits):
    found = model.density(digits[0], passes=4)
    np.testing.assert_array_equal(found.per_gamma, column(workdir / "profile.csv", "per_gamma"))
    np.testing.assert_array_equal(found.se, column(workdir / "profile.csv", "per_gamma_se"))
    np.testing.assert_allclose(found.edges, model.gamma(np.linspace(0.0, 1.0, len(found.edges))))
    diffusion = json.loads((workdir / "eval.json").read_text())["diffusion"]
    assert np.sum(found.per_gamma * np.diff(found.edges)) == pytest.approx(diffusion, rel=1e-6)
    # The density of a chain is that of the same network in continuous time.
    chain = dataclasses.replace(model, model=model.model.at_depth(3))
    np.testing.assert_array_equal(chain.density(digits[0], passes=4).per_gamma, found.per_gamma)


def test_labels_are_those_of_the_images(digits):
    """The ELBO of a label-conditional model depends on the labels; images without labels are refused."""
    config = make_config(FIELDS | {"model.condition": "label"}, "configs/digits.py")
    parts = run_lib.build(config)
    params = jax.tree.map(lambda v: v + 0.1 * jax.random.normal(jax.random.key(1), v.shape), parts.init().ema)
    model = interface.Trained(config, parts.data.spec, params, parts.model, 0)
    images, labels = digits[0][:20], digits[1][:20]
    right, wrong = model.bits_per_dim(images, labels), model.bits_per_dim(images, (labels + 1) % 10)
    assert right.given_label and not np.array_equal(right.values["bpd"], wrong.values["bpd"])
    with pytest.raises(UserError, match="labels are not given, .* give one of 0 to 9 for each image"):
        model.bits_per_dim(images)


IMAGES = np.zeros((3, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    "call, text",
    [
        (
            lambda m: m.bits_per_dim(IMAGES / 2),
            r"float64 \[3, 8, 8, 1\]; .*: uint8 \[images, 8, 8, 1\]",
        ),
        (lambda m: m.bits_per_dim(IMAGES.astype(int)), r"are int64 \[3, 8, 8, 1\]; accepted"),
        (lambda m: m.bits_per_dim(IMAGES[0]), r"are uint8 \[8, 8, 1\]; accepted"),
        (lambda m: m.density(IMAGES[:, :7]), r"are uint8 \[3, 7, 8, 1\]; accepted"),
        (lambda m: m.bits_per_dim(IMAGES[:0]), r"are uint8 \[0, 8, 8, 1\]; .* 1 or more"),
        (lambda m: m.bits_per_dim(IMAGES + 17), "values up to 17; accepted by this model: levels 0 to 16"),
        (lambda m: m.bits_per_dim(IMAGES, labels=[0, 1]), r"labels of 3 images are int64 \[2\]; accepted"),
        (lambda m: m.bits_per_dim(IMAGES, labels=[0, 1, 10]), "labels are from 0 to 10; .* 0 to 9"),
        (lambda m: m.bits_per_dim(IMAGES, labels=[0, 1, -1]), "labels are from -1 to 1; .* 0 to 9"),
        (lambda m: m.bits_per_dim(IMAGES, labels=[0.0, 1.0, 2.0]), "are float64"),
        (lambda m: m.bits_per_dim(IMAGES, passes=0), "passes is 0; accepted: a whole number of 1 or more"),
        (lambda m: m.sample(0), "count is 0; accepted: a whole number of 1"),
        (lambda m: m.sample(2.0), "count is 2.0; accepted: a whole number of 1"),
        (lambda m: m.sample(2, seed=-1), "seed is -1; accepted: a whole number of 0"),
        (lambda m: m.gamma(1.5), "t is 1.5; accepted: numbers from 0 to 1"),
        (lambda m: m.gamma(np.nan), "t is nan; accepted: numbers from 0 to 1"),
        (lambda m: m.gamma("0"), "t is '0'; accepted: numbers from 0 to 1"),
        (lambda m: vdm.load("/nowhere"), "there is no folder '/nowhere'; give one"),
        (lambda m: vdm.load(ROOT), "holds no model; give the workdir of a run"),
        (lambda m: vdm.config_of("digits.py"), "'digits.py', which does not exist"),
        (lambda m: vdm.config_of({}, train__stepz=3), "config.train.stepz .* Did you mean 'steps'"),
        (
            lambda m: vdm.config_of({}, train__steps="many"),
            "config.train.steps is 'many'; accepted: a whole number",
        ),
        (lambda m: vdm.train_model({"train": {"steps": 0}}, "/dev/null/x"), "'/dev/null/x', which cannot"),
    ],
)
def test_bad_input_is_one_line(model, call, text):
    with pytest.raises(UserError, match=text) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_field_of_the_config_is_set_as_it_is_loaded(workdir, model):
    faster = vdm.load(workdir, model__sample_steps=1)
    assert faster.config.model.sample_steps == 1 and model.config.model.sample_steps == 3
    assert not np.array_equal(faster.sample(4), model.sample(4))
    assert vdm.load(workdir / "model", model__sample_steps=1).config == faster.config
    with pytest.raises(UserError, match="started with another config: model.net.width was 16, is 24"):
        vdm.load(workdir, model__net__width=24)


@pytest.mark.slow
def test_a_model_without_gamma_says_so(digits):
    config = vdm.config_of({}, **{"model.name": "naive"})
    parts = run_lib.build(config)
    naive = interface.Trained(config, parts.data.spec, parts.init().ema, parts.model, 0)
    assert naive.bits_per_dim(digits[0][:3], passes=1).exact
    for call in (lambda: naive.gamma(0.5), lambda: naive.density(digits[0][:3])):
        with pytest.raises(UserError, match="config.model.name is 'naive', which has no γ"):
            call()


@pytest.mark.slow
def test_training_goes_on_where_it_was_and_leaves_signals_alone(workdir, tmp_path, capsys, caplog):
    before = signal.getsignal(signal.SIGINT)
    config = vdm.config_of(ROOT / "configs" / "digits.py", **FIELDS)
    with config.unlocked():
        config.train.steps = 2
    assert vdm.train_model(config, tmp_path / "new" / "W").step == 2
    config.train.steps = 4
    assert vdm.train_model(config, tmp_path / "new" / "W").step == 4
    assert "resuming at step 2 of 4" in capsys.readouterr().out
    assert state(tmp_path / "new" / "W", 4) == state(workdir, 4)
    assert vdm.train_model(config, tmp_path / "new" / "W").step == 4
    assert "finished, 4 of 4 steps were taken before" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before and not caplog.records
    config.seed = 1
    with pytest.raises(UserError, match="started with another config: seed was 0, is 1"):
        vdm.train_model(config, tmp_path / "new" / "W")


@pytest.mark.parametrize("code, kind", [(130, KeyboardInterrupt), (75, SystemExit)])
def test_asked_to_stop(tmp_path, monkeypatch, code, kind):
    def stopped(*_):
        raise Stopped(code)

    monkeypatch.setattr(train_lib, "run", stopped)
    with pytest.raises(kind) as error:
        vdm.train_model({}, tmp_path)
    assert kind is KeyboardInterrupt or error.value.code == code


def test_config_of_takes_a_file_or_what_it_gives():
    from configs import digits

    wanted = make_config({"train.steps": 300, "model.schedule.name": "cosine"}, "configs/digits.py")
    for given in (ROOT / "configs" / "digits.py", digits.get_config()):
        assert vdm.config_of(given, train__steps=300, model__schedule__name="cosine") == wanted
    assert vdm.config_of(wanted) == wanted


def test_the_package_has_the_names_and_imports_nothing_for_them():
    assert vdm.judge is likelihood.judge and vdm.load is interface.load
    assert {"load", "train_model", "config_of", "judge", "__version__"} <= set(dir(vdm))
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = vdm.laod
    line = "import sys, vdm; assert not {'jax', 'numpy', 'vdm.interface'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", line], cwd=ROOT, check=True)
