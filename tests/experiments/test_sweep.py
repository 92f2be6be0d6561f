"""Sweeps: what they would run, what counts as finished, and bad input."""

import os
import signal
import subprocess

from absl.flags import FlagValues
import pytest

from sweep_helpers import study_here, trial_of
from vdm.errors import Failed, UserError
from vdm.sweep import cluster, command, plan


def test_finished_is_the_last_step_evaluated_and_saved(tmp_path):
    trial = trial_of(tmp_path, "good-0")
    trial.folder.mkdir()
    assert not plan.finished(trial)
    (trial.folder / "eval.json").write_text('{"step": 3}')
    assert not plan.finished(trial)  # killed before the last checkpoint
    (trial.folder / "checkpoints" / "2").mkdir(parents=True)
    assert not plan.finished(trial)
    (trial.folder / "checkpoints" / "3").mkdir()
    assert plan.finished(trial)
    # Trained for longer, it was killed after its last checkpoint and before its second final estimate.
    last = '{"step": 2, "split": "final"}\n{"step": 3, "split": "test"}\n'
    (trial.folder / "metrics.jsonl").write_text(last)
    assert not plan.finished(trial)
    (trial.folder / "metrics.jsonl").write_text(last + '{"step": 3, "split": "final"}\n')
    assert plan.finished(trial)
    # Evaluated again at its best checkpoint, it stays finished.
    (trial.folder / "eval.json").write_text('{"step": 2}')
    assert plan.finished(trial)


def test_dry_run_prints_what_a_shell_reads_as_the_arguments_run(tmp_path):
    """A shell runs the lines with a `python` that records its arguments."""
    odd = "a b'c\"$HOME"
    own = {"model.schedule.name": "cosine", "train.ema": 1e-05, "train.log_every": 7}
    data = ["--config.data.name=npz", f"--config.data.data_dir={odd}"]
    flags = ["--config.train.keep", "5", "--seeds=1", "--dry_run"]
    code, out, err = study_here(tmp_path, {"plain": {}, "cosine": own}, *data, *flags)
    assert code == 0 and not (tmp_path / "W").exists(), err
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/args$(ls {tmp_path} | grep -c args)\n')
    python.chmod(0o755)
    subprocess.run(["sh", "-c", out], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    _, cached, _ = study_here(tmp_path, {"plain": {}}, "--cache=/scratch", "--seeds=1", "--dry_run")
    assert cached.strip().endswith(" --cache=/scratch")
    start = ["-m", "vdm.main", "--config=configs/digits.py"]
    by_user = [*data, "--config.train.keep=5"]
    every = {"eval_every": 200, "checkpoint_every": 400}
    points = [f"--config.train.{name}={value}" for name, value in every.items()]
    plain = [*start, f"--workdir={tmp_path}/W/plain-0", *by_user, *points, "--config.seed=0"]
    cosine = [
        *start, f"--workdir={tmp_path}/W/cosine-0", *by_user, "--config.model.schedule.name=cosine",
        "--config.train.ema=1e-05", "--config.train.log_every=7", *points, "--config.seed=0",
    ]  # fmt: skip
    read = [(tmp_path / f"args{number}").read_text().splitlines() for number in range(2)]
    assert read == [plain, cosine]


BAD = {
    "field": (["--config.train.stepz=3"], "config.train.stepz", "Did you mean 'steps'?"),
    "seed": (["--config.seed=3"], "--config.seed", "--seeds"),
    "variant": (["--only=god"], "--only is 'god'", "'good', 'bad'", "Did you mean 'good'?"),
    "config": (["--config=configs/digit.py"], "'configs/digit.py'", "'configs/digits.py'?"),
    "another's flag": (["--mode=eval"], "--mode is not a flag"),
    "a misspelt flag": (["--job=3"], "--job is not a flag", "Did you mean '--jobs'?"),
    "no flag": (["here"], "'here' is not a flag"),
    "a bad value": (["--seeds=0"], "--seeds=0"),
    "option": (["--cluster=local", "--cluster_options=x"], "'x'", "NAME=VALUE"),
    "name of option": (["--cluster=local", "--cluster_options=slurm_x=1"], "slurm_x"),
    "options alone": (["--cluster_options=x=1"], "'x=1'", "--cluster=slurm"),
    "best": (["--config.eval.checkpoint=best"], "'best'", "'newest'"),
    "no Slurm": (["--cluster=slurm"], "srun"),
}


def test_options_of_a_cluster():
    """A comma also separates the parts of a value. Values are those of Python, or text."""
    options = "slurm_partition=gpu,slurm_exclude=n1,n2,mem_gb=7.5,slurm_use_srun=False".split(",")
    assert cluster.joined(options) == [*options[:1], "slurm_exclude=n1,n2", *options[3:]]
    values = {"7.5": 7.5, "False": False, "['module load cuda']": ["module load cuda"], "600": 600}
    values |= dict.fromkeys(["gpu", "n1,n2", "1,2", "24:00:00", "0700"])
    for text, value in values.items():
        assert cluster.value_of(text) == (text if value is None else value)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_starts_nothing(case, tmp_path, monkeypatch):
    flags, *texts = BAD[case]
    if case == "no Slurm":
        monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = study_here(tmp_path, {"good": {}, "bad": {}}, *flags)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    for text in texts:
        assert text in err
    assert not list(tmp_path.glob("W/*/log.txt"))


@pytest.mark.parametrize(
    ("raised", "exit_code"),
    [
        (Failed("no room"), 1),
        (UserError("no"), 2),
        (signal.SIGUSR1, 75),
        (signal.SIGTERM, 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(raised, exit_code):
    """Also of a signal while a study times steps or computes its results."""

    def run(others):
        with command.stoppable():
            if isinstance(raised, signal.Signals):
                signal.raise_signal(raised)
            raise raised

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        command.main("", FlagValues(), run, [])
    assert ended.value.code == exit_code and signal.getsignal(signal.SIGTERM) == before


def test_help(tmp_path):
    code, out, _ = study_here(tmp_path, {"good": {}}, "--help")
    assert code == 0 and out.startswith("The help of a study.")
    assert "--workdir" in out and "seeds of each variant: 0, 1" in out


@pytest.mark.parametrize(
    "fields, texts",
    [
        ({"model.schedule.nam": "cosine"}, ("config.model.schedule.nam", "Did you mean 'name'?")),
        ({"model.schedule.name": "cosin"}, ("config.model.schedule.name", "Did you mean 'cosine'?")),
        ({"model.schedule.name": "cosine", "model.schedule.parts": 3}, ("parts", "'cosine'")),
    ],
)
def test_a_field_of_the_grid_that_is_none(fields, texts, tmp_path):
    code, _, err = study_here(tmp_path, {"good": fields})
    assert code == 2 and err.startswith("error: variant 'good': ") and err.count("\n") == 1
    assert all(text in err for text in texts), err


@pytest.mark.parametrize("ends", [("", ".name"), (".name", "")])
def test_a_component_of_a_variant_is_not_set_for_all(ends, tmp_path):
    """Neither by its section nor by the field name of the section; otherwise one would be ignored."""
    of_grid, given = (f"model.schedule{end}" for end in ends)
    code, _, err = study_here(tmp_path, {"good": {of_grid: "cosine"}}, f"--config.{given}=sigmoid")
    assert code == 2 and f"--config.{given} cannot be set: the study sets the field in 'good'" in err


def test_a_variant_of_another_config(tmp_path):
    """The user's fields apply to it too, but the user cannot set fields that the study sets."""
    grid = {"good": {"config": "configs/vae.py", "model.latent": 3, "train.ema": 0.5}}
    flags = ["--config.train.keep=5", "--seeds=1", "--dry_run"]
    code, out, err = study_here(tmp_path, grid | {"plain": {}}, *flags)
    assert code == 0, err
    want = "--config=configs/vae.py --workdir={}/W/good-0 --config.train.keep=5 --config.model.latent=3"
    assert want.format(tmp_path) in out
    code, out, err = study_here(tmp_path, grid, "--dry_run")
    assert code == 2 and "this study uses its own configs: configs/vae.py; leave it out" in err
    grid["plain"] = {}
    code, out, err = study_here(
        tmp_path, grid | {"bad": {"config": "configs/vae.py", "model.latnt": 3}}, "--dry_run"
    )
    assert code == 2 and "variant 'bad'" in err and "model.latnt" in err
    code, out, err = study_here(tmp_path, grid, "--config.train.ema=0.9", "--dry_run")
    assert code == 2 and "--config.train.ema cannot be set: the study sets the field in 'good'" in err
