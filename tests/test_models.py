"""Every model by its own config: trained, stopped and resumed, evaluated, sampled; and the ladder of them."""

import csv
import json
import signal

import jax
import numpy as np
import pytest

from conftest import TINY
from experiments import ladder
from test_resume import metrics, state
from vdm import main, model, run as run_lib, sample, train
from vdm.data import dataset as data_lib
from vdm.diffusion import encoder
from vdm.evaluation import estimators

MODELS = ("naive", "autoregressor", "vae", "mhvae", "latent")


def tiny(name, **changes):
    """The config of a model, with what TINY changes but for its network's kind."""
    config = main.load_config(f"configs/{name}.py")
    fields = {k.removeprefix("config."): v for k, v in TINY.items() if k.startswith("config.")}
    del fields["model.net.name"]
    fields |= {"eval.chain.samples": 2, "sample.num": 8, "sample.batch_size": 8, "train.sample_every": 0}
    if name == "mhvae":
        fields["model.timesteps"] = 3
    config.update_from_flattened_dict(fields | changes)
    return config


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Of the eight: a program for one is compiled in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        only = jax.local_devices()[:1]
        patch.setattr(jax, "devices", lambda *_: only)
        patch.setattr(jax, "device_count", lambda *_: 1)
        patch.setattr(jax, "local_device_count", lambda *_: 1)
        yield


@pytest.fixture(scope="module", params=MODELS)
def trained(request, tmp_path_factory):
    """(config, workdir) of a run that was stopped at step 6 and went on."""
    folder, handlers = tmp_path_factory.mktemp(request.param), {n: signal.getsignal(n) for n in (2, 15)}
    config = tiny(request.param)
    for steps in (6, 12):
        config.train.steps = steps
        (folder / "run").mkdir(exist_ok=True)
        train.run(config, folder / "run")
    (folder / "whole").mkdir()
    train.run(config, folder / "whole")
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return config, folder / "run"


@pytest.mark.parametrize("name", (*MODELS, "digits"))
def test_what_is_known_ahead_is_what_comes(name):
    """Shapes and types, also whether these are weak, or the step would be compiled twice."""
    config = tiny(name)
    parts = run_lib.build(config)
    resident = data_lib.resident(parts.data.train, config)
    for like, found in (
        (parts.like, parts.init()),
        (data_lib.resident_like(parts.data.train, config), resident),
    ):
        types = (jax.tree.map(jax.typeof, tree) for tree in (like, found))
        seen = [jax.tree.map(lambda t: (t.shape, t.dtype, t.weak_type), tree) for tree in types]
        assert seen[0] == seen[1]


def test_resumed_it_is_the_run_that_was_never_stopped(trained):
    _, workdir = trained
    whole = workdir.with_name("whole")
    assert state(workdir) == state(whole)
    rows = [row for row in metrics(workdir) if row["step"] > 6]
    assert rows == [row for row in metrics(whole) if row["step"] > 6] and len(rows) == 4
    assert (workdir / "samples.png").read_bytes() == (whole / "samples.png").read_bytes()


def test_evaluated_and_sampled(trained, capsys):
    config, workdir = trained
    ended = json.loads((workdir / "eval.json").read_text())
    config.eval.estimators = "all"
    estimators.run(config, workdir)
    found = json.loads((workdir / "eval.json").read_text())
    assert found["bpd"] == pytest.approx(ended["bpd"], rel=1e-6)
    exact = config.model.name in ("naive", "autoregressor")
    assert found["estimator"].startswith("exact" if exact else "ELBO")
    assert f"total ({'exact' if exact else 'ELBO'})" in capsys.readouterr().out
    terms = [name for name in found if f"{name}_se_noise" in found and name != "bpd"]
    assert found["bpd"] == pytest.approx(sum(found[name] for name in terms), rel=1e-6)
    assert any("importance" in row["name"] for row in found.get("rows", [])) == (config.model.name in ("vae", "mhvae"))
    sample.run(config, workdir)
    with np.load(workdir / "samples.npz") as samples:
        assert samples["image"].shape == (8, 8, 8, 1) and samples["image"].max() <= 16


def test_a_row_of_the_ladder(trained, tmp_path, monkeypatch):
    """Its numbers are those of the run, and what is drawn is what the figure shows."""
    config, workdir = trained
    monkeypatch.setattr(ladder, "TIMED", 16)
    monkeypatch.setattr(ladder, "GUIDANCE", 1e6)  # few steps have learned little of the label
    ladder.results_of(tmp_path, {"this_model": [workdir]})
    with (tmp_path / "ladder.csv").open() as file:
        (row,) = csv.DictReader(file)
    found = json.loads((workdir / "eval.json").read_text())
    assert float(row["bpd"]) == pytest.approx(found["bpd"]) and row["model"] == "this model"
    this = run_lib.restore(config, workdir)
    assert int(row["parameters"]) == sum(np.size(value) for value in jax.tree.leaves(this.state.params))
    assert row["is"] == ("exact" if getattr(this.model, "exact", False) else "ELBO")
    assert float(row["seconds_per_sample"]) > 0 and (tmp_path / "ladder.png").stat().st_size > 10_000
    text = (tmp_path / "ladder.md").read_text()
    assert f"| this model | {found['bpd']:>8.4f} |" in text
    rows = ladder.draw(workdir)["rows"]
    more = {"naive": "given the upper half", "latent": "guided, w = 1e+06"}.get(config.model.name)
    assert list(rows) == ["", *filter(None, [more])]
    for name, pictures in rows.items():
        assert pictures.shape == (12, 8, 8, 1) and pictures.max() <= 16
        if name.startswith("given"):
            # By parameters that make much of what is given.
            draw = np.random.default_rng(0)
            params = jax.tree.map(lambda v: v + 0.3 * draw.normal(size=v.shape).astype(np.float32), this.state.ema)
            pictures = ladder.lower_halves(this._replace(state=this.state._replace(ema=params)))
            real = this.data.test.read(np.arange(12))["image"]
            given = np.where(np.arange(8)[:, None, None] < 4, encoder.scale(real, 17), 0.0)
            want = encoder.unscale(this.model.average(params, given, 1.0, None), 17)
            np.testing.assert_array_equal(pictures[:, :4], real[:, :4])
            np.testing.assert_allclose(pictures[:, 4:].astype(int), want[:, 4:], atol=1)
            assert np.ptp(pictures[:, 4:].astype(int), axis=0).max() > 3
        elif name:
            assert np.abs(pictures.astype(int) - rows[""]).max() > 3


def test_every_rung_is_a_model():
    data = run_lib.data_lib.load(tiny("vae"))
    built = {}
    for variant, fields in ladder.grid(None).items():
        fields = dict(fields)
        config = main.load_config(fields.pop("config")).lock()
        config.update_from_flattened_dict(fields)
        built[variant] = model.build(config, data.spec)
    assert len(built) == 10 and len({str(one) for one in built.values()}) == 10
    assert [type(one).__name__ for one in built.values()].count("MHVAE") == 4
    assert not built["MHVAE_I+II+III"].learned_prior and built["MHVAE_I+II"].learned_prior
