"""Weights without their training images: what needs no images works, and the rest says how to get them."""

import json
import shutil

import numpy as np
import pytest

from conftest import cli, state
from export_helpers import FEW, exported
from vdm.data import fingerprint

pytestmark = pytest.mark.usefixtures("single")

# Its initial parameters are fitted to the training images, which importing must not require.
FIELDS = FEW | {"model.parameterisation.name": "wiener"}
# A data set that is not available, in place of the digits.
ELSEWHERE = {"name": "cifar10", "data_dir": "/nowhere"}


def change(folder, **changes):
    """Changes fields of the config.json in a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def samples(workdir):
    with np.load(workdir / "samples.npz") as file:
        return file["image"]


@pytest.fixture(scope="module")
def run(single, tmp_path_factory):
    """(workdir, folder) of a run and its export."""
    return exported(tmp_path_factory.mktemp("export"), FIELDS)[1:]


@pytest.fixture(scope="module")
def imported(run, tmp_path_factory):
    """(workdir, printed lines) of importing the export without its data set."""
    path = tmp_path_factory.mktemp("imported")
    shutil.copytree(run[1], path / "model")
    change(path / "model", data=json.loads((run[1] / "config.json").read_text())["data"] | ELSEWHERE)
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda *text, **_: said.append(" ".join(map(str, text))))
        assert cli("--cache=", "--mode=import", f"--input={path / 'model'}", f"--workdir={path / 'W'}") == 0
    return path / "W", said


def test_it_says_in_a_line_that_they_are_not_here(imported):
    workdir, said = imported
    (line,) = (text for text in said if "To evaluate or train, add --config.data.data_dir=PATH" in text)
    assert "the folder of 'cifar10', to that command: " in line
    assert "tfds build cifar10 --data_dir=/nowhere" in line and "\n" not in line


def test_it_is_the_same_model_and_knows_its_data(run, imported):
    found, ended = state(imported[0], 0), state(run[0], 4)
    for name, value in ended.items():
        if "ema" in name:
            assert found[name] == found[name.replace("ema", "params")] == value, name
    known = json.loads((imported[0] / "data.json").read_text())
    assert known == json.loads((run[0] / "data.json").read_text())
    assert known["spec"] == {"shape": [8, 8, 1], "vocab_size": 17, "classes": 10}
    assert known["test"].startswith("360 images, ")


def test_samples_are_those_of_the_run_where_it_was_trained(run, imported):
    assert cli("--cache=", "--mode=sample", f"--workdir={imported[0]}") == 0
    np.testing.assert_array_equal(samples(imported[0]), samples(run[0]))


def test_it_is_exported_and_imported_once_more(run, imported, tmp_path):
    assert cli("--cache=", "--mode=export", f"--workdir={imported[0]}", f"--output={tmp_path / 'model'}") == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (run[1], tmp_path / "model")]
    assert weights[0] == weights[1]
    assert "| test split | 360 images, " in (tmp_path / "model" / "README.md").read_text()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["data"]["name"] == "cifar10" and config["data"]["data_dir"] == ""
    for given in (tmp_path / "model", imported[0]):
        new = tmp_path / f"of_{given.name}"
        args = (f"--input={given}", f"--workdir={new}", "--config.data.data_dir=/nowhere")
        assert cli("--cache=", "--mode=import", *args) == 0
        assert (new / "data.json").read_text() == (run[0] / "data.json").read_text()


def test_the_codec_takes_given_images_there_and_back(imported, tmp_path):
    images = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "given.npz", image=images)
    workdir = f"--workdir={imported[0]}"
    there = ("--mode=compress", f"--input={tmp_path / 'given.npz'}", f"--output={tmp_path / 'f.vdm'}")
    back = ("--mode=decompress", f"--input={tmp_path / 'f.vdm'}", f"--output={tmp_path / 'back.npz'}")
    for mode in (there, back):
        assert cli("--cache=", workdir, *mode) == 0
    with np.load(tmp_path / "back.npz") as file:
        np.testing.assert_array_equal(file["image"], images)


@pytest.mark.parametrize(
    "mode",
    [
        ("--mode=eval",),
        ("--mode=train", "--config.train.steps=8"),
        ("--mode=compress", "--input=test", "--output=f.vdm"),
    ],
)
def test_what_needs_images_says_how_to_get_them(imported, capfd, mode):
    assert cli("--cache=", f"--workdir={imported[0]}", *mode) == 2
    error = capfd.readouterr().err
    assert "tfds build cifar10 --data_dir=/nowhere" in error and error.count("\n") == 1, error


def test_a_model_of_other_images_needs_them_at_once(imported, tmp_path, capfd):
    args = (f"--input={imported[0]}", f"--workdir={tmp_path / 'W'}", "--config.data.name=mnist")
    assert cli("--cache=", "--mode=import", *args) == 2
    assert "tfds build mnist" in capfd.readouterr().err


def test_an_export_of_an_older_version_needs_them_at_once(run, imported, tmp_path, capfd):
    folder = tmp_path / "model"
    shutil.copytree(run[1], folder)
    change(folder, data_set={})
    assert cli("--cache=", "--mode=import", f"--input={folder}", f"--workdir={tmp_path / 'W'}") == 0
    change(folder, data=json.loads((imported[0] / "config.json").read_text())["data"])
    assert cli("--cache=", "--mode=import", f"--input={folder}", f"--workdir={tmp_path / 'W2'}") == 2
    assert "tfds build cifar10" in capfd.readouterr().err


@pytest.mark.slow
def test_other_images_here_are_taken_and_named(run, tmp_path, capfd):
    """For example a model of a subset, if the whole data set is available."""
    folder = tmp_path / "model"
    shutil.copytree(run[1], folder)
    known = json.loads((folder / "config.json").read_text())["data_set"]
    change(folder, data_set=known | {"test": "20 images, 0123456789abcdef"})
    assert cli("--cache=", "--mode=import", f"--input={folder}", f"--workdir={tmp_path / 'W'}") == 0
    (line,) = (line for line in capfd.readouterr().out.splitlines() if "differ from those" in line)
    assert known["test"] in line and "20 images, 0123456789abcdef" in line
    assert cli("--cache=", "--mode=eval", f"--workdir={tmp_path / 'W'}") == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": [8, 8], "vocab_size": 17, "classes": 10},
        {"shape": [8, 8, 0], "vocab_size": 17, "classes": 10},
        {"shape": [8, 8, 1.0], "vocab_size": 17, "classes": 10},
        {"shape": "881", "vocab_size": 17, "classes": 10},
        {"shape": [8, 8, 1], "vocab_size": 257, "classes": 10},
        {"shape": [8, 8, 1], "vocab_size": 17, "classes": -1},
        {"shape": [8, 8, 1], "vocab_size": 17},
        {"shape": 8, "vocab_size": 17, "classes": 10},
        [8, 8, 1],
        None,
    ],
)
def test_a_damaged_spec_is_one_line(run, imported, tmp_path, capfd, damage):
    shutil.copytree(imported[0], tmp_path / "W")
    fingerprint.write(tmp_path / "W" / "data.json", {"spec": damage})
    folder = tmp_path / "model"
    shutil.copytree(run[1], folder)
    change(folder, data_set={"spec": damage})
    for args in (
        ("--mode=sample", f"--workdir={tmp_path / 'W'}"),
        ("--mode=import", f"--input={folder}", f"--workdir={tmp_path / 'W2'}"),
    ):
        capfd.readouterr()
        assert cli("--cache=", *args) == 2
        error = capfd.readouterr().err
        assert f"its spec is {damage!r}; accepted: " in error and error.count("\n") == 1, error
    assert not (tmp_path / "W2" / "config.json").exists()
