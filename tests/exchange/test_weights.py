"""A model exported to safetensors and imported again has the same bits; bad folders are refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import cli, state
from export_helpers import FEW, exported
from vdm import run as run_lib
from vdm.errors import UserError
from vdm.exchange import exporting, weights

pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture(scope="module")
def run(single, tmp_path_factory):
    """(config, workdir, folder) of a run and its export."""
    return exported(tmp_path_factory.mktemp("export"), FEW)


def test_the_folder_is_what_hubs_expect(run):
    config, workdir, folder = run
    assert sorted(path.name for path in folder.iterdir()) == sorted(weights.FILES)
    found = load_file(folder / "model.safetensors")
    ema = run_lib.restore(config, workdir).state.ema
    assert sum(value.size for value in found.values()) == sum(v.size for v in jax.tree.leaves(ema))
    np.testing.assert_array_equal(
        found["net.params.out.kernel"], np.asarray(ema["net"]["params"]["out"]["kernel"])
    )
    about = json.loads((folder / "config.json").read_text())
    assert about["model_type"] == "vdm" and about["step"] == 4
    assert about["data_set"] == json.loads((workdir / "data.json").read_text())
    ended, card = json.loads((workdir / "eval.json").read_text()), (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vdm\n")
    for text in (
        f"**{ended['bpd']:.4f} ± {ended['bpd_se']:.4f} bits/dim**",
        ended["data"],
        "4 steps of 16 images",
    ):
        assert text in card, card


def test_the_card_has_the_command_without_the_paths_of_a_machine(tmp_path):
    assert exporting.started(tmp_path) == ""  # a run without a record
    paths = ["--workdir", "/w", "--config.data.data_dir=/d", "--config.data.data_dir", "/d", "--cache=/c"]
    about = {"devices": "1 × cpu", "processor": "P avx2", "cores": 2}

    def rows(*command):
        entries = [{"command": list(command)} | about, {"command": ["resumed"]}]
        (tmp_path / "provenance.json").write_text(json.dumps(entries))
        return exporting.started(tmp_path).splitlines()

    devices = "| devices | 1 × cpu, P avx2, 2 cores |"
    line = "python -m vdm.main --config=configs/digits.py '--config.data.name=a b'"
    line += " --config.data.data_dir=PATH --workdir=W"
    given = ["--config=configs/digits.py", *paths, "--config.data.name", "a b"]
    assert rows("/here/vdm/main.py", *given) == [f"| command | `{line}` |", devices]
    own = "| command | `python -m vdm.main --config=mine.py --workdir=W` |"
    assert rows("main.py", "--config=/here/mine.py")[0] == own
    assert rows("a_script.py") == [devices]


@pytest.mark.slow
def test_imported_it_evaluates_to_the_same_bits(run, tmp_path):
    _, workdir, folder = run
    assert cli("--cache=", "--mode=import", f"--input={folder}", f"--workdir={tmp_path / 'W'}") == 0
    for path in (workdir, tmp_path / "W"):
        assert cli("--cache=", "--mode=eval", f"--workdir={path}") == 0
    images = [(path / "eval_images.csv").read_bytes() for path in (workdir, tmp_path / "W")]
    assert images[0] == images[1]
    found, ended = state(tmp_path / "W", 0), state(workdir, 4)
    for name, value in ended.items():
        if "ema" in name:
            assert found[name] == found[name.replace("ema", "params")] == value, name


def test_the_card_of_one_image_has_no_error():
    found = {"bpd": 2.0, "bpd_se": None, "estimator": "ELBO", "images": 1, "passes": 3}
    assert "**2.0000 ± not known bits/dim**" in exporting._likelihood(found)


def test_parts_that_a_folder_lacks_are_left_out(run):
    """As a learned encoder, which keeps its initial parameters."""
    config, _, folder = run
    like = run_lib.build(config).like.params | {"empty": {}}  # as a schedule without parameters, not lacking
    more = like | {"encoder": {"kernel": np.zeros(3, np.float32)}}
    assert weights.read(folder, more, partly=True).keys() == like.keys()
    with pytest.raises(UserError, match="encoder.kernel is absent there and float32"):
        weights.read(folder, more)


def test_what_cannot_be_imported_or_exported_is_one_line(run, tmp_path, capfd):
    config, workdir, folder = run

    def refused(*args):
        capfd.readouterr()
        assert cli("--cache=", *args) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    broken = tmp_path / "broken"
    take = ("--mode=import", f"--input={broken}", f"--workdir={tmp_path / 'W'}")
    data = (folder / "model.safetensors").read_bytes()
    for damage, text in (
        (None, "which has no model.safetensors"),
        (data[:-5], "is damaged"),
        (data[:-5] + bytes(5 * [7]), "its sha256 differs; copy it again"),
        (b"x" + data[1:], "is damaged"),
    ):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder, broken)
        (broken / "model.safetensors").unlink()
        if damage is not None:
            (broken / "model.safetensors").write_bytes(damage)
        assert text in refused(*take)
    wider = (
        "--mode=import",
        f"--input={folder}",
        f"--workdir={tmp_path / 'W'}",
        "--config.model.net.width=24",
    )
    assert "is of another model than the config" in refused(*wider)
    assert "which has a run; give a new folder" in refused(
        "--mode=import", f"--input={folder}", f"--workdir={workdir}"
    )
    assert "which exists already; give a new folder" in refused(
        "--mode=export", f"--workdir={workdir}", f"--output={folder}"
    )
    assert "holds no run with a config" in refused(
        "--mode=import", f"--input={tmp_path}", f"--workdir={tmp_path / 'W'}"
    )
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "W" / "config.json").exists()


def test_a_folder_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch):
    config, workdir, _ = run

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        exporting.run(config, workdir, str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []
