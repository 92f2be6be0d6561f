"""What studies read from workdirs, at every stage of a run and from older versions."""

import json

import pytest

from record_helpers import line, write_workdir
from vdm.errors import UserError
from vdm.sweep import workdirs


def test_final_number_of_runs_at_every_stage(tmp_path):
    """It is from eval.json, unless this is missing or the run has continued since; then from the newest test
    line, even if a truncated line follows."""
    lines = [line(100, 3.0), line(150, 2.7, split="train"), line(200, 2.5)]
    at_200 = write_workdir(tmp_path / "going", lines)
    with (at_200 / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "split": "te')
    going = workdirs.read(at_200)
    assert going.final["bpd"] == 2.5 and going.newest["step"] == 200 and not going.has_own_final
    done = workdirs.read(write_workdir(tmp_path / "done", lines, steps=200, final=line(200, 2.4)))
    assert done.final["bpd"] == 2.4 and done.final["seconds"] == 20 and done.has_own_final
    best = write_workdir(tmp_path / "best", lines, steps=200, final=line(100, 2.9))  # of the best checkpoint
    assert workdirs.read(best).final["bpd"] == 2.9 and workdirs.read(best).final["seconds"] == 10
    longer = write_workdir(tmp_path / "longer", lines, steps=300, final=line(100, 2.9))
    assert workdirs.read(longer).final["bpd"] == 2.5
    fresh = workdirs.read(write_workdir(tmp_path / "fresh", []))
    assert fresh.final == {} and fresh.newest == {"step": 0} and not fresh.has_own_final


def test_the_estimate_at_the_end_stands_whatever_was_evaluated_since(tmp_path):
    lines = [line(100, 2.9), line(200, 2.5), line(200, 2.4, split="final", passes=20)]
    best = write_workdir(
        tmp_path / "best", lines, steps=200, final=line(100, 2.1) | {"estimator": "exact"}, images=[2.1] * 4
    )
    record = workdirs.read(best)
    assert (record.final["bpd"], record.final["step"], record.final["estimator"]) == (2.4, 200, "exact")
    assert record.final["seconds"] == 20 and workdirs.image_values(record) is None
    more = write_workdir(
        tmp_path / "more", lines, steps=200, final=line(200, 2.3, passes=100), images=[2.3] * 4
    )
    record = workdirs.read(more)
    assert record.final["bpd"] == 2.3 and workdirs.image_values(record) is not None, "more passes replace it"


def test_the_curve_has_what_compares(tmp_path):
    """A run's "final" line is not on its curve, nor is the last "test" line of an older version, which has
    more passes than those before it."""
    points = [line(100, 3.0), line(200, 2.5)]
    new = [*points, line(300, 2.4), line(300, 2.3, split="final", passes=20)]
    old = [*points, line(300, 2.3, passes=20)]
    for name, lines, steps in (("new", new, [100, 200, 300]), ("old", old, [100, 200])):
        record = workdirs.read(write_workdir(tmp_path / name, lines))
        assert [row["step"] for row in record.test] == steps
        assert record.final["bpd"] == 2.3 and record.has_own_final
        assert record.newest["step"] == 300
    # A run that was continued has two such lines.
    longer = [*old, *(line(step, 2.0) for step in (400, 500)), line(600, 1.9, passes=20)]
    record = workdirs.read(write_workdir(tmp_path / "longer", longer, steps=600))
    assert [row["step"] for row in record.test] == [100, 200, 400, 500]
    only = workdirs.read(write_workdir(tmp_path / "only", [line(300, 2.3, passes=20)]))
    assert [row["step"] for row in only.test] == [300] and not only.has_own_final


def test_config_of_an_older_version(tmp_path):
    """Its fields are converted to this version's, so that equal data compares as equal."""
    fields = {"name": "digits", "vocab_size": 17, "data_dir": "", "image_size": 0, "augment": ""}
    old = workdirs.read(write_workdir(tmp_path / "old", [], data=fields))
    new = workdirs.read(write_workdir(tmp_path / "new", [], data={"name": "digits", "on_device_gib": 0.5}))
    assert "vocab_size" not in old.config.data
    assert workdirs.same_images(old, new)
    npz = [
        workdirs.read(write_workdir(tmp_path / f"npz{n}", [], data={"name": "npz", "vocab_size": n}))
        for n in (16, 256)
    ]
    assert not workdirs.same_images(*npz)


def test_the_fingerprint_says_which_images_they_are(tmp_path):
    """The fingerprint decides, whatever the config says; if a run has none, the config decides."""
    runs = [
        workdirs.read(
            write_workdir(tmp_path / str(n), [line(300, 2.0)], final={**line(300, 2.0), **data}, data=fields)
        )
        for n, (data, fields) in enumerate(
            (
                ({"data": "a"}, {"name": "digits"}),
                ({"data": "a"}, {"name": "npz"}),
                ({"data": "b"}, {"name": "digits"}),
                ({}, {"name": "digits"}),
            )
        )
    ]
    same = [workdirs.same_images(runs[0], other) for other in runs]
    assert same == [True, True, False, True]
    assert workdirs.images_note(runs[:2]) == "" and "not comparable" in workdirs.images_note(runs[:3])


def test_sweeps_are_taken_apart(tmp_path):
    """Folders VARIANT-SEED become variants, a workdir given by itself keeps its name, and others are
    ignored."""
    for name in ("lr-1e-3-0", "lr-1e-3-1", "wide-0"):
        write_workdir(tmp_path / "sweep" / name, [], seed=int(name[-1]))
    write_workdir(tmp_path / "digits-7", [])
    (tmp_path / "sweep" / "curves").mkdir()
    found = workdirs.find([tmp_path / "sweep", tmp_path / "digits-7"])
    names = {label: [run.name for run in runs] for label, runs in found.items()}
    assert names == {
        "sweep/lr-1e-3": ["lr-1e-3-0", "lr-1e-3-1"],
        "sweep/wide": ["wide-0"],
        "digits-7": ["digits-7"],
    }
    assert list(workdirs.find([tmp_path / "sweep"])) == ["lr-1e-3", "wide"]


def test_names_that_end_with_a_number_need_not_be_seeds(tmp_path):
    for number in (2, 4):
        write_workdir(tmp_path / "sweep" / f"patch-{number}", [], seed=number, optimizer={"warmup": number})
        write_workdir(tmp_path / "sweep" / f"steps-{number}", [], steps=number)
    assert list(workdirs.find([tmp_path / "sweep"])) == ["patch-2", "patch-4", "steps-2", "steps-4"]


def test_folders_that_are_no_runs_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text('{"seed"')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"epochs": 3}')
    for name, words in (
        ("none", "'.*none' does not exist; give"),
        ("empty", "'.*empty' is not the workdir of a run: it has no config.json"),
        ("other", "'.*other' is not a run"),
        ("bad", "config.json' is damaged"),
    ):
        with pytest.raises(UserError, match=words):
            workdirs.find([tmp_path / name])
    a, b = write_workdir(tmp_path / "a", []), write_workdir(tmp_path / "b", [])
    with pytest.raises(UserError, match="'v' has the same seed twice: .*a, .*b; give each seed once"):
        workdirs.read_variants({"v": [a, b]})
    with pytest.raises(UserError, match="no run to show"):
        workdirs.read_variants({"v": []})


def test_a_measure_is_kept_until_another_evaluation(tmp_path):
    folder = write_workdir(tmp_path / "a", [], final=line(300, 2.0))
    found = workdirs.kept(folder, "depth", lambda folder: {"T=10": (1.0, 0.5)})
    assert found == {"T=10": [1.0, 0.5], "step": 300} == json.loads((folder / "depth.json").read_text())
    assert workdirs.kept(folder, "depth", None) == found
    (folder / "eval.json").write_text(json.dumps({"step": 400}))
    assert workdirs.kept(folder, "depth", lambda folder: {"T=10": 2}) == {"T=10": 2, "step": 400}
