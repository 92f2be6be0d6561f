"""The runs of a study as local processes, and as jobs of a cluster."""

import os
import pickle
import signal
import sys

from ml_collections import ConfigDict
import pytest
from submitit.slurm.slurm import SlurmJob

from sweep_helpers import counted, ended, start_study, study_here, trial_of, wait_for
from vdm.sweep import cluster, jobs, plan, pool


def test_runs_see_the_gpu_of_their_slot(tmp_path):
    """Four runs take turns in two slots, each with its own GPU number."""
    script = "import os, time; time.sleep(0.3); print(os.environ['CUDA_VISIBLE_DEVICES'])"
    line = [sys.executable, "-S", "-c", script]
    config = ConfigDict({"train": {"steps": 3}})
    trials = [plan.Trial(f"r{n}", tmp_path / f"r{n}-0", config, line) for n in range(4)]
    failed = pool.run_all(trials, jobs.start, [jobs.Slot("2"), jobs.Slot("5")])
    assert len(failed) == 4  # they leave no checkpoint
    seen = sorted((trial.folder / "log.txt").read_text().strip() for trial in trials)
    assert seen == ["2", "2", "5", "5"]


def test_runs_at_a_time_share_the_cores(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("needs two cores")
    assert jobs.shares(1) == [jobs.ANYWHERE] and jobs.shares(len(cores) + 1)[0] == jobs.ANYWHERE
    slots = jobs.shares(2)
    taken = [core for slot in slots for core in slot.cpus]
    assert len(slots) == 2 and len(set(taken)) == len(taken) == len(cores) // 2 * 2
    line = [sys.executable, "-S", "-c", "import os; print(*sorted(os.sched_getaffinity(0)))"]
    trials = [plan.Trial(f"r{n}", tmp_path / f"r{n}-0", ConfigDict(), line) for n in range(2)]
    for process in jobs.start(trials, slots):
        wait_for(lambda process=process: process.poll() is not None)
    seen = [tuple(map(int, (trial.folder / "log.txt").read_text().split())) for trial in trials]
    assert seen == [slot.cpus for slot in slots]


def test_no_run_is_done_by_two(tmp_path):
    trial = trial_of(tmp_path, "stubborn-0")
    first, second = jobs.start([trial], [jobs.ANYWHERE])[0], jobs.start([trial], [jobs.ANYWHERE])[0]
    wait_for(lambda: counted(tmp_path, "ready"))
    assert first.poll() is None and "another process" in second.poll()
    first.send(signal.SIGKILL)
    wait_for(lambda: first.poll() == "killed by SIGKILL")
    assert counted(tmp_path, "starts") == {"stubborn-0": 1}


def test_why_it_failed_is_of_this_start_alone(tmp_path):
    """log.txt is appended to, but an error of an earlier start is not the reason for this failure."""

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


# ---- submitit ---------------------------------------------------------------------------


def test_submitit_is_named_where_it_is_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, err = study_here(tmp_path, {"good": {}}, "--cluster=local")
    assert code == 2 and "pip install -e '.[slurm]'" in err


def test_submitted_to_submitit_on_this_machine(tmp_path):
    trials = [trial_of(tmp_path, name) for name in ("good-0", "bad-0")]
    executor = cluster.make_executor("local", tmp_path / "submitit", [])
    failed = pool.run_all(trials, lambda new, _: cluster.submit(executor, new), [""] * len(trials))
    assert failed == {tmp_path / "bad-0": "no such data"}
    assert plan.finished(trials[0]) and counted(tmp_path, "starts") == {"good-0": 1, "bad-0": 1}


def test_a_job_whose_time_is_up_saves_and_is_queued_again(tmp_path):
    """Slurm sends SIGUSR2 to all processes of the job; submitit's process then asks for a checkpoint."""
    trial = trial_of(tmp_path, "slow-0")
    job = jobs.Process(trial.command, trial.folder).start()
    wait_for(lambda: counted(tmp_path, "ready"))
    job.send(signal.SIGUSR2)
    again = job.checkpoint()
    assert job.poll() == "stopped, saved" and counted(tmp_path, "signals") == {"slow-0": 1}
    assert again.result() == "" and plan.finished(trial)
    assert counted(tmp_path, "starts") == {"slow-0": 2}


def test_time_is_up_for_a_run_that_saves_already(tmp_path):
    """As when a preemption sends SIGTERM first. On SIGINT, the run would end without saving."""
    script = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "  signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "  print('saving', flush=True); time.sleep(0.5); sys.exit('saved')\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(100)"
    )
    job = jobs.Process([sys.executable, "-S", "-c", script], tmp_path / "run").start()
    for number, text in ((0, "ready"), (signal.SIGTERM, "saving")):
        job.send(number)
        wait_for(lambda: text in (tmp_path / "run" / "log.txt").read_text())
    job.checkpoint()
    assert job.poll() == "saved"


class Empty:
    """An empty queue."""

    def has(self, job_id):
        return False


def test_a_result_may_appear_after_its_job_has_left_the_queue(tmp_path, monkeypatch):
    """Because files on a shared file system may appear late."""
    job = cluster.Job(SlurmJob(tmp_path, "7_0"), Empty(), "submitted as job")
    assert job.poll() is None
    (tmp_path / "7_0_0_result.pkl").write_bytes(pickle.dumps(("success", "no such data")))
    assert job.poll() == "no such data"
    (tmp_path / "7_0_0_result.pkl").unlink()
    monkeypatch.setattr(cluster, "LATE", 0.0)
    assert job.poll() == f"job 7_0 left no result; see {tmp_path}/7_0_0_log.err"


@pytest.mark.parametrize("script", ["exit 75", "kill -TERM $$"])
def test_a_run_that_was_asked_to_stop_is_no_failure(script, tmp_path, monkeypatch):
    """It exits with 75, or SIGTERM kills it as it begins. If Slurm ends the job, the job has no result;
    otherwise the run is started again, as in a long GraceTime."""
    answers = iter([False, True])
    monkeypatch.setattr(jobs, "slurm_ends_this_job", lambda: next(answers))
    command = ["sh", "-c", f"echo . >> starts; [ -e done ] || {{ touch done; {script}; }}"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        jobs.Process(command, tmp_path / "run")()
    assert (tmp_path / "starts").read_text().count(".") == 1
    (tmp_path / "done").unlink()
    monkeypatch.setattr(jobs, "GRACE", 0.0)
    assert jobs.Process(command, tmp_path / "run")() == ""
    assert (tmp_path / "starts").read_text().count(".") == 3


# Stand-ins for Slurm's commands. sbatch stores the script and, unless queue_only exists, runs two tasks.
SLURM = {
    "sbatch": """cp "$1" {folder}/script
[ -e {folder}/queue_only ] || for task in 0 1; do
export SLURM_JOB_ID=$((8 + task)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task
sh {folder}/script > /dev/null 2>&1 &
done
echo Submitted batch job 7""",
    "srun": """while [ "${{1#--}}" != "$1" ]; do [ "$1" = --unbuffered ] || shift; shift; done; exec "$@" """,
    "scancel": """echo "$1" >> {folder}/cancelled""",
    "squeue": """[ -e {folder}/script ] && for job in 7_0 7_1; do
grep -qx $job {folder}/cancelled 2> /dev/null || echo $job
done; true""",
}
OPTIONS = ["--cluster=slurm", "--cluster_options=slurm_partition=gpu,timeout_min=600,gpus_per_node=1"]


@pytest.fixture
def slurm(tmp_path):
    """Writes these commands to the folder where the study finds them."""
    for name, script in SLURM.items():
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + script.format(folder=tmp_path) + "\n")
        path.chmod(0o755)


def test_submitted_to_slurm_as_one_array(slurm, tmp_path):
    code, shown, err = ended(start_study(tmp_path, "good", *OPTIONS, "--dry_run"))
    assert code == 0 and not (tmp_path / "W").exists(), err
    code, out, err = ended(start_study(tmp_path, "good", *OPTIONS))
    assert code == 0 and "good-1: 1.5000" in out, out + err
    assert counted(tmp_path / "W", "starts") == {"good-0": 1, "good-1": 1}
    script = (tmp_path / "script").read_text()
    for option in ("array=0-1%2", "partition=gpu", "time=600", "gpus-per-node=1", "job-name=W"):
        assert f"#SBATCH --{option}\n" in script
    assert shown.startswith(script)
    tasks = shown.removeprefix(script).strip().splitlines()
    assert [line.split(": ")[0] for line in tasks] == ["# task 0", "# task 1"]
    assert f"{tmp_path}/W/good-1" in tasks[1]


def test_stopped_it_cancels_what_is_queued(slurm, tmp_path):
    (tmp_path / "queue_only").touch()
    process = start_study(tmp_path, "good", *OPTIONS)
    wait_for((tmp_path / "script").exists)
    assert "0 of 2 runs have finished; 2 to run" in process.stdout.readline()
    assert process.stdout.readline() == "good-0: submitted as job 7_0\n"
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert code == 75 and "the same command resumes" in out, out + err
    assert (tmp_path / "cancelled").read_text().split() == ["7_0", "7_1"]
