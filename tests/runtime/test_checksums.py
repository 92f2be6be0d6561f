"""Damaged checkpoints are found and set aside; intact ones are used."""

import json
import os
import pathlib
import shutil

import pytest
import xxhash

from vdm.runtime import checksums


@pytest.fixture
def workdir(tmp_path):
    """Three checkpoints of a few small files each, as orbax writes them."""
    for step in (2, 10, 12):
        folder = tmp_path / "checkpoints" / str(step)
        for name in ("state/d/a", "state/d/b", "state/_METADATA", "rest/metadata", "metrics/metrics"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(os.urandom(100))
        checksums.write(folder)
        (folder / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')
    return tmp_path


def test_all_are_whole(workdir, capsys):
    assert checksums.whole_steps(workdir, move=True) == [2, 10, 12]
    assert capsys.readouterr().err == "" and not (workdir / "damaged").exists()


def flip(path: pathlib.Path):
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit": (lambda f: flip(f / "state/d/b"), "state/d/b differs from what was written"),
    "a bit of the metrics": (lambda f: flip(f / "metrics/metrics"), "metrics/metrics differs from what was"),
    "longer": (lambda f: (f / "rest/metadata").open("ab").write(b"x"), "rest/metadata differs from what was"),
    "emptied": (lambda f: os.truncate(f / "state/d/a", 0), "state/d/a differs from what was written"),
    "a file gone": (lambda f: (f / "state/_METADATA").unlink(), "state/_METADATA is missing"),
    "checksums emptied": (lambda f: os.truncate(f / "checksums.json", 0), "checksums.json or .* cannot be"),
    "checksums changed": (
        lambda f: (f / "checksums.json").write_text(
            (f / "checksums.json").read_text().replace("[100, ", "[101, ")
        ),
        "checksums.json is damaged",
    ),
    "checksums of another shape": (lambda f: (f / "checksums.json").write_text("[1]"), "cannot be parsed"),
    "orbax's own emptied": (lambda f: os.truncate(f / "_CHECKPOINT_METADATA", 0), "cannot be parsed"),
    "orbax's own gone": (lambda f: (f / "_CHECKPOINT_METADATA").unlink(), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_set_aside(name, workdir, capsys):
    damage, why = DAMAGE[name]
    damage(workdir / "checkpoints" / "12")
    kept = {p.name: p.read_bytes() for p in (workdir / "checkpoints/12").rglob("*") if p.is_file()}
    assert checksums.whole_steps(workdir, move=True) == [2, 10]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the checkpoint of step 12 is damaged (") and "moved to" in line
    assert why.split(".*")[0] in line and why.split(".*")[-1] in line
    aside = {p.name: p.read_bytes() for p in (workdir / "damaged/12").rglob("*") if p.is_file()}
    assert aside == kept, "nothing of it is deleted"
    assert checksums.whole_steps(workdir, move=True) == [2, 10] and capsys.readouterr().err == ""


def test_an_empty_folder_and_a_second_of_the_same_step(workdir):
    for _ in range(2):
        (workdir / "checkpoints" / "50").mkdir()
        assert checksums.whole_steps(workdir, move=True) == [2, 10, 12]
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["50", "50-1"]


def test_where_another_process_trains_nothing_is_moved(workdir, capsys):
    flip(workdir / "checkpoints/10/state/d/a")
    assert checksums.whole_steps(workdir, move=False) == [2, 12]
    said = capsys.readouterr().err
    assert "step 10 is damaged" in said and "left out" in said
    assert (workdir / "checkpoints" / "10").is_dir() and not (workdir / "damaged").exists()


def test_one_of_an_older_version_has_no_checksums(workdir):
    (workdir / "checkpoints/12/checksums.json").unlink()
    assert checksums.whole_steps(workdir, move=True) == [2, 10, 12]


def test_what_is_being_written_and_other_names_are_no_checkpoints(workdir):
    (workdir / "checkpoints" / "14.orbax-checkpoint-tmp").mkdir()
    (workdir / "checkpoints" / "notes").mkdir()
    assert checksums.whole_steps(workdir, move=True) == [2, 10, 12]
    assert checksums.whole_steps(workdir / "nowhere", move=True) == []


def test_the_sums_are_those_of_the_bytes(workdir):
    said = json.loads((workdir / "checkpoints/2/checksums.json").read_text())["files"]
    assert set(said) == {"state/d/a", "state/d/b", "state/_METADATA", "rest/metadata", "metrics/metrics"}
    # The sum over blocks is that of the whole file; an empty file has the value in the specification of XXH3.
    (workdir / "checkpoints/2/state/d/a").write_bytes(bytes(range(256)) * 5000)
    (workdir / "checkpoints/2/state/d/b").write_bytes(b"")
    checksums.write(workdir / "checkpoints/2")
    said = json.loads((workdir / "checkpoints/2/checksums.json").read_text())["files"]
    assert said["state/d/a"] == [1_280_000, xxhash.xxh3_64_hexdigest(bytes(range(256)) * 5000)]
    assert said["state/d/b"] == [0, "2d06800538d394c2"]


def test_where_training_deletes_all_that_were_listed_the_newer_ones_are_found(workdir, monkeypatch):
    """As happens if it saves many times a second."""
    whole, later = checksums.damage, [20, 30]
    shutil.copytree(workdir / "checkpoints/12", workdir / "copy")

    def overtaken(folder):
        if later:
            shutil.rmtree(workdir / "checkpoints")
            shutil.copytree(workdir / "copy", workdir / "checkpoints" / str(later.pop(0)))
        return whole(folder)

    monkeypatch.setattr(checksums, "damage", overtaken)
    assert checksums.whole_steps(workdir, move=False) == [30]
