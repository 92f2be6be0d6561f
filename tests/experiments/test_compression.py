"""The study of compression: its grid, table and figure."""

import pytest

from conftest import make_config
from experiments import compression, ladder
from model_helpers import save_run, tiny_config
from record_helpers import read_csv

ROW = {
    "system": "VDM", "T": 10, "file": 3.9, "images": 3.8, "initial": 0.06, "header": 0.04, "bound": 3.79,
    "bound_se": 0.03, "above": 0.01, "above_se": 0.005, "compress": 0.02, "decompress": 0.03, "bytes": 1200,
    "parameters": 12345, "count": 40, "lanes": 8,
}  # fmt: skip
EXACT = {**ROW, "system": "naive_one", "T": None, "above": -0.001, "bound": 2.0}
OTHERS = {"PNG": (5.87, 0.02), "PNG, one sheet": (5.0, float("nan"))}


def test_the_grid_is_the_ladder_or_the_config_alone():
    config = make_config(file="configs/digits.py")
    rungs, every = compression.grid(config), ladder.grid(config)
    assert rungs == {name: fields for name, fields in every.items() if name in rungs}
    assert every.keys() - rungs == {"VDM_encoder_learned"}  # no codec
    assert compression.grid(make_config({"data.name": "swirl"}, "configs/swirl.py")) == {"VDM": {}}


@pytest.mark.slow
def test_a_run_is_compressed_and_compared_with_its_bound(tmp_path):
    fields = {"codec.images": 6, "codec.lanes": 2, "model.latent": 2}
    folder = save_run(tmp_path / "VAE-0", tiny_config("vae", **fields))
    paths = compression.results_of(tmp_path, {"VAE": [folder]})
    assert all(path.stat().st_size > 100 for path in paths)
    (row,) = read_csv(tmp_path / "compression.csv")
    number = {name: float(value or "nan") for name, value in row.items() if name != "system"}
    assert row["system"] == "VAE" and number["count"] == 6 and number["lanes"] == 2
    assert number["file"] == pytest.approx(number["images"] + number["initial"] + number["header"])
    assert abs(number["above"]) < 4 * number["above_se"] + 0.05


def test_the_table_says_what_a_file_has_and_how_it_compares():
    text = compression.table([ROW, EXACT], OTHERS)
    lines = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0] == [
        "VDM", "10", "3.9000", "3.8000", "0.0600", "0.0400", "3.7900", "+0.0100", "0.0050", "+0.26", "0.020",
        "0.030", "12,345",
    ]  # fmt: skip
    assert cells[1][:2] == ["naive one", ""] and cells[1][9] == "-0.05"
    assert [row[0] for row in cells[2:]] == list(OTHERS) and cells[2][2] == "5.8700"
    assert "first 40 test images, on 8 stacks" in text


def test_the_figure_is_written(tmp_path):
    rows = [ROW, {**ROW, "T": 100, "images": 2.0, "bound": 1.99}, EXACT]
    paths = compression.plot(tmp_path, rows, OTHERS)
    assert sorted(path.suffix for path in paths) == [".pdf", ".png"]
    assert all(path.stat().st_size > 1000 for path in paths)
