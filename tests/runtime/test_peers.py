"""How a process reacts to the end of another process."""

import jax
import pytest

from vdm.runtime import checkpoint, hosts

GLOO = "UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [127.0.0.1]:28051"


def test_an_exchange_that_fails_is_of_a_peer_whatever_its_type():
    assert hosts.is_of_peer(ValueError(GLOO))
    assert hosts.is_of_peer(jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"))
    assert not hosts.is_of_peer(ValueError("connection must be one of 'a', 'b'"))
    assert not hosts.is_of_peer(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert not hosts.is_of_peer(RuntimeError(GLOO))


# The report of JAX 0.12 that it cannot register with the other processes.
REPORT = """F1129 09:26:15.885037    2367 client.h:86] Terminating process because the JAX distributed service

RPC: /xla.coordination.CoordinationService/RegisterTask
=== Source Location Trace: ===
external/xla+/xla/pjrt/distributed/coordination/coordination_service_error_util.cc:64

*** Check failure stack trace: ***
    @     0x7fe3568f8174  absl::lts_20260526::log_internal::LogMessage::SendToLog()
"""


def test_a_report_of_xla_is_held_back_and_what_others_print_is_not():
    assert all(hosts.OWN_REPORT.match(line) for line in REPORT.splitlines(keepends=True))
    for line in (
        "error: --distributed",
        "Traceback (most recent",
        "external/data is missing: 3",
        "42 images",
    ):
        assert not hosts.OWN_REPORT.match(f"{line}\n")


def test_a_save_without_the_other_process_is_not_tried_again(tmp_path, monkeypatch, capsys):
    checkpoints = checkpoint.Checkpoints(tmp_path, 2)

    def fails(*args, **kwargs):
        raise ValueError(GLOO)

    monkeypatch.setattr(checkpoints._manager, "save", fails)
    with pytest.raises(ValueError, match="Gloo"):
        checkpoints.save(1, checkpoint_state(), {})
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: 1 / 0)
    checkpoints.save(1, checkpoint_state(), {})
    assert "the checkpoint of step 1 could not be written (division by zero)" in capsys.readouterr().err


def checkpoint_state():
    from vdm.step import State

    return State(jax.numpy.zeros((), int), {}, {}, {})
