"""The curve of a run, from any metrics.jsonl."""

import json

from PIL import Image
import pytest

from vdm.reporting import curve, figures, metrics


@pytest.fixture
def panels(monkeypatch):
    """The panels of the last figure, which is not written to disk."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, _: found.__setitem__(slice(None), figure.axes))
    return found


def line(step, split, bpd, passes=2, se=0.02):
    """A line of metrics.jsonl."""
    row = {"step": step, "split": split, "bpd": bpd, "diffusion": bpd - 0.1, "prior": 0.1}
    more = {"bpd_se": se, "diffusion_se": se, "prior_se": 0.0, "passes": passes}
    return json.dumps(row | more if split != "train" else row) + "\n"


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_curve_of_training_alone_and_of_a_cut_off_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, "train", 2.5) + '{"step": 2, "spl')
    assert [row["step"] for row in metrics.read_metrics(path)] == [1]
    curve.save_curve(tmp_path / "elbo.png", path)
    with Image.open(tmp_path / "elbo.png") as image:
        assert image.size[0] > 800


def test_the_final_estimate_is_a_marker_apart_from_the_curve(tmp_path, panels):
    """It has its own error bar. The curve ends with the last estimate that has the same number of passes."""
    path = tmp_path / "metrics.jsonl"
    tests = [line(1, "test", 2.0), line(2, "test", 1.8), line(2, "final", 1.829, 20, 0.014)]
    path.write_text("".join([line(1, "train", 2.5), *tests]))
    curve.save_curve(tmp_path / "elbo.png", path)
    left, right = panels
    assert labels(left) == [
        "training, one draw",
        "test (EMA), 2 passes",
        "final, 20 passes with independent noise, 1.829 ± 0.014",
    ]
    test, final = left.containers
    assert test[0].get_xydata().tolist() == [[1, 2.0], [2, 1.8]]
    assert final[0].get_xydata().tolist() == [[2, 1.829]]
    bar = final[2][0].get_segments()[0]
    assert bar[:, 1].tolist() == pytest.approx([1.815, 1.843])
    assert all(len(shown.get_xdata()) == 2 for shown in right.lines)


def test_curve_of_metrics_without_a_final_estimate(tmp_path, panels):
    """From an older version, or from a run that continues after it has finished."""
    path = tmp_path / "metrics.jsonl"
    tests = [line(1, "test", 2.0), line(2, "test", 1.8, 20)]
    path.write_text("".join(tests))
    curve.save_curve(tmp_path / "elbo.png", path)
    assert labels(panels[0]) == ["test (EMA), 2 passes, last 1.800 ± 0.020"]
    path.write_text("".join([*tests, line(2, "final", 1.8, 20), line(3, "train", 1.7)]))
    curve.save_curve(tmp_path / "elbo.png", path)
    assert labels(panels[0]) == ["training, one draw", "test (EMA), 2 passes, last 1.800 ± 0.020"]
