"""Studies on a real Slurm of one node, which this module starts. Skipped if Slurm is not installed."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from conftest import ROOT, TINY, command
from sweep_helpers import counted, ended, start_study, trial_of, wait_for
from vdm.errors import UserError
from vdm.sweep import cluster

HOST = socket.gethostname().partition(".")[0]
DAEMONS = {"munged", "slurmctld", "slurmd"}
COMMANDS = ("sbatch", "squeue", "scontrol", "srun", *sorted(DAEMONS))

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=10000
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def which(name):
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module", autouse=True)
def slurm():
    """A controller and a node of 4 CPUs on this machine."""
    missing = [name for name in COMMANDS if not which(name)]
    if missing:
        pytest.skip(f"Slurm is not installed (slurm-wlm, munge): no {', '.join(missing)}")
    # A short path, because that of a socket may have at most 107 characters.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm"))
    folder.chmod(0o755)  # munged requires that clients can reach its socket
    controller, daemon = free_ports(2)
    user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    text = CONFIG.format(host=HOST, controller=controller, daemon=daemon, folder=folder, user=user)
    (folder / "slurm.conf").write_text(text)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    munge = {
        "key-file": "key",
        "socket": "munge",
        "pid-file": "munge.pid",
        "log-file": "log",
        "seed-file": "s",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            for line in (
                ["munged", "--force", *(f"--{flag}={folder / name}" for flag, name in munge.items())],
                ["slurmctld"],
                ["slurmd"],
            ):
                done = subprocess.run([which(line[0]), *line[1:]], capture_output=True, text=True)
                if done.returncode:
                    pytest.skip(f"Slurm does not start here: {line[0]}: {done.stderr}")
            idle = lambda: said("sinfo", "--noheader", "--format=%T") == "idle"
            wait_for(lambda: idle() or not DAEMONS <= {name for _, name, _ in processes()})
            if not idle():  # one has ended, for example without the privileges that it needs
                logs = [(folder / f"{name}.log").read_text() for name in ("slurmctld", "slurmd")]
                pytest.skip(f"Slurm does not start here: {' '.join(log[-300:] for log in logs)}")
            yield
        finally:
            for pid, _, _ in processes():
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def processes():
    """(pid, name, environment) of all processes of this module's Slurm, except for the current process."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment, name = (path / "environ").read_bytes(), (path / "comm").read_text().strip()
        except OSError:  # it has ended, or is another user's
            continue
        if f"SLURM_CONF={os.environ['SLURM_CONF']}".encode() in environment and int(path.name) != os.getpid():
            found.append((int(path.name), name, environment))
    return found


def said(*line):
    return subprocess.run(line, capture_output=True, text=True).stdout.strip()


def queue():
    """{job: state} of all pending and running jobs."""
    lines = said("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split() for line in lines)


STUDY = """'''A study of real runs.'''
from vdm.sweep import cluster, study

cluster.LOOK = 0.5
study.main(__doc__, lambda config: {"a": {}}, lambda *_: [], config="configs/digits.py", seeds=1)
"""


def start_runs(tmp_path, steps):
    """A study of one tiny run of vdm.main on Slurm, in tmp_path/W."""
    (tmp_path / "study.py").write_text(STUDY)
    fields = TINY | {
        "config.train.steps": steps, "config.train.checkpoint_every": 20, "config.train.log_every": 0,
        "config.train.eval_every": 0, "config.train.sample_every": 0,
    }  # fmt: skip
    args = [f"--{name}={value}" for name, value in fields.items() if name != "config"]
    env = command(tmp_path)[1] | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "study.py"), f"--workdir={tmp_path / 'W'}", "--cluster=slurm", *args],
        env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def start_again(job):
    """Starts a requeued job soon, for which Slurm itself waits two minutes. The node would refuse it within
    the second in which it ended."""
    wait_for(lambda: queue().get(job) == "PENDING")
    said("scontrol", "update", f"JobId={job}", "StartTime=now+2")


def saved(folder):
    return [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]


def test_an_array_of_four_runs(tmp_path):
    code, out, err = ended(start_study(tmp_path, "good fine", "--seeds=2", "--cluster=slurm"))
    assert code == 0, out + err
    assert counted(tmp_path / "W", "starts") == {
        f"{name}-{seed}": 1 for name in ("good", "fine") for seed in (0, 1)
    }
    jobs = [json.loads(path.read_text())["job"] for path in (tmp_path / "W").glob("*/job.json")]
    array = jobs[0].partition("_")[0]
    assert sorted(jobs) == [f"{array}_{task}" for task in range(4)]
    assert queue() == {}


def preempt(job):
    """Submits a job that needs all CPUs to a partition of higher priority."""
    said("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true")


def both(job):
    """Some clusters preempt by SIGTERM, and then send SIGUSR2, the signal of a time limit, on which submitit
    requeues."""
    said("scancel", "--signal=TERM", job)
    said("scancel", "--signal=USR2", job)


def node_fails(job):
    """Kills all processes of the node at once, and restarts the node without them."""
    for pid, name, environment in processes():
        if name in ("slurmd", "slurmstepd") or b"SLURM_JOB_ID=" in environment:
            os.kill(pid, signal.SIGKILL)
    said("scontrol", "update", f"NodeName={HOST}", "State=DOWN", "Reason=test")  # Slurm takes 5 minutes
    subprocess.run([which("slurmd")], check=True)


def test_a_job_that_is_stopped_is_queued_again_and_goes_on(tmp_path):
    process, folder = start_runs(tmp_path, steps=1200), tmp_path / "W" / "a-0"
    step = 0
    for stop in (preempt, both, node_fails):
        wait_for(lambda: max(saved(folder), default=0) > step)
        (job,) = queue()
        stop(job)
        start_again(job)
        step = max(saved(folder))
        stopped, resumed = f"stopped at step {step}, with a checkpoint", f"resuming at step {step} of 1200"
        wait_for(lambda: resumed in (folder / "log.txt").read_text() or process.poll() is not None)
        log = (folder / "log.txt").read_text()
        assert resumed in log and (stopped in log) == (stop != node_fails), (stop, log)
    code, out, err = ended(process)
    assert code == 0 and "a-0: submitted as job" in out, out + err
    assert max(saved(folder)) == 1200


def test_ctrl_c_cancels_and_the_next_start_goes_on(tmp_path):
    process, folder = start_runs(tmp_path, steps=100_000), tmp_path / "W" / "a-0"
    wait_for(lambda: saved(folder))
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert code == 130 and "the same command resumes" in out, out + err
    assert queue() == {}
    stopped = re.search(r"stopped at step (\d+), with a checkpoint", (folder / "log.txt").read_text())
    assert max(saved(folder)) == int(stopped[1])
    code, out, err = ended(start_runs(tmp_path, steps=int(stopped[1]) + 20))
    assert code == 0, out + err
    assert f"resuming at step {stopped[1]} of" in (folder / "log.txt").read_text()


def test_a_study_that_was_killed_submits_no_run_twice(tmp_path):
    process = start_study(tmp_path, "waiting", "--seeds=1", "--cluster=slurm")
    wait_for(lambda: counted(tmp_path / "W", "ready"))
    process.kill()
    process.wait()
    before = queue()
    assert len(before) == 1
    again = start_study(tmp_path, "waiting", "--seeds=1", "--cluster=slurm")
    assert "1 to run" in again.stdout.readline() and "still in the queue" in again.stdout.readline()
    time.sleep(1.0)  # a second submission would be there by now
    assert queue() == before

    trial = trial_of(tmp_path / "W", "waiting-0")
    trial.command.append("--config.train.steps=9")
    executor = cluster.make_executor("slurm", tmp_path / "W" / "submitit", [])
    with pytest.raises(UserError, match="with other arguments: .*; use these, or cancel the job by scancel"):
        cluster.submit(executor, [trial])
    assert queue() == before

    (tmp_path / "W" / "waiting-0" / "go").touch()
    code, out, err = ended(again)
    assert code == 0, out + err
    assert counted(tmp_path / "W", "starts") == {"waiting-0": 1}
