"""Differences from a baseline: computed by hand, and in simulated studies of equal variants."""

import csv
import math

import numpy as np
import pytest
from scipy import stats

from record_helpers import line, write_workdir
from vdm.reporting.text import latex_table
from vdm.sweep import differences, workdirs


def test_without_effects_of_seeds_it_is_a_paired_test_of_images():
    """If all seeds have the same values, these are one sample of images, and the seeds add nothing."""
    values = np.random.default_rng(0).normal(0.3, 1.0, 50)
    mean, se, _ = differences.of_grid(np.stack([values] * 4))
    np.testing.assert_allclose([mean, se], [values.mean(), stats.sem(values)])


def test_without_effects_of_images_it_is_a_paired_test_of_seeds():
    values = np.random.default_rng(0).normal(0.3, 1.0, 5)
    mean, se, freedom = differences.of_grid(np.repeat(values[:, None], 70, axis=1))
    np.testing.assert_allclose([mean, se, freedom], [values.mean(), stats.sem(values), 4.0])


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_image", "rest"), [(0.02, 0.0, 1.0), (0.0, 0.3, 1.0), (0.05, 0.5, 1.0), (0.3, 0.01, 0.1)]
)
def test_intervals_hold_the_difference_of_equal_variants(seeds, of_seed, of_image, rest):
    """In 95% of 2,000 studies (accepted: 92 to 98.5%), each with its own seeds and images."""
    random, images, held = np.random.default_rng(0), 200, 0
    for _ in range(2_000):
        values = of_seed * random.normal(size=(seeds, 1)) + of_image * random.normal(size=images)
        values = values + rest * random.normal(size=(seeds, images))
        found = differences.Difference(*differences.of_grid(values), seeds, "seeds and images")
        held += abs(found.mean) < found.half
    assert 0.92 < held / 2_000 < 0.985


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.87), (3, 0.90)])
def test_where_seeds_differ_much_few_of_them_hold_it_less_often(seeds, least):
    """As docs/guide/studies.md says, Satterthwaite's degrees of freedom are then too many."""
    random, held = np.random.default_rng(0), 0
    for _ in range(2_000):
        values = 0.3 * random.normal(size=(seeds, 1)) + random.normal(size=200)
        values = values + random.normal(size=(seeds, 200))
        found = differences.Difference(*differences.of_grid(values), seeds, "seeds and images")
        held += abs(found.mean) < found.half
    assert least < held / 2_000 < 0.95


@pytest.mark.slow
def test_a_difference_as_large_as_could_be_told_is_found_in_four_of_five_studies():
    random, found = np.random.default_rng(0), 0
    exact = differences.Difference(0.0, 0.2 / math.sqrt(6), 5.0, 6, "seeds")
    for _ in range(4_000):
        drops = random.normal(exact.could_tell, 0.2, 6)
        own = differences.Difference(drops.mean(), stats.sem(drops), 5.0, 6, "seeds")
        found += own.mean - own.half > 0
    assert found / 4_000 == pytest.approx(differences.POWER, abs=0.04)


def test_runs_are_paired_by_their_seeds(tmp_path):
    """Seeds 0, 1, 2 and 1, 2, 7 give two pairs, also in the table, the LaTeX and the CSV."""
    random = np.random.default_rng(1)
    images = {(name, seed): random.normal(2.0, 0.5, 4) for name in "ab" for seed in (0, 1, 2, 7)}
    folders = {
        name: [
            write_workdir(
                tmp_path / f"{name}-{seed}", [], seed, images=images[name, seed],
                final=line(300, images[name, seed].mean(), 0.2),
            )
            for seed in seeds
        ]
        for name, seeds in (("a", (0, 1, 2)), ("b", (1, 2, 7)))
    }  # fmt: skip
    found = differences.between(*(
        [workdirs.read(folder) for folder in folders[name]] for name in ("b", "a")
    ))  # fmt: skip
    pairs = np.stack([images["b", seed] - images["a", seed] for seed in (1, 2)])
    assert (found.seeds, found.how) == (2, "seeds and images")
    np.testing.assert_allclose([found.mean, found.se], differences.of_grid(pairs)[:2])

    paths = differences.write(folders, tmp_path, "a")
    assert [path.name for path in paths] == ["differences.md", "differences.csv", "differences.tex"]
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["difference"]) == pytest.approx(found.mean) and rows[1]["pairs"] == "2"
    assert f"{found.mean:+.4f}".replace("-", "−") in paths[0].read_text()
    assert paths[2].read_text().count(r"\\") == 3  # the header and two rows


def test_without_images_runs_are_paired_seed_by_seed(tmp_path):
    drops = np.array([0.1, 0.3, 0.2])
    runs = [
        [
            workdirs.read(write_workdir(tmp_path / f"{name}-{seed}", [], seed, final=line(300, bpd)))
            for seed, bpd in enumerate(values)
        ]
        for name, values in (("a", 2.0 + 0 * drops), ("b", 2.0 + drops))
    ]
    found = differences.between(runs[1], runs[0])
    assert (found.how, found.freedom) == ("seeds", 2.0)
    np.testing.assert_allclose([found.mean, found.se], [drops.mean(), stats.sem(drops)])
    none = differences.between(runs[1], [])
    assert math.isnan(none.mean) and none.how == "not evaluated"
    assert differences.between(runs[1][:2], runs[0][2:]).how == "no common seed"


def test_latex_escapes_what_it_reads_otherwise():
    text = latex_table(["a_b", "± 5%"], [["x & y", "−1"]])
    assert r"a\_b & $\pm$ 5\% \\" in text and r"x \& y & $-$1 \\" in text and r"\toprule" in text


def test_differences_are_paired_by_seed_and_image():
    rng = np.random.default_rng(0)
    images, seeds, rest = rng.normal(size=40), rng.normal(size=3), rng.normal(0.5, 0.1, (3, 40))
    ours = {seed: images + seeds[seed] + rest[seed] for seed in (2, 1)}
    others = {seed: images + seeds[seed] for seed in (0, 1, 2)}
    want = differences.of_grid(rest[[2, 1]])[:2]
    assert differences.paired(ours, others) == pytest.approx(want) and 0.0 < want[1] < 0.1
    assert np.isnan(differences.paired(ours, {})).all()


def test_without_a_run_of_the_baseline_there_are_none(tmp_path, capsys):
    """Nor do those from an earlier baseline stay."""
    (tmp_path / "differences.tex").write_text("old")
    found = {name: [write_workdir(tmp_path / name, [], final=line(300, 2.0))] for name in "ab"}
    assert differences.write(found, tmp_path, "c") == [] and not (tmp_path / "differences.tex").exists()
    assert "no differences: no run of the baseline 'c' has finished yet" in capsys.readouterr().out
