"""The ladder: every rung is a model, and the table and figure show its runs."""

import json

import jax
import numpy as np
import pytest

from conftest import ROOT, make_config, slow
from experiments import ladder
from model_helpers import save_run, tiny_config
from record_helpers import read_csv
from vdm import commandline, config as config_lib, run as run_lib, workdir as workdir_lib
from vdm.contract import Ability
from vdm.data.dataset import Spec
from vdm.diffusion import process
from vdm.sweep import workdirs

pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture(scope="module", params=[slow("naive"), "latent"])
def workdir(request, tmp_path_factory):
    """A tiny run of a model that has an additional row of samples."""
    fields = {"model.net.depth": 1, "eval.images": 50}
    return save_run(tmp_path_factory.mktemp(request.param) / "run", tiny_config(request.param, **fields))


def test_a_row_of_the_ladder(workdir, tmp_path, monkeypatch):
    """Its numbers are those of the run, and the figure shows the samples that were drawn."""
    monkeypatch.setattr(ladder, "TIMED", 16)
    samples = ladder.draw_samples(workdir)
    monkeypatch.setattr(ladder, "draw_samples", lambda folder: samples)
    ladder.results_of(tmp_path, {"the_model": [workdir]})
    (row,) = read_csv(tmp_path / "ladder.csv")
    found = json.loads((workdir / "eval.json").read_text())
    assert float(row["bpd"]) == pytest.approx(found["bpd"]) and row["model"] == "the model"
    config = workdir_lib.read_config(workdir)
    run = run_lib.restore(config, workdir)
    assert int(row["parameters"]) == sum(np.size(value) for value in jax.tree.leaves(run.state.params))
    assert row["is"] == ("exact" if Ability.EXACT in run.model.abilities else "ELBO")
    assert float(row["seconds_per_sample"]) > 0 and (tmp_path / "ladder.png").stat().st_size > 10_000
    assert f"| the model | {found['bpd']:>8.4f} |" in (tmp_path / "ladder.md").read_text()

    text = ladder.table([ladder.row_of("m", [workdirs.read(workdir)], samples)], {"PNG": (5.87, 0.02)})
    cells = [cell.strip() for cell in text.splitlines()[3].split("|")[1:6]]
    assert cells == ["PNG", "5.8700", "", "0.0200", "file"]

    more = {"naive": "given the upper half", "latent": "guided, w = 2"}[config.model.name]
    assert list(samples.rows) == ["", more]
    for images in samples.rows.values():
        assert images.shape == (12, 8, 8, 1) and images.max() <= 16
    if config.model.name == "naive":
        check_lower_halves(run)
    else:
        assert np.abs(samples.rows[more].astype(int) - samples.rows[""]).max() > 3


def check_lower_halves(run):
    """The lower halves are the model's predictions from the upper halves. Perturbed parameters make them
    depend on what is given."""
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda v: v + 0.3 * random.normal(size=v.shape).astype(np.float32), run.state.ema)
    images = ladder.predict_lower_halves(run._replace(state=run.state._replace(ema=params)))
    real = run.data.test.read(np.arange(12))["image"]
    given = np.where(np.arange(8)[:, None, None] < 4, process.scale(real, 17), 0.0)
    want = process.unscale(run.model.average(params, given, 1.0, None), 17)
    np.testing.assert_array_equal(images[:, :4], real[:, :4])
    np.testing.assert_allclose(images[:, 4:].astype(int), want[:, 4:], atol=1)
    assert np.ptp(images[:, 4:].astype(int), axis=0).max() > 3


@pytest.mark.parametrize("name, shape, levels", [("digits", (8, 8, 1), 17), ("cifar10", (32, 32, 3), 256)])
def test_every_rung_is_a_model(name, shape, levels):
    built, configs = {}, {}
    for variant, fields in ladder.grid(make_config({"data.name": name})).items():
        fields = dict(fields)
        raw = config_lib.load(str(ROOT / fields.pop("config")))
        config = commandline.apply(raw, [f"--config.{name}={value}" for name, value in fields.items()])
        configs[variant] = config
        built[variant] = run_lib.build_model(config, Spec(shape, levels, 10))
    assert len(built) == 11 and len({str(one) for one in built.values()}) == 11
    assert type(built["VDM_encoder_learned"].encoder).__name__ == "Learned"
    assert [type(one).__name__ for one in built.values()].count("MHVAE") == 4
    assert not built["MHVAE_I+II+III"].learned_prior and built["MHVAE_I+II"].learned_prior
    networks = [type(built[name].net).__name__ for name in ("naive", "autoregressor", "VDM")]
    photographs = ["Pyramid", "PixelCNN", "Pyramid"]
    of_vectors = [name for name in built if name.startswith("MHVAE") or name in ("VAE", "latent_VDM")]
    widths = {(configs[name].model.net.width, configs[name].train.batch_size) for name in of_vectors}
    assert widths == {(512, 64) if levels == 256 else (256, 128)} and len(of_vectors) == 6
    assert networks == (photographs if levels == 256 else ["Transformer", "CausalTransformer", "Transformer"])


def test_mnist_has_the_rungs_of_the_digits():
    assert ladder.grid(make_config({"data.name": "mnist"})) == ladder.grid(make_config())
