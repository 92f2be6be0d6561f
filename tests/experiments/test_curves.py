"""The curves of studies with made-up runs, against NumPy."""

import math

import numpy as np
from PIL import Image
import pytest

from experiments import elbo_curves
from record_helpers import line, write_workdir
from vdm.errors import UserError
from vdm.reporting import figures
from vdm.sweep import curves, look, saved
from vdm.sweep.look import Look


@pytest.fixture
def panels(monkeypatch):
    """The panels of the last figure, which is not saved."""
    panels = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: panels.__setitem__(slice(None), figure.axes))
    return panels


def test_seeds_are_brought_to_common_steps():
    """Both cover only steps 200 to 400; at 250 the first is interpolated, at 300 the second."""
    a = np.array([[100, 200, 300, 400], [10, 20, 30, 40], [4.0, 3.0, 2.0, 1.0]])
    b = np.array([[200, 250, 350, 900], [24, 30, 42, 99], [3.5, 3.0, 2.0, 1.0]])
    x, y = curves.over_seeds([a, b])
    np.testing.assert_allclose(y[0], [3.0, 2.5, 2.0, 1.5, 1.0])
    np.testing.assert_allclose(y[1], [3.5, 3.0, 2.5, 2.0, np.interp(400, b[0], b[2])])
    np.testing.assert_allclose(x[:3], [22.0, 27.5, 33.0])
    assert curves.over_seeds([a[:, :1], b])[1].shape == (2, 0)


def test_curves_show_means_bands_and_training(tmp_path, panels):
    """Three seeds show the mean ± s.e., two seeds their range, and a run without an evaluation its
    training."""
    values = np.array([[3.0, 2.0], [3.2, 2.3], [3.1, 2.6]])
    seeds = [
        write_workdir(tmp_path / f"a-{s}", [line(100, u), line(300, v)], s) for s, (u, v) in enumerate(values)
    ]
    fresh = write_workdir(tmp_path / "fresh", [line(s, 3.5 - s / 100, split="train") for s in (50, 90)])
    files = curves.plot_curves({"three": seeds, "two": seeds[:2], "fresh": [fresh]}, tmp_path / "out")
    assert [file.name for file in files] == ["curves.png", "curves.pdf", "curves.txt"]
    by_step, by_seconds, diffusion, prior = panels
    assert diffusion.get_ylabel().startswith(figures.TERMS["diffusion"][0])
    assert prior.get_ylabel().startswith(figures.TERMS["prior"][0])
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
    caption = (tmp_path / "out" / "curves.txt").read_text().replace("\n", " ")
    assert all(word in caption for word in ("standard error over seeds", "two seeds", "Faint"))
    assert "Diamonds" not in caption


def test_each_model_has_one_number_in_a_figure(tmp_path, panels):
    """The curve's number, as its points are comparable; without a curve, the final estimate, of more passes.
    The caption says that the tables' numbers differ."""
    final = line(300, 2.0, passes=20)
    rows = [line(100, 3.0), line(300, 1.9, 0.01), line(300, 2.0, split="final", passes=20)]
    curved = write_workdir(tmp_path / "curved", rows, final=final)
    bare = write_workdir(tmp_path / "bare", [line(300, 2.1, split="train")], final=line(300, 2.2, passes=20))
    curves.plot_curves({"curved": [curved], "bare": [bare]}, tmp_path / "out")
    points = [(shown.get_marker(), shown.get_xydata().tolist()) for shown in panels[0].lines]
    assert (".", [[100, 3.0], [300, 1.9]]) in points and ("D", [[300, 2.2]]) in points
    assert not any(2.0 in np.ravel(values) for _, values in points)
    caption = (tmp_path / "out" / "curves.txt").read_text().replace("\n", " ")
    assert "The number of passes is 2; the tables' estimates have more" in caption and "Diamonds" in caption


def test_panels_that_say_nothing_are_left_out(tmp_path, panels):
    """A constant term, and a term that is the ELBO minus a constant term."""
    rows = [
        line(s, 2.0 + 1 / s, terms=("diffusion",)) | {"prior": 0.003, "prior_se": 0.0} for s in (100, 200)
    ]
    rows = [row | {"diffusion": row["bpd"] - 0.003} for row in rows]
    run = write_workdir(tmp_path / "a", rows)
    curves.plot_curves({"a": [run]}, tmp_path)
    assert [axes.get_xlabel() for axes in panels] == ["step", "seconds"]
    curves.plot_curves({"a": [run]}, tmp_path, look=Look(3.25, ("images", "prior"), ("x",)))
    assert [axes.get_xlabel() for axes in panels] == ["images seen", "step"]
    assert panels[0].get_xscale() == "log" and panels[0].figure.get_figwidth() == 3.25
    np.testing.assert_allclose(panels[0].lines[0].get_xdata(), [100 * 128, 200 * 128])
    with pytest.raises(UserError, match="--panels is 'prio'; accepted: 'step'.*Did you mean 'prior'"):
        curves.plot_curves({"a": [run]}, tmp_path, look=Look(5.5, ("prio",)))


def test_a_variant_keeps_its_colour_in_all_figures_of_a_study(tmp_path):
    study = saved.Saved(
        "c.py", [], {}, {}, ["a", "b", "c"], "a", 1, None, {"width": 5.5, "panels": [], "log": []}
    )
    saved.write(tmp_path, study)
    whole, part = look.styles(["a", "b", "c"], tmp_path), look.styles(["c", "d"], tmp_path)
    assert part["c"] == {**whole["c"], "lw": part["c"]["lw"]}
    assert len({style["color"] for style in (*whole.values(), part["d"])}) == 4


def test_curves_of_seeds_that_do_not_overlap(tmp_path, panels):
    """There is no mean, but each seed is plotted. The last evaluation of a single run has an error bar."""
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
    """Neither 600 bits/dim at the start nor a run that has just begun flattens the other curves. The end of a
    worse variant is still shown, and so is every point of a short curve of similar values."""
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
    run = write_workdir(tmp_path / "a", lines, steps=300)
    curves.plot_curves({"none": [run]}, tmp_path, look=Look(5.5, ("prior",)))
    low, high = panels[-1].get_ylim()  # the values go up to 3e-7
    assert low == 0.0 and high == pytest.approx(1e-3)


def test_elbo_curves_of_runs_that_go_on(tmp_path, capsys):
    """The progress of each run, and its number with its error; refused if no run has measurements."""
    going = write_workdir(tmp_path / "s" / "a-0", [line(100, 2.0, 0.03), line(150, 1.9, split="train")])
    write_workdir(tmp_path / "s" / "a-1", [], seed=1)
    elbo_curves.run([str(tmp_path / "s")], tmp_path / "out")
    rows = [[c.strip() for c in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()[2:4]]
    assert rows == [
        ["a, seed 0", "150", "300", "15", "2.0000", "0.0300", "100"],
        ["a, seed 1", "0", "300", "–", "–", "–", "–"],
    ]
    png, pdf = tmp_path / "out" / "elbo_curves.png", tmp_path / "out" / "elbo_curves.pdf"
    assert {*(tmp_path / "out").iterdir()} == {
        png,
        pdf,
        png.with_suffix(".txt"),
    } and pdf.read_bytes().startswith(b"%PDF")
    with Image.open(png) as image:
        assert image.format == "PNG" and image.size[0] > 1000
    (going / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no run has measurements yet"):
        elbo_curves.run([str(going)], tmp_path / "out")
