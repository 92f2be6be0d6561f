"""What a process makes of another one's end."""

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
