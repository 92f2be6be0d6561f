"""Sweeps of stand-in commands, which count their starts and signals; and one of a real run."""

import json
import os
import signal
import subprocess
import sys
import time

from ml_collections import ConfigDict
import pytest

from conftest import ROOT, TINY, command
from experiments import jobs, sweep

# In place of vdm.main: what it does is in the name of its folder.
STAND_IN = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
kind = folder.name.split("-")[0]

def count(name):
    with (folder / name).open("a") as file:
        file.write(".")
    return len((folder / name).read_text())

starts = count("starts")
if kind == "bad":
    print("error: no such data\\nof no use")
    sys.exit(2)
if kind == "killed" and starts == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "stubborn":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    count("ready")
    time.sleep(100)
if kind == "slow" and starts == 1:
    signal.signal(signal.SIGINT, lambda *_: count("signals"))
    count("ready")
    while not (folder / "signals").exists():
        time.sleep(0.02)
    time.sleep(0.5)  # for a second signal, if there is one
    print("stopped, saved")
    sys.exit(130)
(folder / "metrics.jsonl").write_text(json.dumps({"step": 3, "seconds": 7.0}))
(folder / "eval.json").write_text(json.dumps({"step": 3, "bpd": 1.5, "bpd_se": 0.25}))
(folder / "checkpoints" / "3").mkdir(parents=True, exist_ok=True)
"""

STUDY = """'''The help of a study.'''
import json, signal, sys

# The tests themselves may run where these are ignored, as behind nohup … &.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from experiments import sweep

def grid(config):
    return json.loads({grid!r})

def results(workdir, found):
    path = workdir / "found.json"
    path.write_text(json.dumps({{name: [folder.name for folder in found[name]] for name in found}}))
    return [path]

if {stand_in!r}:
    sweep.command = lambda file, folder, fields: [sys.executable, "-S", {stand_in!r}, str(folder)]
sweep.main(__doc__, grid, results, config="configs/digits.py")
"""


@pytest.fixture
def study(tmp_path):
    """(grid, *flags) → the process of a study in tmp_path/W, of stand-ins unless `real`."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def start(grid, *args, real=False, path=tmp_path, **kwargs):
        stand_in = "" if real else str(tmp_path / "stand_in.py")
        grid = grid if isinstance(grid, dict) else {name: {} for name in grid.split()}
        (tmp_path / "study.py").write_text(STUDY.format(grid=json.dumps(grid), stand_in=stand_in))
        args = [f"--workdir={tmp_path / 'W'}", *([] if real else ["--config.train.steps=3"]), *args]
        env = command(tmp_path)[1]  # one device
        env |= {"PYTHONPATH": f"{path}:{ROOT}", "PATH": f"{path}:{env['PATH']}"}
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "study.py"), *args], env=env, cwd=ROOT,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **kwargs,
        )  # fmt: skip

    return start


def ended(process):
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=100)
    return process.returncode, out, err


def counted(workdir, name):
    """{folder: how often the stand-in counted that}."""
    return {path.parent.name: len(path.read_text()) for path in workdir.glob(f"*/{name}")}


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def run_of(tmp_path, name):
    """A Run of a stand-in."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    line = [sys.executable, "-S", str(tmp_path / "stand_in.py"), str(tmp_path / name)]
    return sweep.Run(name, tmp_path / name, ConfigDict({"train": {"steps": 3}}), line)


def test_does_what_is_missing_and_tells_what_failed(study, tmp_path):
    """A run that fails and one that is killed stop no other; again, only these are started."""
    workdir = tmp_path / "W"
    code, out, err = ended(study("good bad killed", "--jobs=2"))
    assert code == 1, out + err
    assert "0 of 6 runs have finished; 6 to run" in out and "4 of 6 runs failed" in err
    assert "6/6 " in out and "good-1: 1.5000 ± 0.2500 bits/dim, 7 s" in out
    assert f"bad-0: no such data (see {workdir}/bad-0/log.txt)" in err and "bad-1: no such data" in err
    assert "killed-0: killed by SIGKILL" in err
    assert set(counted(workdir, "starts").values()) == {1}
    assert json.loads((workdir / "found.json").read_text()) == {"good": ["good-0", "good-1"]}

    code, out, err = ended(study("good bad killed"))
    assert code == 1 and "2 of 6 runs have finished; 4 to run" in out and "2 of 4 runs failed" in err
    assert counted(workdir, "starts") == {
        "good-0": 1, "good-1": 1, "bad-0": 2, "bad-1": 2, "killed-0": 2, "killed-1": 2,
    }  # fmt: skip
    found = {"good": ["good-0", "good-1"], "killed": ["killed-0", "killed-1"]}
    assert json.loads((workdir / "found.json").read_text()) == found

    code, out, err = ended(study("good bad killed", "--only=good,killed"))
    assert code == 0 and "4 of 6 runs have finished; 0 to run" in out
    assert counted(workdir, "starts")["good-0"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_stopped_it_stops_its_runs_by_one_signal_and_goes_on_later(number, study, tmp_path):
    """The signal goes to the whole process group, as from a terminal."""
    workdir = tmp_path / "W"
    process = study("slow good", "--jobs=1")
    wait_for(lambda: counted(workdir, "ready"))
    os.killpg(process.pid, number)
    code, out, err = ended(process)
    assert code == 130 and "the same command goes on" in out and not err.count("Traceback"), out + err
    assert "slow-0: stopped, saved" in out
    assert counted(workdir, "signals") == {"slow-0": 1}
    assert counted(workdir, "starts") == {"slow-0": 1}
    assert not (workdir / "found.json").exists()

    code, out, err = ended(study("slow good", "--seeds=1"))
    assert code == 0, out + err
    assert counted(workdir, "starts") == {"slow-0": 2, "good-0": 1}


def test_a_second_ctrl_c_kills(study, tmp_path):
    process = study("stubborn", "--seeds=1")
    wait_for(lambda: counted(tmp_path / "W", "ready"))
    process.send_signal(signal.SIGINT)
    assert "started" in (process.stdout.readline() + process.stdout.readline())
    assert "once more to kill" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, out, _ = ended(process)
    assert code == 130 and "stubborn-0: killed by SIGKILL" in out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")
def test_runs_do_not_outlive_a_killed_sweep(study, tmp_path):
    process = study("stubborn", "--seeds=1")
    wait_for(lambda: counted(tmp_path / "W", "ready"))
    process.kill()
    process.wait()
    again = jobs.Process(["true"], tmp_path / "W" / "stubborn-0")
    wait_for(lambda: again.start().poll() != "another process is at this run; wait for it, or end it")


def test_no_run_is_done_by_two(tmp_path):
    run = run_of(tmp_path, "stubborn-0")
    first, second = jobs.start([run])[0], jobs.start([run])[0]
    wait_for(lambda: counted(tmp_path, "ready"))
    assert first.poll() is None and "another process" in second.poll()
    first.send(signal.SIGKILL)
    wait_for(lambda: first.poll() == "killed by SIGKILL")
    assert counted(tmp_path, "starts") == {"stubborn-0": 1}


def test_why_it_failed_is_of_this_start_alone(tmp_path):
    """log.txt is appended to, and an error of an earlier start says nothing of this one."""

    def why(script):
        job = jobs.Process(["sh", "-c", script], tmp_path / "run")
        return job()

    assert why("echo 'error: the first'; echo then; exit 3") == "the first"
    assert why("echo the second; echo; exit 3") == "the second"
    assert why("exit 3") == "exit code 3"
    assert why("exit 0") == ""
    assert "No such file" in jobs.Process(["/nowhere/x"], tmp_path / "run")()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.index("the first") < log.index("the second")


def test_finished_is_the_last_step_evaluated_and_saved(tmp_path):
    run = run_of(tmp_path, "good-0")
    run.folder.mkdir()
    assert not sweep.finished(run)
    (run.folder / "eval.json").write_text('{"step": 3}')
    assert not sweep.finished(run)  # killed before the last checkpoint
    (run.folder / "checkpoints" / "2").mkdir(parents=True)
    assert not sweep.finished(run)
    (run.folder / "checkpoints" / "3").mkdir()
    assert sweep.finished(run)
    # Evaluated again at its best checkpoint, it stays finished.
    (run.folder / "eval.json").write_text('{"step": 2}')
    assert sweep.finished(run)


def test_dry_run_prints_what_a_shell_reads_as_the_arguments_run(study, tmp_path):
    """A shell runs the lines with a `python` that writes its arguments down."""
    odd = "a b'c\"$HOME"
    grid = {"plain": {}, "cosine": {"model.schedule.name": "cosine", "train.ema": 1e-05, "train.log_every": 7}}
    flags = [f"--config.data.data_dir={odd}", "--config.train.keep=5", "--seeds=1"]
    code, out, err = ended(study(grid, *flags, "--dry_run", real=True))
    assert code == 0 and not (tmp_path / "W").exists(), err
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/args$(ls {tmp_path} | grep -c args)\n')
    python.chmod(0o755)
    subprocess.run(["sh", "-c", out], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    start = ["-m", "vdm.main", "--config=configs/digits.py"]
    data = f"--config.data.data_dir={odd}"
    plain = [*start, f"--workdir={tmp_path}/W/plain-0", data, "--config.train.keep=5", "--config.seed=0"]
    cosine = [
        *start, f"--workdir={tmp_path}/W/cosine-0", data, "--config.train.keep=5", "--config.model.schedule.name=cosine",
        "--config.train.ema=1e-05", "--config.train.log_every=7", "--config.seed=0",
    ]  # fmt: skip
    read = [(tmp_path / f"args{number}").read_text().splitlines() for number in range(2)]
    assert read == [plain, cosine]
    assert sweep.command("configs/digits.py", tmp_path / "W/plain-0", {"seed": 0})[1:3] == start[:2]


BAD = {
    "field": (["--config.train.stepz=3"], "--config.train.stepz", "Did you mean 'train.steps'?"),
    "seed": (["--config.seed=3"], "--config.seed", "--seeds"),
    "variant": (["--only=god"], "--only is 'god'", "'good', 'bad'", "Did you mean 'good'?"),
    "config": (["--config=configs/digit.py"], "'configs/digit.py'", "'configs/digits.py'?"),
    "another's flag": (["--mode=eval"], "--mode is no flag"),
    "option": (["--cluster=local", "--cluster_options=x"], "'x'", "NAME=VALUE"),
    "name of option": (["--cluster=local", "--cluster_options=slurm_x=1"], "slurm_x"),
    "options alone": (["--cluster_options=x=1"], "'x=1'", "--cluster=slurm"),
    "no Slurm": (["--cluster=slurm"], "srun"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_starts_nothing(case, study, tmp_path):
    flags, *texts = BAD[case]
    code, out, err = ended(study("good bad", *flags, real=True))
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    for text in texts:
        assert text in err
    assert not list(tmp_path.glob("W/*/log.txt"))


def test_a_field_of_the_grid_that_is_none(study):
    code, _, err = ended(study({"good": {"model.schedule.nam": "cosine"}}, real=True))
    assert code == 2 and "variant 'good'" in err and "Did you mean 'model.schedule.name'?" in err


def test_a_variant_of_another_config(study, tmp_path):
    """What the user sets goes for it too; but not what the study sets itself."""
    grid = {"good": {"config": "configs/vae.py", "model.latent": 3}}
    code, out, err = ended(study(grid | {"plain": {}}, "--config.train.keep=5", "--seeds=1", "--dry_run", real=True))
    assert code == 0, err
    want = "--config=configs/vae.py --workdir={}/W/good-0 --config.train.keep=5 --config.model.latent=3 --config.seed=0"
    assert want.format(tmp_path) in out
    code, out, err = ended(study(grid, "--dry_run", real=True))
    assert code == 2 and "this study has configs of its own: configs/vae.py; leave it out" in err
    grid["plain"] = {}
    code, out, err = ended(study(grid | {"bad": {"config": "configs/vae.py", "model.latnt": 3}}, "--dry_run", real=True))
    assert code == 2 and "variant 'bad'" in err and "model.latnt" in err
    code, out, err = ended(study(grid, "--config.model.latent=5", "--dry_run", real=True))
    assert code == 2 and "--config.model.latent cannot be set: the study itself sets it, in 'good'" in err


def test_submitit_is_named_where_it_is_absent(study, tmp_path):
    (tmp_path / "submitit.py").write_text("raise ImportError")
    code, _, err = ended(study("good", "--cluster=local"))
    assert code == 2 and "pip install -e '.[slurm]'" in err


# ---- on a cluster -----------------------------------------------------------------------


def test_submitted_to_submitit_on_this_machine(tmp_path):
    runs = [run_of(tmp_path, name) for name in ("good-0", "bad-0")]
    executor = jobs.make_executor("local", tmp_path / "submitit", [])
    failed = sweep.run_all(runs, lambda new: jobs.submit(executor, new), len(runs))
    assert failed == {tmp_path / "bad-0": "no such data"}
    assert sweep.finished(runs[0]) and counted(tmp_path, "starts") == {"good-0": 1, "bad-0": 1}


def test_a_job_whose_time_is_up_saves_and_is_queued_again(tmp_path):
    """Slurm sends SIGUSR2 to all processes of the job; submitit's then asks for a checkpoint."""
    run = run_of(tmp_path, "slow-0")
    job = jobs.Process(run.command, run.folder).start()
    wait_for(lambda: counted(tmp_path, "ready"))
    job.send(signal.SIGUSR2)
    again = job.checkpoint()
    assert job.poll() == "stopped, saved" and counted(tmp_path, "signals") == {"slow-0": 1}
    assert again.result() == "" and sweep.finished(run)
    assert counted(tmp_path, "starts") == {"slow-0": 2}


# Slurm's commands. sbatch keeps the script, and runs each task of an array of two unless told not to.
SLURM = {
    "sbatch": """cp "$1" {folder}/script
[ -e {folder}/queue_only ] || for task in 0 1; do
SLURM_JOB_ID=$((8 + task)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task sh {folder}/script > /dev/null 2>&1 &
done
echo Submitted batch job 7""",
    "srun": """while [ "${{1#--}}" != "$1" ]; do [ "$1" = --unbuffered ] || shift; shift; done; exec "$@" """,
    "scancel": """echo "$1" >> {folder}/cancelled""",
    "sacct": """echo 'JobID|State|NodeList'
sed 's/$/|CANCELLED|x/' {folder}/cancelled 2> /dev/null; true""",
}
OPTIONS = ["--cluster=slurm", "--cluster_options=slurm_partition=gpu,timeout_min=600,gpus_per_node=1"]


@pytest.fixture
def slurm(tmp_path):
    """Puts Slurm's commands where the study finds them."""
    for name, script in SLURM.items():
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + script.format(folder=tmp_path) + "\n")
        path.chmod(0o755)


def test_submitted_to_slurm_as_one_array(slurm, study, tmp_path):
    code, shown, err = ended(study("good", *OPTIONS, "--dry_run"))
    assert code == 0 and not (tmp_path / "W").exists(), err
    code, out, err = ended(study("good", *OPTIONS))
    assert code == 0 and "good-1: 1.5000" in out, out + err
    assert counted(tmp_path / "W", "starts") == {"good-0": 1, "good-1": 1}
    script = (tmp_path / "script").read_text()
    for option in ("array=0-1%2", "partition=gpu", "time=600", "gpus-per-node=1", "job-name=W"):
        assert f"#SBATCH --{option}\n" in script
    assert shown.startswith(script)
    tasks = shown.removeprefix(script).strip().splitlines()
    assert [line.split(": ")[0] for line in tasks] == ["# task 0", "# task 1"]
    assert f"{tmp_path}/W/good-1" in tasks[1]


def test_stopped_it_cancels_what_is_queued(slurm, study, tmp_path):
    (tmp_path / "queue_only").touch()
    process = study("good", *OPTIONS)
    wait_for((tmp_path / "script").exists)
    assert "0 of 2 runs have finished; 2 to run" in process.stdout.readline()
    assert "started" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert code == 130 and "the same command goes on" in out, out + err
    assert (tmp_path / "cancelled").read_text().split() == ["7_0", "7_1"]


# ---- a real run -------------------------------------------------------------------------


def test_a_study_of_real_runs(study, tmp_path):
    """One tiny run to its end; then there is nothing to do, and another config is refused."""
    grid = {"narrow": {"model.net.fourier": 1}}
    tiny = [f"--{name}={value}" for name, value in TINY.items() if name != "config"] + ["--seeds=1"]
    code, out, err = ended(study(grid, *tiny, real=True))
    assert code == 0 and "1/1 narrow-0: " in out and " bits/dim, " in out, out + err
    assert json.loads((tmp_path / "W" / "found.json").read_text()) == {"narrow": ["narrow-0"]}
    config = json.loads((tmp_path / "W" / "narrow-0" / "config.json").read_text())
    assert config["model"]["net"]["fourier"] == 1 and config["train"]["steps"] == TINY["config.train.steps"]

    code, out, err = ended(study(grid, *tiny, real=True))
    assert code == 0 and "1 of 1 runs have finished; 0 to run" in out
    code, out, err = ended(study({"narrow": {"model.net.fourier": 2}}, *tiny, real=True))
    assert code == 2 and "model.net.fourier was 1, is 2" in err
    code, out, err = ended(study(grid, *tiny, "--config.eval.passes=3", real=True))
    assert code == 2 and "was evaluated with another eval.passes; set --config.eval.passes=2" in err
