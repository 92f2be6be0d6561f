"""Tables and comparisons of made-up runs, against NumPy."""

import math
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from experiments import compare
from record_helpers import line, read_csv, write_workdir
from vdm.errors import UserError
from vdm.sweep import differences, tables, workdirs


def cells_of(text):
    """The cells of each row of Markdown tables."""
    return [[c.strip() for c in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")]


def test_table_is_numpys(tmp_path):
    """Three seeds give the mean, its standard error and the mean of the runs' own errors; one seed has no
    spread. The terms are those of the runs, and the CSVs hold unrounded numbers."""
    values, errors = [2.0123456, 2.1, 2.3], [0.05, 0.06, 0.1]
    three = [
        write_workdir(tmp_path / f"a-{s}", [line(300, v, e)], s)
        for s, (v, e) in enumerate(zip(values, errors))
    ]
    one = write_workdir(tmp_path / "b-0", [line(100, 3.0, 0.2, terms=("rate", "prior"))])
    more = {"FID": {"a": (12.5, 0.25)}}
    text = tables.write_table({"a": three, "b": [one], "c": []}, tmp_path / "out", more)
    assert (tmp_path / "out" / "table.md").read_text() == text

    a, b = read_csv(tmp_path / "out" / "table.csv")
    se = np.std(values, ddof=1) / math.sqrt(3)
    want = {
        "bpd": np.mean(values), "bpd_se_seeds": se, "bpd_se_run": np.mean(errors), "FID": 12.5,
        "FID_se": 0.25, "diffusion": 0.9 * np.mean(values), "diffusion_se_seeds": 0.9 * se,
        "prior": 0.1 * np.mean(values), "prior_se_run": 0.1 * np.mean(errors), "seeds": 3, "seconds": 30,
    }  # fmt: skip
    for name, number in want.items():
        assert float(a[name]) == pytest.approx(number, rel=1e-12), name
    assert (a["step"], a["rate"]) == ("300", "")
    assert (b["step"], b["bpd_se_seeds"], b["FID"], b["diffusion"]) == ("100 of 300", "", "", "")
    assert float(b["rate"]) == pytest.approx(2.7)

    runs = read_csv(tmp_path / "out" / "table_runs.csv")
    assert [(row["variant"], row["seed"]) for row in runs] == [*(("a", s) for s in "012"), ("b", "0")]
    assert [float(row["bpd"]) for row in runs] == [*values, 3.0]
    assert [float(row["bpd_se_noise"]) for row in runs] == [e / 2 for e in (*errors, 0.2)]

    names, _, first, second = cells_of(text)
    assert names == [
        "variant", "bits/dim", "± over seeds", "± of one run", "FID", "FID ±", "diffusion", "prior",
        "rate", "seeds", "step", "seconds",
    ]  # fmt: skip
    assert first[1:6] == ["2.1374", f"{se:.4f}", "0.0700", "12.5000", "0.2500"]
    assert second[1:6] == ["3.0000", "–", "0.2000", "–", "–"]
    words = " ".join(text.split())
    assert "2 degrees of freedom" in words and "relative error of 50%" in words


def test_how_well_an_error_over_seeds_is_known():
    """The relative errors are those of many sets of normal values, and the widths hold 95% of their means."""
    assert "cannot be estimated from one seed" in tables.seeds_note([1])
    assert "1 degree of freedom and" in tables.seeds_note([2]) and "± 12.7 times" in tables.seeds_note([2])
    note = tables.seeds_note([3, 3, 5])
    assert "With 3 seeds it has 2 degrees" in note and "error of 50%" in note and "± 4.3 times" in note
    assert "With 5 seeds it has 4 degrees" in note and "error of 35%" in note and "± 2.8 times" in note
    values = np.random.default_rng(0).normal(size=(100_000, 3))
    se = values.std(axis=1, ddof=1) / math.sqrt(3)
    assert np.mean(np.abs(values.mean(axis=1)) < 4.3027 * se) == pytest.approx(0.95, abs=0.003)
    assert np.std(se**2) / np.mean(se**2) / 2 == pytest.approx(0.5, abs=0.01)  # the square's is twice as much


def test_a_mean_waits_for_every_seed(tmp_path):
    """If one seed has no evaluation yet, the mean is unknown, not the mean of the others."""
    runs = [write_workdir(tmp_path / "a-0", [line(100, 2.0)]), write_workdir(tmp_path / "a-1", [], seed=1)]
    tables.write_table({"a": runs}, tmp_path)
    (row,) = read_csv(tmp_path / "table.csv")
    assert (row["bpd"], row["step"]) == ("", "–")


# ---- compare ----------------------------------------------------------------------------


def test_difference_image_by_image(tmp_path):
    """The difference is paired by image, with an error far below the runs' own. It is unpaired if the images
    are of another evaluation, and unknown on other data."""
    random = np.random.default_rng(0)
    x = random.normal(2.0, 0.5, 4)
    y = x + random.normal(0.1, 0.01, 4)
    finals = [line(300, v.mean(), v.std(ddof=1) / 2) for v in (x, y)]
    first, other = (
        write_workdir(tmp_path / name, [], seed, final=final, images=values)
        for name, seed, final, values in (("x", 0, finals[0], x), ("y", 5, finals[1], y))
    )
    between = lambda one, other: differences.between([workdirs.read(one)], [workdirs.read(other)])
    found = between(other, first)
    assert found.how == "images" and found.freedom == 3
    np.testing.assert_allclose([found.mean, found.se], [np.mean(y - x), np.std(y - x, ddof=1) / 2])

    stale = write_workdir(tmp_path / "stale", [], final=line(300, 2.5, 0.3), images=y)
    found = between(stale, first)
    assert found.how == "unpaired"
    np.testing.assert_allclose([found.mean, found.se], [2.5 - x.mean(), math.hypot(0.3, finals[0]["bpd_se"])])
    np.testing.assert_allclose(
        [found.half, found.could_tell], np.array([1.959964, 2.801585]) * found.se, 1e-6
    )

    elsewhere = {"name": "mnist", "data_dir": ""}
    mnist = write_workdir(tmp_path / "mnist", [], final=finals[1], images=y, data=elsewhere)
    assert between(mnist, first).how == "other data" and np.isnan(between(mnist, first).mean)


def test_compare_shows_configs_numbers_and_errors(tmp_path, capsys):
    """It shows the fields that differ, those of eval last, both numbers and the figure; it refuses bad
    input."""
    first = write_workdir(tmp_path / "a", [line(300, 2.0, 0.03)], eval={"passes": 2}, optimizer={"clip": 1.0})
    fields = {"eval": {"passes": 9}, "optimizer": {"clip": 0.5}, "objective": {"name": "weighted"}}
    second = write_workdir(tmp_path / "b", [line(200, 2.5, 0.04)], **fields)
    compare.run([str(first), str(second)], tmp_path / "out")
    text = capsys.readouterr().out
    rows = cells_of(text)
    assert rows[2:7] == [
        ["objective.name", '"elbo"', '"weighted"'], ["objective.shift", "absent", "2.0"],
        ["objective.weighting", "absent", '"sigmoid"'], ["optimizer.clip", "1.0", "0.5"],
        ["(eval.passes)", "2", "9"],
    ]  # fmt: skip
    assert rows[-2][:5] == ["a", "2.0000", "–", "0.0300", ""]
    assert rows[-1][:6] == ["b", "2.5000", "–", "0.0400", "+0.5000", "0.0500"]
    assert rows[-1][6:] == ["+0.4020 to +0.5980", "0.1401", "unpaired", "1", "4", "2", "200 of 300"]
    names = {"compare.md", "compare.png", "compare.pdf", "compare.txt"}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "compare.md").read_text().startswith(text.split("\n\n\n")[0][:200])

    for folders, words in (
        ([], "no folder is given"),
        ([str(first)], "'.*a' is one run; give the workdirs of two or more"),
        ([str(first), str(first)], "is one run; give"),
        ([str(first), str(tmp_path / "none")], "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            compare.run(folders, tmp_path / "out")
    with pytest.raises(UserError, match="config.json' cannot be a folder"):
        compare.run([str(first), str(second)], first / "config.json")


@pytest.mark.parametrize(
    "module, args, code, words",
    [
        ("elbo_curves", ["--help"], 0, "Folder for the output"),
        ("compare", ["nowhere", "b", "--out=c"], 2, "error: 'nowhere' does not exist"),
    ],
)
def test_command_line(module, args, code, words):
    line = [sys.executable, "-m", f"experiments.{module}", *args]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
