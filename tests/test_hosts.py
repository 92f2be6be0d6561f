"""Two processes that train, save and resume together as one run."""

import socket
import subprocess

import numpy as np

from conftest import ROOT, command, metrics, run, state


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def together(workdir, **flags):
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
            **flags,
        )
        processes.append(
            subprocess.Popen(
                line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output
    return outputs


def test_two_processes_train_save_and_resume_together(tmp_path):
    """Stopped at step 4 and resumed under the other kind, they end where one process of four devices does."""
    every = {"log_every": 4, "sample_every": 4, "substeps": 1}
    flags = {f"config.train.{name}": value for name, value in every.items()}
    for steps, kind in ((4, "shard_map"), (12, "pmap")):
        fields = {"config.train.steps": steps, "config.parallel": kind}
        outputs = together(tmp_path / "two", **flags, **fields)
        assert steps == 4 or "resuming at step 4 of 12" in outputs[0]
        assert "step" not in outputs[1], "only the first process reports"

    done = run(tmp_path / "one", devices=4, **flags, **{"config.parallel": "shard_map"})
    assert done.returncode == 0, done.stderr
    # A run that was stopped has an estimate of its end at each of these steps, too.
    two, one = (
        [row for row in metrics(tmp_path / name) if row["split"] != "final" or row["step"] == 12]
        for name in ("two", "one")
    )
    assert len(two) == len(one) == 7
    for a, b in zip(two, one):
        assert a.keys() == b.keys() and a["step"] == b["step"] and a["split"] == b["split"]
        np.testing.assert_allclose(a["bpd"], b["bpd"], rtol=1e-4)
    two, one = state(tmp_path / "two"), state(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, value in one.items():
        dtype = np.int32 if "step" in name or "count" in name else np.float32
        a, b = (np.frombuffer(v, dtype) for v in (two[name], value))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5, err_msg=name)
