"""The study of natural images, and the codecs that it compares with."""

import io
import json

from matplotlib.figure import Figure
import numpy as np
from PIL import Image
import pytest

from experiments import codecs, natural_images
from model_helpers import save_run, tiny_config
from record_helpers import read_csv
from vdm import workdir as workdir_lib
from vdm.sweep import plan
from vdm.sweep.density import density

pytestmark = pytest.mark.usefixtures("single")


# ---- codecs ----------------------------------------------------------------------------


def smooth(channels):
    """Seven random smooth images."""
    noise = np.random.default_rng(0).normal(size=(7, 12, 10, channels))
    return (128 + 40 * np.cumsum(0.3 * noise, axis=1)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_codecs_lose_nothing_and_their_files_are_counted(channels):
    images = smooth(channels)
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


def test_a_sheet_has_every_image():
    images = smooth(3)
    sheet = codecs.sheet(images)
    assert sheet.shape == (3 * 12, 3 * 10, 3)
    for number, image in enumerate(images):
        row, column = divmod(number, 3)
        found = sheet[12 * row : 12 * row + 12, 10 * column : 10 * column + 10]
        np.testing.assert_array_equal(found, image)
    assert not sheet[24:, 10:].any()


@pytest.mark.parametrize("shape", [(7, 12, 10, 3), (40, 3, 5, 1)])
def test_a_sheet_is_counted_by_its_images(shape, monkeypatch):
    """The empty part of its last row does not count. If not all images fit, only those that do count."""
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for largest, count in ((8192, shape[0]), (24, (24 // shape[1]) * (24 // shape[2]))):
        monkeypatch.setattr(codecs, "LARGEST", largest)
        sheet = codecs.sheet(images[:count])
        assert max(sheet.shape) <= largest
        size = len(codecs.lossless()["PNG"](sheet))
        rate, error = codecs.bits_per_dim(images)["PNG, one sheet"]
        assert rate == pytest.approx(8 * size / images[:count].size) and np.isnan(error)


def test_each_rate_has_a_line_and_close_ones_share_a_label():
    axes = Figure().subplots()
    axes.set_ylim(3.0, 8.0)
    codecs.draw_lines(axes, {"PNG": (5.9, 0.1), "WebP": (4.71, 0.1), "Gaussian": (4.70, 0.1)})
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [4.70, 4.71, 5.9]
    assert [(text.get_text(), text.xy[1]) for text in axes.texts] == [("Gaussian; WebP", 4.71), ("PNG", 5.9)]


# ---- the study -------------------------------------------------------------------------


def test_the_study_writes_its_table_and_figure(tmp_path, monkeypatch):
    config = tiny_config("digits", **{"model.net.name": "mlp", "data.hold_out": 0.1})
    folder = save_run(tmp_path / "config-0", config)
    (tmp_path / "budget.json").write_text(json.dumps({"config": [2.0, 0.5, 1e12, "a CPU", "digest"]}))
    drawn = []
    monkeypatch.setattr(natural_images.look, "save", lambda figure, *args: drawn.append(figure) or [])
    files = natural_images.results_of(tmp_path, {"config": [folder]})
    assert all(path.stat().st_size for path in files)
    minutes, operations, gamma = drawn[0].axes
    for axes, x in ((minutes, (2.0 + 11 * 0.5) / 60), (operations, 12 * 1e12)):
        (line,) = (line for line in axes.lines if line.get_label() == "config")
        assert line.get_xdata()[-1] == pytest.approx(x) and line.get_ydata()[-1] == 3.0
    assert gamma.get_legend_handles_labels()[1] == ["config"]
    (row,) = read_csv(tmp_path / "table.csv")
    assert float(row["seconds a step"]) == 0.5 and float(row["PFLOP"]) == pytest.approx(12 * 1e12 / 1e15)
    table = (tmp_path / "table.md").read_text()
    assert "10% of the training images, held out" in table and "seconds a step ±" not in table
    assert "PNG, one sheet" in (tmp_path / "references.md").read_text()
    kept = json.loads((folder / "density.json").read_text())
    own = json.loads((folder / "eval.json").read_text())
    assert np.sum(kept["per_gamma"] * np.diff(kept["gamma"])) == pytest.approx(own["diffusion"], rel=1e-3)


@pytest.mark.slow
def test_the_density_of_a_chain_is_that_of_continuous_time(tmp_path):
    """A chain of two steps would have two jumps of γ."""
    folder = save_run(tmp_path / "config-0", tiny_config("digits", **{"model.net.name": "mlp"}))
    continuous = density(folder)
    config = workdir_lib.read_config(folder)
    config.model.timesteps = 2
    workdir_lib.write_config(folder, config)
    assert density(folder) == continuous


def test_its_grid_sets_fields_that_there_are(tmp_path):
    args = ["--config.data.name=digits", "--config.data.hold_out=0.1"]
    trials = plan.make_trials(natural_images.grid, "configs/cifar10_laptop.py", args, tmp_path, 1)
    assert len({str(trial.config) for trial in trials}) == len(trials) == len(natural_images.VARIANTS)
    assert all(trial.config.data.hold_out == 0.1 for trial in trials)
    paper = next(trial.config for trial in trials if trial.variant == "paper")
    assert paper.model.net.name == "unet" and paper.optimizer.learning_rate == 2e-4
