"""Studies' curves of made-up runs, against NumPy."""

import math

import numpy as np
from PIL import Image
import pytest

from experiments import elbo_curves
from record_helpers import line, write_workdir
from vdm.errors import UserError
from vdm.reporting import figures
from vdm.sweep import curves


@pytest.fixture
def panels(monkeypatch):
    """The panels of the last figure, which is not written."""
    panels = []
    monkeypatch.setattr(figures, "save", lambda figure, _: panels.__setitem__(slice(None), figure.axes))
    return panels


def test_seeds_are_brought_to_common_steps():
    """Steps 200 to 400 are all that both have; at 250 the first is interpolated, at 300 the second."""
    a = np.array([[100, 200, 300, 400], [10, 20, 30, 40], [4.0, 3.0, 2.0, 1.0]])
    b = np.array([[200, 250, 350, 900], [24, 30, 42, 99], [3.5, 3.0, 2.0, 1.0]])
    x, y = curves.over_seeds([a, b])
    np.testing.assert_allclose(y[0], [3.0, 2.5, 2.0, 1.5, 1.0])
    np.testing.assert_allclose(y[1], [3.5, 3.0, 2.5, 2.0, np.interp(400, b[0], b[2])])
    np.testing.assert_allclose(x[:3], [22.0, 27.5, 33.0])
    assert curves.over_seeds([a[:, :1], b])[1].shape == (2, 0)


def test_curves_show_means_bands_and_training(tmp_path, panels):
    """Three seeds: mean ± s.e., of two their ends; a run that was not evaluated yet is shown by its
    training."""
    values = np.array([[3.0, 2.0], [3.2, 2.3], [3.1, 2.6]])
    seeds = [
        write_workdir(tmp_path / f"a-{s}", [line(100, u), line(300, v)], s) for s, (u, v) in enumerate(values)
    ]
    fresh = write_workdir(tmp_path / "fresh", [line(s, 3.5 - s / 100, split="train") for s in (50, 90)])
    files = curves.plot_curves({"three": seeds, "two": seeds[:2], "fresh": [fresh]}, tmp_path / "out")
    assert [file.name for file in files] == ["curves.png", "curves.pdf"]
    by_step, by_seconds, diffusion, prior = panels
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
    caption = by_step.figure.get_supxlabel()
    assert all(word in caption for word in ("standard error over seeds", "two seeds", "faint"))
    assert "diamonds" not in caption


def test_final_estimates_are_marked(tmp_path, panels):
    """A diamond with an error bar, apart from the curve, which ends with the last point that compares; both
    with a line of "final", and in a workdir whose last test line has more passes."""
    values = np.array([2.0, 2.3, 2.6])
    seeds = [
        write_workdir(
            tmp_path / f"a-{s}",
            [line(100, 3.0), line(300, v - 0.1), line(300, v, split="final", passes=20)],
            s,
            final=line(300, v, passes=20),
        )
        for s, v in enumerate(values)
    ]
    lines = [line(100, 3.0), line(200, 2.5), line(300, 1.7, 0.05, passes=20)]
    old = write_workdir(tmp_path / "old", lines, final=lines[-1])
    curves.plot_curves({"three": seeds, "old": [old]}, tmp_path / "out")
    diamonds = [shown for shown in panels[0].lines if shown.get_marker() == "D"]
    np.testing.assert_allclose([shown.get_xydata()[0] for shown in diamonds], [[300, 2.3], [300, 1.7]])
    points = [shown.get_xydata() for shown in panels[0].lines if shown.get_marker() == "."]
    np.testing.assert_allclose(points[0], [[100, 3.0], [300, 2.2]])
    np.testing.assert_allclose(points[1], [[100, 3.0], [200, 2.5]])
    bars = [bar[2][0].get_segments()[0][:, 1] for bar in panels[0].containers]
    se = values.std(ddof=1) / math.sqrt(3)
    np.testing.assert_allclose(bars, [[2.3 - se, 2.3 + se], [1.65, 1.75]])
    caption = panels[0].figure.get_supxlabel().replace("\n", " ")
    assert "diamonds: final estimates" in caption and "bars of a single run" in caption
    assert "bars of diamonds: as the bands" in caption
    assert panels[0].get_ylim()[0] < 1.7


def test_curves_of_seeds_that_do_not_overlap(tmp_path, panels):
    """There is no mean, but each seed is plotted; of one run, the last evaluation has its error bar."""
    early = write_workdir(tmp_path / "a-0", [line(100, 3.0)])
    late = write_workdir(tmp_path / "a-1", [line(200, 2.0)], 1)
    curves.plot_curves({"a": [early, late]}, tmp_path)
    mean, *each = panels[0].lines
    assert len(mean.get_xdata()) == 0 and [own.get_ydata().tolist() for own in each] == [[3.0], [2.0]]
    before = [line(150, 2.5, split="train")]  # training is plotted only after the last evaluation
    after = [line(200, 2.0), line(250, 1.8, split="train")]
    one = write_workdir(tmp_path / "b", [*before, *after])
    curves.plot_curves({"b": [one]}, tmp_path)
    assert [shown.get_ydata().tolist() for shown in panels[0].lines[:2]] == [[1.8], [2.0]]
    (bar,) = panels[0].containers
    np.testing.assert_allclose(bar[2][0].get_segments()[0][:, 1], [1.9, 2.1])


def test_axis_is_for_what_comes_after_the_first_steps(tmp_path, panels):
    """600 bits/dim at the start, and a run that has only just begun, do not flatten the others; a worse
    variant's end is still shown, and so are all of a few points that lie near."""
    steep = [600.0, 50.0, 10.0, 3.0, 2.5, 2.2, 2.1, 2.0, 1.95, 1.9]
    runs = {
        "long": [write_workdir(tmp_path / "a", [line(30 * i + 30, v) for i, v in enumerate(steep)])],
        "worse": [write_workdir(tmp_path / "b", [line(300, 6.0)])],
        "begun": [write_workdir(tmp_path / "c", [line(30, 600.0)])],
    }
    curves.plot_curves(runs, tmp_path)
    low, high = panels[0].get_ylim()
    assert low < 1.9 and 6.1 < high < 30.0
    lines = [line(step, 1.9 + 1 / step) for step in range(2, 100)]
    flat = {"flat": [write_workdir(tmp_path / "e", lines)]}
    curves.plot_curves(flat | {"worse": [write_workdir(tmp_path / "f", [line(99, 3.0)])]}, tmp_path)
    assert panels[0].get_ylim()[1] > 3.0
    few = [line(step, bpd, 1e-3) for step, bpd in ((1, 2.3), (2, 1.91), (3, 1.9))]
    curves.plot_curves({"few": [write_workdir(tmp_path / "d", few)]}, tmp_path)
    assert panels[0].get_ylim()[1] > 2.3


def test_a_term_of_next_to_nothing_is_not_blown_up(tmp_path, panels):
    lines = [line(step, 1e-8 * step, 1e-9) for step in (100, 200, 300)]
    curves.plot_curves({"none": [write_workdir(tmp_path / "a", lines, steps=300)]}, tmp_path)
    low, high = panels[-1].get_ylim()  # the prior, up to 3e-7
    assert low == 0.0 and high == pytest.approx(1e-3)


def test_elbo_curves_of_runs_that_go_on(tmp_path, capsys):
    """How far each is, and its number with the error; where nothing is measured at all, that is said."""
    going = write_workdir(tmp_path / "s" / "a-0", [line(100, 2.0, 0.03), line(150, 1.9, split="train")])
    write_workdir(tmp_path / "s" / "a-1", [], seed=1)
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
