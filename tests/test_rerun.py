"""A rerun compared bit by bit, and the record of how a run was started."""

import json
import subprocess

import pytest

from conftest import TINY_FIELDS, make_config
from vdm import provenance, rerun, train
from vdm.errors import Failed, UserError

FIELDS = TINY_FIELDS | {
    "train.steps": 3,
    "sample.num": 8,
    "sample.batch_size": 8,
    "train.substeps": 1,
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.sample_every": 0,
}


def row(step, bpd, split="test"):
    return {"step": step, "split": split, "bpd": bpd, "seconds": step / 7}


@pytest.mark.slow
def test_a_run_and_its_rerun_have_the_same_numbers(tmp_path, capsys):
    """With another batch size they differ, and the error names the first difference."""
    for name in ("first", "again", "other"):
        (tmp_path / name).mkdir()
    config = make_config(FIELDS, "configs/digits.py")
    train.run(config, tmp_path / "first")
    rerun.run(config, tmp_path / "again", tmp_path / "first")
    out = capsys.readouterr().out
    assert "started as before\nthe same as" in out and "to the last bit: " in out and "up to step 3" in out
    other = make_config(FIELDS | {"train.batch_size": 24}, "configs/digits.py")
    with pytest.raises(
        Failed, match=r"not the same as .*first: \w+ \w+ at step \d was .*up to step 0 \(0 lines\)"
    ):
        rerun.run(other, tmp_path / "other", tmp_path / "first")
    with pytest.raises(UserError, match="has no measurements yet"):
        rerun.run(config, tmp_path / "again", tmp_path)
    with pytest.raises(UserError, match="are both"):
        rerun.run(config, tmp_path / "first", tmp_path / "first")


def test_a_run_from_imported_parameters_is_refused(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "metrics.jsonl").write_text(json.dumps(row(1, 2.0)) + "\n")
    (tmp_path / "first" / "imported.json").write_text("{}")
    with pytest.raises(UserError, match="started from imported parameters"):
        rerun.run(make_config(file="configs/digits.py"), tmp_path / "W", tmp_path / "first")


def test_the_clock_is_no_difference_and_one_bit_is():
    ours = [row(1, 2.0), row(2, 1.5), row(3, 1.25)]
    others = [one | {"seconds": 99.0} for one in ours]
    assert "3 lines of metrics up to step 3" in rerun.verdict(ours, others, "W")
    assert "1 lines of metrics up to step 2" in rerun.verdict(ours, [row(2, 1.5), row(9, 1.0)], "W")
    with pytest.raises(
        Failed, match=r"test bpd at step 2 was 1.5000000000000002, is 1.5; .*up to step 1 \(1 lines\)"
    ):
        rerun.verdict(ours, [row(1, 2.0), row(2, 1.5000000000000002)], "W")
    with pytest.raises(Failed, match="no step in common"):
        rerun.verdict(ours, [row(8, 1.0)], "W")


def test_a_start_says_commit_change_versions_devices_and_command(tmp_path, monkeypatch):
    """A changed checkout also gives a patch that git applies; a package outside a checkout gives nothing."""
    package = tmp_path / "repo" / "vdm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("one = 1\n")

    def git(*args):
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", tmp_path / "repo", *author, *args], check=True, capture_output=True
        )

    assert provenance.of_checkout(package) == {}
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = provenance.of_checkout(package)
    assert len(clean["commit"]) == 40 and clean["changed"] == [] and "patch" not in clean
    (package / "__init__.py").write_text("one = 2\n")
    monkeypatch.setattr(provenance.vdm, "__file__", str(package / "__init__.py"))
    workdir = tmp_path / "W"
    workdir.mkdir()
    provenance.write(workdir, 0, ["vdm.main", "--workdir=W"])
    provenance.write(workdir, 5, ["vdm.main", "--workdir=W"])
    first, second = provenance.read(workdir)
    assert (first["step"], second["step"]) == (0, 5) and first["command"] == ["vdm.main", "--workdir=W"]
    assert first["changed"] == [" M vdm/__init__.py"] and first["commit"] == clean["commit"]
    assert {"python", "jax", "devices", "processor", "cores", "time"} <= set(first)
    git("checkout", "-q", ".")
    git("apply", str(workdir / first["patch"]))
    assert (package / "__init__.py").read_text() == "one = 2\n"

    older = {name: value for name, value in first.items() if name != "processor"}
    assert provenance.differences(second | {"processor": "other"}, older) == []
    assert len(provenance.differences(second | {"processor": "other"}, first)) == 1
    found = provenance.differences(second | {"jax": "9"}, first)
    assert found == [f"jax was {first['jax']!r}, is '9'"]
    (workdir / "provenance.json").write_text("{")
    assert provenance.read(workdir) == [] and json.dumps(first)
