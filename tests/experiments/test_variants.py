"""Variants by flags, what a study keeps of them, and the status of its runs."""

import dataclasses
import os
import pathlib
import time

from ml_collections import ConfigDict
import pytest

from conftest import make_config, undescribed
from record_helpers import line, write_workdir
from sweep_helpers import study_here
from vdm.errors import UserError
from vdm.sweep import __main__ as own, differences, plan, saved, status, study, variants


def test_a_grid_is_every_combination():
    found = variants.of_grid(
        ["config.model.schedule.name=cosine,mine.cubic:Cubic", "optimizer.learning_rate=1e-3,3e-3"]
    )
    assert list(found) == [
        "cosine+learning_rate=1e-3", "cosine+learning_rate=3e-3", "Cubic+learning_rate=1e-3",
        "Cubic+learning_rate=3e-3",
    ]  # fmt: skip
    assert found["Cubic+learning_rate=3e-3"] == {
        "model.schedule.name": "mine.cubic:Cubic", "optimizer.learning_rate": "3e-3"
    }  # fmt: skip
    assert variants.of_grid([]) == {}
    assert list(variants.of_grid(["a.b=((1,2),3),4"])) == ["b=__1_2__3_", "b=4"]


def test_named_variants():
    found = variants.named(
        ["slow: config.optimizer.learning_rate=1e-4 train.steps=40", "as it is".replace(" ", "_")]
    )
    assert found == {"slow": {"optimizer.learning_rate": "1e-4", "train.steps": "40"}, "as_it_is": {}}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: variants.of_grid(["model.schedule.name"]),
            "--vary is 'model.schedule.name'; accepted: a field",
        ),
        (lambda: variants.of_grid(["a=1", "a=2"]), "--vary has 'a' twice"),
        (lambda: variants.of_grid(["s.name=a:X,b:X"]), "two variants named 'X'; name them by --variant"),
        (lambda: variants.named(["a b: c=1"]), "--variant is 'a b: c=1'; accepted: a name of letters"),
        (lambda: variants.named(["a: c"]), "--variant is 'a: c'; accepted"),
        (lambda: variants.named(["a: c='1"]), "No closing quotation"),
        (lambda: variants.named(["a: c=1", "a: c=2"]), "two variants named 'a'"),
        (
            lambda: variants.merge({"a": {"c": 1}}, {"a": {"c": 2}}),
            "'a' is config.c=2, but this study has a variant of that name",
        ),
    ],
)
def test_what_is_no_variant_is_refused(call, text):
    with pytest.raises(UserError, match=text):
        call()


def test_what_a_value_was_given_as_does_not_matter_to_a_study_that_goes_on():
    assert variants.merge({"a": {"c": 1e-3}}, {"a": {"c": "0.001"}}) == {"a": {"c": 1e-3}}


@pytest.mark.parametrize(
    ("steps", "substeps", "every"), [(150, 20, 15), (4000, 20, 400), (800, 20, 80), (101, 20, 10), (7, 20, 1)]
)
def test_a_curve_has_ten_points_or_a_few_more(steps, substeps, every):
    """Other periodic actions fall on points too, so that few lengths of a call are compiled."""
    config = make_config({"train.steps": steps, "train.substeps": substeps}, "configs/digits.py")
    found = plan.often(config, ())
    assert found["eval_every"] == every and (10 <= steps // every <= 20 or steps < 10)
    assert all(value % every == 0 for value in found.values()) and found.get("log_every") != 0
    assert plan.often(config, {"train.eval_every"}) == {}
    assert "log_every" not in plan.often(config, {"train.log_every"})


GOOD = "--config.train.steps=150"


def test_a_study_by_flags_is_kept_and_grows(tmp_path):
    """Run again without its flags, it is the same study. Another variant is added to it. What does not fit is
    refused before anything runs."""
    cosine = "--variant=cosine: model.schedule.name=cosine"
    code, out, err = study_here(tmp_path, {"plain": {}}, GOOD, cosine, "--seeds=2", "--figures")
    assert code == 0, err
    kept = saved.read(tmp_path / "W")
    assert (kept.names, kept.baseline, kept.seeds) == (["plain", "cosine"], None, 2)
    assert kept.args == [GOOD] and kept.variants == {"cosine": {"model.schedule.name": "cosine"}}

    # A field alone is added for all variants. A variant may override what a study sets by default.
    code, out, err = study_here(tmp_path, {"plain": {}}, "--config.train.steps=300", "--dry_run")
    assert code == 0 and all("--config.train.steps=300" in row for row in out.splitlines()), err

    # So does the command that names the config again.
    code, out, err = study_here(tmp_path, {"plain": {}}, "--config=configs/digits.py", "--dry_run")
    assert code == 0 and all(GOOD in row for row in out.splitlines()), err

    # The cache is kept, too; and the path in study.json may be relative, as in older versions.
    study_here(tmp_path, {"plain": {}}, "--cache=", "--figures")
    relative = dataclasses.replace(saved.read(tmp_path / "W"), file="configs/digits.py")
    saved.write(tmp_path / "W", relative)
    code, out, err = study_here(tmp_path, {"plain": {}}, "--dry_run")
    assert code == 0 and all(GOOD in row and "--cache=" in row for row in out.splitlines()), err

    fast = "--variant=fast: optimizer.learning_rate=1e-2"
    code, out, err = study_here(tmp_path, {"plain": {}}, fast, "--baseline=cosine", "--dry_run")
    assert code == 0 and out.count("\n") == 6 and all(GOOD in row for row in out.splitlines()), err
    for flags, text in (
        (
            ["--variant=cosine: model.schedule.name=sigmoid"],
            "'cosine' is config.model.schedule.name=sigmoid, but",
        ),
        (["--variant=same: model.schedule.name=cosine"], "variants 'cosine' and 'same' are the same"),
        (["--variant=x: model.schedule.nam=cosine"], "variant 'x': config.model.schedule.nam"),
        (["--baseline=cos"], "--baseline is 'cos'; accepted: 'plain', 'cosine'"),
        ([GOOD, "--config.train.ema=0.5"], "with another base config: train.ema was"),
        (["--width=1"], "--width is 1.0; accepted: 2 to 20 inches"),
        (["--log=z"], "--log has z; accepted: x, y"),
        (["--panels=step,step"], "--panels has step twice"),
        (["--panels=prio"], "--panels is 'prio'; accepted: 'step'"),
        (["--panels=operations"], "only studies with --minutes measure"),
        (["--gpus=0", "--jobs=2"], "--gpus and --jobs are both given"),
        (["--vary=seed=1,2"], "sets the seed; give --seeds"),
    ):
        code, out, err = study_here(tmp_path, {"plain": {}}, *flags)
        assert code == 2 and text in err and err.count("\n") == 1, err
    assert not list(tmp_path.glob("W/*/log.txt"))


def test_a_study_of_several_configs_goes_on_by_the_same_command(tmp_path):
    grid = {"plain": {"config": "configs/digits.py"}, "vae": {"config": "configs/vae.py"}}
    for flags in (["--seeds=1", "--figures"], ["--seeds=1", "--dry_run"], ["--dry_run"]):
        code, out, err = study_here(tmp_path, grid, *flags)
        assert code == 0, err
    assert out.count("\n") == 2


def test_a_damaged_study_is_one_line(tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match="study.json' is damaged"):
        saved.read(tmp_path)


def test_status_says_what_each_run_does(tmp_path):
    config = ConfigDict({"train": {"steps": 300}})
    done = write_workdir(tmp_path / "done-0", [line(300, 2.0)], final=line(300, 2.0))
    (done / "checkpoints" / "300").mkdir(parents=True)
    train = line(150, 2.5, split="train") | {"steps_per_second": 10.0}
    goes = write_workdir(tmp_path / "goes-0", [line(100, 2.4), train])
    still = write_workdir(tmp_path / "still-0", [line(100, 2.4)])
    hours_ago = time.time() - 7200
    os.utime(still / "metrics.jsonl", (hours_ago, hours_ago))
    (tmp_path / "new-0").mkdir()
    (tmp_path / "new-0" / "log.txt").touch()
    (tmp_path / "bad-0").mkdir()
    (tmp_path / "bad-0" / "log.txt").write_text("one\nerror: no such data\n\n")
    folders = [done, goes, still, tmp_path / "new-0", tmp_path / "none-0", tmp_path / "bad-0"]
    text = status.table([plan.Trial(folder.name, folder, config, []) for folder in folders])
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:8]]
    assert cells == [
        ["done-0", "finished", "300", "300", "2.0000", "", ""],
        ["goes-0", "running", "150", "300", "2.4000", "10", "0:00:15"],
        ["still-0", "no output for 2:00:00", "100", "300", "2.4000", "–", "–"],
        ["new-0", "starting", "0", "300", "–", "", ""],
        ["none-0", "waiting", "0", "300", "–", "", ""],
        ["bad-0", "failed: no such data", "0", "300", "–", "", ""],
    ]
    assert text.endswith("1 of 6 runs have finished.")


def test_a_study_writes_what_its_folder_is_said_to_have(tmp_path):
    found = {}
    for name, shift in (("plain", 0.0), ("other", 0.1)):
        found[name] = [
            write_workdir(
                tmp_path / f"{name}-{seed}", [line(step, 3.0 + shift) for step in (100, 200, 300)], seed,
                final=line(300, 2.0 + shift), images=[2.0 + shift, 2.1, 1.9, 2.0 + seed],
            )
            for seed in (0, 1)
        ]  # fmt: skip
    for flag in study.FLAGS:
        study.FLAGS[flag].unparse()
    study.FLAGS([""])
    written = [*study.table_and_curves(tmp_path, found), *differences.write(found, tmp_path, "plain")]
    assert {"differences.tex", "curves.pdf", "table.md"} <= {pathlib.Path(path).name for path in written}
    assert not undescribed(tmp_path, saved.FILES)


def test_a_study_of_the_package_is_what_flags_say(tmp_path):
    """The grid is "base" alone, or empty if --vary defines the variants."""
    for given, grid in (([], {"base": {}}), (["--vary=a=1,2"], {})):
        for flag in study.FLAGS:
            study.FLAGS[flag].unparse()
        study.FLAGS(["", f"--workdir={tmp_path}", *given])
        assert own.grid(None) == grid
    for flag in study.FLAGS:
        study.FLAGS[flag].unparse()
