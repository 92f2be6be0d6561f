"""Studies' tables, curves and comparisons of made-up runs, against NumPy."""

import csv
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from experiments import compare, elbo_curves, results, workdirs
from vdm.reporting import figures
from vdm.errors import UserError


def line(step, bpd, se=0.1, split="test", terms=("diffusion", "prior")):
    """A line of metrics.jsonl: nine tenths of the bits are the first term's; a second for 10 steps."""
    row = {"step": step, "split": split, "seconds": step / 10}
    for name, share in zip(("bpd", *terms), (1.0, 0.9, 0.1)):
        row |= {name: bpd * share}
        row |= {f"{name}_se": se * share, f"{name}_se_noise": se * share / 2} if split == "test" else {}
    return row | {"images": 4, "passes": 2}


def made(folder, lines, seed=0, steps=300, final=None, images=None, **fields):
    """A workdir with these lines; `final` as its eval.json, and eval_images.csv of `images`."""
    folder.mkdir(parents=True)
    data = {"name": "digits", "vocab_size": 17, "data_dir": "", "image_size": 0}
    config = {"seed": seed, "data": data, "train": {"steps": steps}, **fields}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    if final:
        (folder / "eval.json").write_text(json.dumps(final | {"depth": [{"bpd": 9.0}]}))
    if images is not None:
        with (folder / "eval_images.csv").open("w", newline="") as file:
            rows = [[i, value, value - 1.0] for i, value in enumerate(images)]
            csv.writer(file).writerows([["image", "ELBO, T → ∞", "ELBO, T → ∞ diffusion"], *rows])
    return folder


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- reading ----------------------------------------------------------------------------


def test_final_number_of_runs_at_every_stage(tmp_path):
    """eval.json where it is there, unless the run has gone on since; else the newest test line,
    also under a line that was cut off."""
    lines = [line(100, 3.0), line(150, 2.7, split="train"), line(200, 2.5)]
    at_200 = made(tmp_path / "going", lines)
    with (at_200 / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "split": "te')
    assert workdirs.read(at_200).final["bpd"] == 2.5 and workdirs.read(at_200).newest["step"] == 200
    done = made(tmp_path / "done", lines, steps=200, final=line(200, 2.4))
    assert workdirs.read(done).final["bpd"] == 2.4
    best = made(tmp_path / "best", lines, steps=200, final=line(100, 2.9))  # of a better checkpoint
    assert workdirs.read(best).final["bpd"] == 2.9
    longer = made(tmp_path / "longer", lines, steps=300, final=line(100, 2.9))
    assert workdirs.read(longer).final["bpd"] == 2.5
    fresh = workdirs.read(made(tmp_path / "fresh", []))
    assert fresh.final == {} and fresh.newest == {"step": 0}


def test_sweeps_are_taken_apart(tmp_path):
    """VARIANT-SEED become variants; a workdir is itself, whatever its name; other folders are none."""
    for name in ("lr-1e-3-0", "lr-1e-3-1", "wide-0"):
        made(tmp_path / "sweep" / name, [])
    made(tmp_path / "digits-7", [])
    (tmp_path / "sweep" / "curves").mkdir()
    found = workdirs.find([tmp_path / "sweep", tmp_path / "digits-7"])
    names = {label: [run.name for run in runs] for label, runs in found.items()}
    assert names == {
        "sweep/lr-1e-3": ["lr-1e-3-0", "lr-1e-3-1"],
        "sweep/wide": ["wide-0"],
        "digits-7": ["digits-7"],
    }
    assert list(workdirs.find([tmp_path / "sweep"])) == ["lr-1e-3", "wide"]


def test_folders_that_are_no_runs_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"seed"')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"epochs": 3}')
    for name, words in (
        ("none", "'.*none' does not exist; give"),
        ("empty", "'.*empty' is no run: it has no config.json"),
        ("other", "'.*other' is no run"),
        ("bad", "config.json' is damaged"),
    ):
        with pytest.raises(UserError, match=words):
            workdirs.find([tmp_path / name])
    a, b = made(tmp_path / "a", []), made(tmp_path / "b", [])
    with pytest.raises(UserError, match="'v' has one seed twice: .*a, .*b; give each seed once"):
        workdirs.read_variants({"v": [a, b]})
    with pytest.raises(UserError, match="no run to show"):
        workdirs.read_variants({"v": []})


# ---- tables -----------------------------------------------------------------------------


def test_table_is_numpys(tmp_path):
    """Over three seeds the mean and its standard error, beside the mean of the runs' own errors; one
    seed has no spread; terms are those that the runs have; CSVs hold the numbers unrounded."""
    values, errors = [2.0123456, 2.1, 2.3], [0.05, 0.06, 0.1]
    three = [
        made(tmp_path / f"a-{s}", [line(300, v, e)], s) for s, (v, e) in enumerate(zip(values, errors))
    ]
    one = made(tmp_path / "b-0", [line(100, 3.0, 0.2, terms=("rate", "prior"))])
    more = {"FID": {"a": (12.5, 0.25)}}
    text = results.table({"a": three, "b": [one], "c": []}, tmp_path / "out", "t", more)
    assert (tmp_path / "out" / "t.md").read_text() == text

    a, b = read_csv(tmp_path / "out" / "t.csv")
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

    runs = read_csv(tmp_path / "out" / "t_runs.csv")
    assert [(row["variant"], row["seed"]) for row in runs] == [*(("a", s) for s in "012"), ("b", "0")]
    assert [float(row["bpd"]) for row in runs] == [*values, 3.0]
    assert [float(row["bpd_se_noise"]) for row in runs] == [e / 2 for e in (*errors, 0.2)]

    header, _, first, second, *_ = text.splitlines()
    names, first, second = ([c.strip() for c in row.split("|")[1:-1]] for row in (header, first, second))
    assert names == [
        "variant", "bits/dim", "± over seeds", "± of one run", "FID", "FID ±", "diffusion", "prior",
        "rate", "seeds", "step", "seconds",
    ]  # fmt: skip
    assert first[1:6] == ["2.1374", f"{se:.4f}", "0.0700", "12.5000", "0.2500"]
    assert second[1:6] == ["3.0000", "–", "0.2000", "–", "–"]


def test_a_mean_waits_for_every_seed(tmp_path):
    """A seed that was not evaluated yet leaves the mean unknown, not to the others."""
    runs = [made(tmp_path / "a-0", [line(100, 2.0)]), made(tmp_path / "a-1", [], seed=1)]
    results.table({"a": runs}, tmp_path)
    (row,) = read_csv(tmp_path / "table.csv")
    assert (row["bpd"], row["step"]) == ("", "–")


# ---- curves -----------------------------------------------------------------------------


def test_seeds_are_brought_to_common_steps():
    """Steps 200 to 400 are all that both have; at 250 the first is interpolated, at 300 the second."""
    a = np.array([[100, 200, 300, 400], [10, 20, 30, 40], [4.0, 3.0, 2.0, 1.0]])
    b = np.array([[200, 250, 350, 900], [24, 30, 42, 99], [3.5, 3.0, 2.0, 1.0]])
    x, y = results.over_seeds([a, b])
    np.testing.assert_allclose(y[0], [3.0, 2.5, 2.0, 1.5, 1.0])
    np.testing.assert_allclose(y[1], [3.5, 3.0, 2.5, 2.0, np.interp(400, b[0], b[2])])
    np.testing.assert_allclose(x[:3], [22.0, 27.5, 33.0])
    assert results.over_seeds([a[:, :1], b])[1].shape == (2, 0)


@pytest.fixture
def drawn(monkeypatch):
    """The panels of the last figure, which is not written."""
    panels = []
    monkeypatch.setattr(figures, "save", lambda figure, _: panels.__setitem__(slice(None), figure.axes))
    return panels


def test_curves_show_means_bands_and_training(tmp_path, drawn):
    """Three seeds: mean ± s.e., of two their ends; a run that was not evaluated yet is shown by its
    training."""
    values = np.array([[3.0, 2.0], [3.2, 2.3], [3.1, 2.6]])
    seeds = [
        made(tmp_path / f"a-{s}", [line(100, u), line(300, v)], s) for s, (u, v) in enumerate(values)
    ]
    fresh = made(tmp_path / "fresh", [line(s, 3.5 - s / 100, split="train") for s in (50, 90)])
    files = results.curves({"three": seeds, "two": seeds[:2], "fresh": [fresh]}, tmp_path / "out")
    assert [file.name for file in files] == ["curves.png", "curves.pdf"]
    by_step, by_seconds, diffusion, prior = drawn
    assert (diffusion.get_title(), prior.get_title()) == (
        figures.TERMS["diffusion"][0],
        figures.TERMS["prior"][0],
    )
    three, two, training = by_step.lines
    np.testing.assert_allclose(three.get_xydata(), np.c_[[100, 300], values.mean(0)])
    np.testing.assert_allclose(two.get_ydata(), values[:2].mean(0))
    np.testing.assert_allclose(training.get_xydata(), [[50, 3.0], [90, 2.6]])
    np.testing.assert_allclose(by_seconds.lines[0].get_xdata(), [10, 30])
    np.testing.assert_allclose(prior.lines[0].get_ydata(), 0.1 * values.mean(0))

    def ends(band):
        outline = band.get_paths()[0].vertices
        last = outline[outline[:, 0] == 300, 1]
        return last.min(), last.max()

    se = values[:, 1].std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(ends(by_step.collections[0]), [2.3 - se, 2.3 + se])
    np.testing.assert_allclose(ends(by_step.collections[1]), [2.0, 2.3])
    told = by_step.figure.get_supxlabel()
    assert all(word in told for word in ("standard error over seeds", "two seeds", "faint"))


def test_curves_of_seeds_that_do_not_overlap(tmp_path, drawn):
    """There is no mean, but each seed is drawn; of one run, the last evaluation has its error bar."""
    early, late = made(tmp_path / "a-0", [line(100, 3.0)]), made(tmp_path / "a-1", [line(200, 2.0)], 1)
    results.curves({"a": [early, late]}, tmp_path)
    mean, *each = drawn[0].lines
    assert len(mean.get_xdata()) == 0 and [own.get_ydata().tolist() for own in each] == [[3.0], [2.0]]
    before = [line(150, 2.5, split="train")]  # training is drawn only after the last evaluation
    one = made(tmp_path / "b", [*before, line(200, 2.0), line(250, 1.8, split="train")])
    results.curves({"b": [one]}, tmp_path)
    assert [shown.get_ydata().tolist() for shown in drawn[0].lines[:2]] == [[1.8], [2.0]]
    (bar,) = drawn[0].containers
    np.testing.assert_allclose(bar[2][0].get_segments()[0][:, 1], [1.9, 2.1])


def test_axis_is_for_what_comes_after_the_first_steps(tmp_path, drawn):
    """600 bits/dim at the start, and a run that has only just begun, do not flatten the rest; a worse
    variant's end is still shown, and so are all of a few points that lie near."""
    steep = [600.0, 50.0, 10.0, 3.0, 2.5, 2.2, 2.1, 2.0, 1.95, 1.9]
    runs = {
        "long": [made(tmp_path / "a", [line(30 * i + 30, v) for i, v in enumerate(steep)])],
        "worse": [made(tmp_path / "b", [line(300, 6.0)])],
        "begun": [made(tmp_path / "c", [line(30, 600.0)])],
    }
    results.curves(runs, tmp_path)
    low, high = drawn[0].get_ylim()
    assert low < 1.9 and 6.1 < high < 30.0
    flat = {"flat": [made(tmp_path / "e", [line(step, 1.9 + 1 / step) for step in range(2, 100)])]}
    results.curves(flat | {"worse": [made(tmp_path / "f", [line(99, 3.0)])]}, tmp_path)
    assert drawn[0].get_ylim()[1] > 3.0
    few = [line(step, bpd, 1e-3) for step, bpd in ((1, 2.3), (2, 1.91), (3, 1.9))]
    results.curves({"few": [made(tmp_path / "d", few)]}, tmp_path)
    assert drawn[0].get_ylim()[1] > 2.3


# ---- commands ---------------------------------------------------------------------------


def test_difference_image_by_image(tmp_path):
    """The paired difference, which is far smaller than the runs' own errors; unpaired where the images
    are of another evaluation; none on other data."""
    draw = np.random.default_rng(0)
    x = draw.normal(2.0, 0.5, 4)
    y = x + draw.normal(0.1, 0.01, 4)
    finals = [line(300, v.mean(), v.std(ddof=1) / 2) for v in (x, y)]
    first, other = (
        made(tmp_path / name, [], final=final, images=values)
        for name, final, values in (("x", finals[0], x), ("y", finals[1], y))
    )
    mean, se, how = compare.difference(workdirs.read(other), workdirs.read(first))
    assert how == "image by image"
    np.testing.assert_allclose([mean, se], [np.mean(y - x), np.std(y - x, ddof=1) / 2])

    stale = made(tmp_path / "stale", [], final=line(300, 2.5, 0.3), images=y)
    mean, se, how = compare.difference(workdirs.read(stale), workdirs.read(first))
    assert how == "unpaired"
    np.testing.assert_allclose([mean, se], [2.5 - x.mean(), math.hypot(0.3, finals[0]["bpd_se"])])

    elsewhere = {"name": "mnist", "vocab_size": 256, "data_dir": ""}
    mnist = made(tmp_path / "mnist", [], final=finals[1], images=y, data=elsewhere)
    assert compare.difference(workdirs.read(mnist), workdirs.read(first))[2] == "other data"
    assert np.isnan(compare.difference(workdirs.read(mnist), workdirs.read(first))[0])


def test_compare_tells_configs_numbers_and_errors(tmp_path, capsys):
    """Fields that differ, those of eval last; both numbers; the figure; and what is bad input."""
    first = made(tmp_path / "a", [line(300, 2.0, 0.03)], eval={"passes": 2}, optimizer={"clip": 1.0})
    second = made(tmp_path / "b", [line(200, 2.5, 0.04)], eval={"passes": 9}, optimizer={"clip": 0.5, "b1": 1})
    compare.run([str(first), str(second)], tmp_path / "out")
    text = capsys.readouterr().out
    rows = [[c.strip() for c in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")]
    assert rows[2:5] == [
        ["optimizer.b1", "absent", "1"], ["optimizer.clip", "1.0", "0.5"], ["(eval.passes)", "2", "9"]
    ]  # fmt: skip
    assert rows[-2][:5] == ["a", "2.0000", "0.0300", "0.0150", ""]
    assert rows[-1][:7] == ["b", "2.5000", "0.0400", "0.0200", "0.5000", "0.0500", "unpaired"]
    assert rows[-1][-1] == "200 of 300"
    names = {"compare.md", "compare.png", "compare.pdf"}
    assert names == {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "compare.md").read_text().startswith(text.split("\n\n\n")[0][:200])

    for folders, words in (
        ([], "no folder is given"),
        ([str(first)], "'.*a' is one run; give the workdirs of two or more"),
        ([str(first), str(first)], "'a' is 2 runs"),
        ([str(first), str(tmp_path / "none")], "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            compare.run(folders, tmp_path / "out")
    with pytest.raises(UserError, match="config.json' cannot be a folder"):
        compare.run([str(first), str(second)], first / "config.json")


def test_elbo_curves_of_runs_that_go_on(tmp_path, capsys):
    """How far each is, and its number with the error; nothing measured at all is told."""
    going = made(tmp_path / "s" / "a-0", [line(100, 2.0, 0.03), line(150, 1.9, split="train")])
    made(tmp_path / "s" / "a-1", [], seed=1)
    elbo_curves.run([str(tmp_path / "s")], tmp_path / "out")
    rows = [[c.strip() for c in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()[2:4]]
    assert rows == [
        ["a, seed 0", "150", "300", "15", "2.0000", "0.0300", "100"],
        ["a, seed 1", "0", "300", "–", "–", "–", "–"],
    ]
    png, pdf = tmp_path / "out" / "elbo_curves.png", tmp_path / "out" / "elbo_curves.pdf"
    assert {*(tmp_path / "out").iterdir()} == {png, pdf} and pdf.read_bytes().startswith(b"%PDF")
    with Image.open(png) as image:
        assert image.format == "PNG" and image.size[0] > 1000
    (going / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="measured anything yet"):
        elbo_curves.run([str(going)], tmp_path / "out")


@pytest.mark.parametrize(
    "module, args, code, words",
    [
        ("elbo_curves", ["--help"], 1, "Folder for what is written"),
        ("compare", ["nowhere", "b", "--out=c"], 2, "error: 'nowhere' does not exist"),
    ],
)
def test_command_line(module, args, code, words):
    line = [sys.executable, "-m", f"experiments.{module}", *args]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
