"""Two processes train, save and resume together as one run; one of them dies or is asked to stop."""

import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from conftest import ROOT, command, metrics, run, state

EVERY = {"log_every": 4, "sample_every": 4, "substeps": 1}
FLAGS = {f"config.train.{name}": value for name, value in EVERY.items()}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def started(workdir, **flags):
    """Two processes of two devices each, on loopback."""
    port, processes = free_port(), []
    for number in range(2):
        line, env = command(
            workdir,
            devices=2,
            distributed="true",
            coordinator=f"127.0.0.1:{port}",
            processes=2,
            process=number,
            **FLAGS | flags,
        )
        processes.append(
            subprocess.Popen(
                line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return processes


def ended(processes):
    """[(exit code, output, errors)]"""
    found = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, found)]


def wait_for_checkpoint(workdir, processes, step):
    while not (workdir / "checkpoints" / str(step)).exists():
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("whole")
    for code, _, errors in ended(started(workdir)):
        assert code == 0, errors
    return workdir


def test_two_processes_are_one_of_as_many_devices(whole, tmp_path):
    done = run(tmp_path / "one", devices=4, **FLAGS, **{"config.parallel": "shard_map"})
    assert done.returncode == 0, done.stderr
    two, one = metrics(whole), metrics(tmp_path / "one")
    assert len(two) == len(one) == 7
    for a, b in zip(two, one):
        assert a.keys() == b.keys() and a["step"] == b["step"] and a["split"] == b["split"]
        np.testing.assert_allclose(a["bpd"], b["bpd"], rtol=1e-4)
    two, one = state(whole), state(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, value in one.items():
        dtype = np.int32 if "step" in name or "count" in name else np.float32
        a, b = (np.frombuffer(v, dtype) for v in (two[name], value))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("number", [1])
def test_one_is_killed_and_both_go_on(number, whole, tmp_path):
    """The other process ends by itself, with one line and the exit code for requeueing. Once resumed, both
    end as the uninterrupted run, bit for bit."""
    workdir = tmp_path / "two"
    processes = started(workdir)
    wait_for_checkpoint(workdir, processes, 2)
    processes[number].send_signal(signal.SIGKILL)
    code, output, errors = ended(processes)[1 - number]
    assert code == 75 and "Traceback" not in output + errors
    assert errors.count("\n") == 1 and "another process of this run has ended" in errors
    for code, _, errors in ended(started(workdir)):
        assert code == 0, errors
    assert state(workdir) == state(whole)
    assert metrics(workdir) == metrics(whole)


def test_one_is_asked_to_stop_and_both_do(tmp_path):
    """With several steps per call, for which JAX's own service would find no common step to stop at."""
    workdir = tmp_path / "two"
    flags = {"config.train.steps": 100_000, "config.train.substeps": 20, "config.train.checkpoint_every": 40}
    few = {"config.train.log_every": 0, "config.train.eval_every": 0, "config.train.sample_every": 0}
    processes = started(workdir, **flags | few)
    wait_for_checkpoint(workdir, processes, 40)
    processes[1].send_signal(signal.SIGTERM)
    (first, output, _), (second, others, _) = ended(processes)
    assert first == second == 75
    assert "with a checkpoint; the same command resumes" in output and "Traceback" not in output + others
