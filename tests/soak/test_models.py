"""Every model with its own config: trained, stopped and resumed, evaluated, sampled."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from conftest import TINY_FIELDS, make_config, metrics, state, undescribed
from vdm import run as run_lib, sample, train, workdir as workdir_lib
from vdm.data.batches import resident_arrays, resident_shapes
from vdm.evaluation import evaluate

MODELS = ("naive", "autoregressor", "vae", "mhvae", "latent")


def tiny(name):
    """The config of a model, with TINY_FIELDS as far as it has these fields, and its own kind of network."""
    fields = dict(TINY_FIELDS)
    del fields["model.net.name"]
    if name not in ("digits", "latent"):
        del fields["model.sample_steps"]
    fields |= {"eval.chain.samples": 2, "sample.num": 8, "sample.batch_size": 8, "train.sample_every": 0}
    fields |= {"train.checkpoint_every": 6, "train.substeps": 1}
    if name == "mhvae":
        fields["model.timesteps"] = 3
    return make_config(fields, f"configs/{name}.py")


pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture(scope="module", params=MODELS)
def trained(request, tmp_path_factory):
    """(config, workdir) of a run. The latent model's is resumed from step 6; whole/ is uninterrupted."""
    folder, handlers = tmp_path_factory.mktemp(request.param), {n: signal.getsignal(n) for n in (2, 15)}
    config, workdir = tiny(request.param), folder / "run"
    workdir.mkdir()
    train.run(config, workdir)
    if request.param == "latent":
        shutil.copytree(workdir, folder / "whole")
        shutil.rmtree(workdir / "checkpoints" / "12")
        for name in ("eval.json", "samples.png"):
            (workdir / name).unlink()
        train.run(config, workdir)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return config, workdir


@pytest.mark.parametrize("name", (*MODELS, "digits"))
def test_what_is_known_ahead_is_what_comes(name):
    """Shapes, types and weak types agree, or the step would be compiled twice."""
    config = tiny(name)
    parts = run_lib.build(config)
    train_split = parts.data.train
    for like, found in (
        (parts.like, parts.init()),
        (resident_shapes(train_split, config.data), resident_arrays(train_split, config.data)),
    ):
        types = (jax.tree.map(jax.typeof, tree) for tree in (like, found))
        ahead, then = (jax.tree.map(lambda t: (t.shape, t.dtype, t.weak_type), tree) for tree in types)
        assert ahead == then


@pytest.mark.parametrize("trained", ["latent"], indirect=True)
def test_resumed_it_is_the_run_that_was_never_stopped(trained):
    _, workdir = trained
    whole = workdir.with_name("whole")
    assert state(workdir) == state(whole)
    assert metrics(workdir) == metrics(whole)
    assert [row["step"] for row in metrics(whole) if row["split"] == "train"] == [3, 6, 9, 12]
    assert (workdir / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()


def test_evaluated_and_sampled(trained, capsys):
    config, workdir = trained
    ended = json.loads((workdir / "eval.json").read_text())
    config.eval.estimators = "all"
    evaluate.run(config, workdir)
    found = json.loads((workdir / "eval.json").read_text())
    assert found["bpd"] == pytest.approx(ended["bpd"], rel=1e-6)
    exact = config.model.name in ("naive", "autoregressor")
    assert found["estimator"].startswith("exact" if exact else "ELBO")
    assert f"total ({'exact' if exact else 'ELBO'})" in capsys.readouterr().out
    terms = [name for name in found if f"{name}_se_noise" in found and name != "bpd"]
    assert found["bpd"] == pytest.approx(sum(found[name] for name in terms), rel=1e-6)
    names = [row["name"] for row in found.get("rows", [])]
    for start, models in (
        ("importance-weighted", ("vae", "mhvae", "latent")),
        ("ODE of the latents", ("latent",)),
    ):
        assert any(name.startswith(start) for name in names) == (config.model.name in models), start
    sample.run(config, workdir)
    with np.load(workdir / "samples.npz") as samples:
        assert samples["image"].shape == (8, 8, 8, 1) and samples["image"].max() <= 16
    assert not undescribed(workdir, workdir_lib.FILES)
