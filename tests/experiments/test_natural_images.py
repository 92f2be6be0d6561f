"""Equal minutes for every variant, and codecs beside them."""

import io
import json

import jax
import numpy as np
from PIL import Image
import pytest
from scipy import fft, stats

from conftest import TINY
from experiments import budget, codecs, natural_images, plan
from experiments.budget import Cost
from model_helpers import save_run, tiny_config
from record_helpers import read_csv
from sweep_helpers import study_here
from vdm import run as run_lib
from vdm.diffusion import stationary

pytestmark = pytest.mark.usefixtures("single")


# ---- codecs ----------------------------------------------------------------------------


def pictures(channels):
    """Seven random smooth pictures."""
    noise = np.random.default_rng(0).normal(size=(7, 12, 10, channels))
    return (128 + 40 * np.cumsum(0.3 * noise, axis=1)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_codecs_lose_nothing_and_their_files_are_counted(channels):
    images = pictures(channels)
    for name, encode in codecs.lossless().items():
        if name == "JPEG XL":
            import imagecodecs

            decode = lambda data: imagecodecs.jpegxl_decode(data).reshape(images[0].shape)
        else:
            mode = "L" if channels == 1 else "RGB"
            decode = lambda data: np.array(Image.open(io.BytesIO(data)).convert(mode)).reshape(
                images[0].shape
            )
        files = [encode(image) for image in images]
        for image, data in zip(images, files):
            np.testing.assert_array_equal(decode(data), image)
        rate, se = codecs.bits_per_dim(images)[name]
        sizes = 8 * np.array([len(data) for data in files]) / (120 * channels)
        assert rate == pytest.approx(sizes.mean()) and se == pytest.approx(sizes.std(ddof=1) / 7**0.5)
    assert {"PNG", "WebP", "PNG, one sheet"} <= codecs.bits_per_dim(images).keys()


def test_a_sheet_has_every_picture():
    images = pictures(3)
    sheet = codecs.sheet(images)
    assert sheet.shape == (3 * 12, 3 * 10, 3)
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        found = sheet[12 * row : 12 * row + 12, 10 * column : 10 * column + 10]
        np.testing.assert_array_equal(found, image)
    assert not sheet[24:, 10:].any()


# ---- equal minutes ---------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.0, 20.0, 20.4, 21.3, 60.0])
def test_as_many_steps_as_the_time_allows(seconds):
    cost = Cost(start=20.0, step=0.5, operations=1.0)
    steps = cost.steps(seconds)
    assert steps >= 1 and (steps == 1 or cost.seconds(steps) <= seconds)
    assert cost.seconds(steps + 1) > seconds


def test_cost_of_a_step():
    """Of a network of wide layers, nearly all operations are the multiply-adds of its products: one for each
    number of a matrix and each picture forward, and two backward, but for the first layers' inputs."""
    fields = {"model.net.name": "mlp", "model.net.width": 512, "train.batch_size": 64}
    config = tiny_config("digits", **fields)
    start, step, operations = budget.measure(config)
    assert 0 < step < start
    params = jax.tree.leaves(run_lib.build(config).like.params["net"])
    products = 2 * 64 * 3 * sum(value.size for value in params if value.ndim > 1)
    assert 0.95 * products < operations < 1.15 * products


def test_a_study_gives_every_variant_the_same_minutes(tmp_path, monkeypatch):
    asked = []

    def measure(config):
        asked.append(config.model.net.width)
        return Cost(start=4.0, step=config.model.net.width / 16, operations=1e9)

    monkeypatch.setattr(budget, "measure", measure)
    tiny = [f"--{name}={TINY[name]}" for name in ("config.model.net.name", "config.model.net.depth")]
    grid = {"narrow": {"model.net.width": 16}, "wide": {"model.net.width": 32}}
    grid["none"] = {"model.net.width": 16, "train.steps": 1}
    flags = [*tiny, "--minutes=0.1", "--seeds=2", "--dry_run"]
    code, out, err = study_here(tmp_path, grid, *flags)
    assert code == 0, err
    lines = {line.split("--workdir=")[1].split()[0].split("/")[-1]: line for line in out.splitlines()}
    steps = {name: int(line.split("config.train.steps=")[1].split()[0]) for name, line in lines.items()}
    want = {"narrow": 3, "wide": 2, "none": 1}
    assert steps == {f"{name}-{seed}": want[name] for name in want for seed in range(2)}
    assert asked == [16, 32, 16]
    assert budget.read(tmp_path / "W")["wide"] == Cost(4.0, 2.0, 1e9)
    study_here(tmp_path, grid, *flags)
    assert len(asked) == 3, "what was measured is kept"
    code, _, err = study_here(tmp_path, grid, *flags, "--config.train.steps=5")
    assert code == 2 and "--config.train.steps cannot be set" in err


# ---- the study -------------------------------------------------------------------------


def test_the_study_writes_its_table_and_figure(tmp_path, monkeypatch):
    config = tiny_config("digits", **{"model.net.name": "mlp", "data.hold_out": 0.1})
    folder = save_run(tmp_path / "config-0", config)
    kept = {"config": {"start": 2.0, "step": 0.5, "operations": 1e12}}
    (tmp_path / "budget.json").write_text(json.dumps(kept))
    files = natural_images.results_of(tmp_path, {"config": [folder]})
    assert {"table.md", "table.csv", "natural_images.png"} <= {path.name for path in files}
    assert all(path.stat().st_size for path in files)
    (row,) = read_csv(tmp_path / "table.csv")
    assert float(row["s a step"]) == 0.5 and float(row["PFLOP"]) == pytest.approx(12 * 1e12 / 1e15)
    rates = json.loads((folder / "references.json").read_text())
    assert rates["PNG"][0] > 8, "a file of 64 bytes is mostly its own header"
    kept = json.loads((folder / "density.json").read_text())
    own = json.loads((folder / "eval.json").read_text())
    assert np.sum(kept["per_gamma"] * np.diff(kept["gamma"])) == pytest.approx(own["diffusion"], rel=1e-3)


def test_nats_of_the_gaussian_are_those_of_all_values_at_once():
    """By SciPy, with the whole covariance: each frequency's axes, turned back by SciPy's own transform."""
    random, shape = np.random.default_rng(0), (3, 4, 2)
    basis = np.linalg.qr(random.normal(size=(3, 4, 2, 2)))[0]
    of = stationary.Stationary(np.array([0.3, -0.2]), random.uniform(0.1, 2.0, shape), basis)
    axes = np.zeros((24, *shape))
    for number, (i, j, axis) in enumerate(np.ndindex(shape)):
        axes[number, i, j] = basis[i, j, :, axis] * np.sqrt(of.variance[i, j, axis])
    root = fft.idctn(axes, axes=(1, 2), norm="ortho").reshape(24, 24)
    mean = np.broadcast_to(of.mean, shape).ravel()
    x = random.normal(size=(5, *shape))
    want = -stats.multivariate_normal(mean, root.T @ root).logpdf(x.reshape(5, -1))
    np.testing.assert_allclose(natural_images.gaussian_nats(of, x), want)


def test_its_grid_sets_fields_that_there_are(tmp_path):
    args = ["--config.data.name=digits", "--config.data.hold_out=0.1"]
    trials = plan.make_trials(natural_images.grid, "configs/cifar10_laptop.py", args, tmp_path, 1)
    assert len({str(trial.config) for trial in trials}) == len(trials) == len(natural_images.VARIANTS)
    assert all(trial.config.data.hold_out == 0.1 for trial in trials)
    paper = next(trial.config for trial in trials if trial.variant == "paper")
    assert paper.model.net.name == "unet" and paper.optimizer.learning_rate == 2e-4
