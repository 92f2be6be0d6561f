"""pmap and shard_map to the same bits, many devices as one, and two processes as one run."""

import socket
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from conftest import ROOT, command, run
from test_resume import metrics, state
from vdm import model, step
from vdm.data import dataset as data
from vdm.runtime import devices

SPEC = data.Spec((4, 4, 1), 17, 10)


DONE = {}  # what `trained` has found


def trained(kind, devices, monkeypatch, accumulate=1, **changes):
    """The state and metrics after three steps on the same 16 pictures a step."""
    asked = kind, devices, accumulate, *sorted(changes.items())
    if asked not in DONE:
        DONE[asked] = train(kind, devices, monkeypatch, accumulate, changes)
    return DONE[asked]


def train(kind, devices, monkeypatch, accumulate, changes):
    config = default.get_config()
    config.model.net.update(dict(name="mlp", depth=2, width=16, dropout=0.3))
    config.data.augment = "flip,rotate"
    config.train.accumulate = accumulate
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup = 0
    config.update_from_flattened_dict(changes)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 17, (48, 4, 4, 1)).astype(np.uint8)
    labels = draw.integers(0, 10, 48).astype(np.int32)

    # Fewer devices than the process has, for the comparison with one.
    local = jax.local_devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda *_: local)
    monkeypatch.setattr(jax, "local_device_count", lambda *_: devices)
    made = model.build(config, SPEC)
    optimizer = step.make_optimizer(config.optimizer, 100)
    batch = {"image": images, "label": labels, "augmented": np.zeros(48, np.float32)}
    start = devices.replicate(step.make_init(made, optimizer, 0, batch)())
    mapped = devices.over_devices(
        step.make_step(made, optimizer, config, SPEC.shape),
        kind,
        split_in=(False, False, True),
        split_out=(False, False),
        donate=(0,),
    )
    index = np.arange(48, dtype=np.int32).reshape(3, devices, -1).swapaxes(0, 1)
    resident = devices.replicate({"image": images, "label": labels})
    after, values = mapped(start, resident, {"index": index})
    return jax.device_get((after, values))


def leaves(tree):
    return {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("kind", devices.KINDS)
def test_what_is_compiled_ahead_is_what_is_called(kind):
    """It is traced and compiled once, from the shapes alone of what is shared."""
    traced = []

    def step(state, data, batch):
        traced.append(1)
        return {"sum": state["sum"] + jnp.sum(data["image"][batch])}, batch

    mapped = devices.over_devices(step, kind, (False, False, True), (False, True), donate=(0,))
    state, data = {"sum": np.zeros(3, np.float32)}, {"image": np.arange(5, dtype=np.uint8)}
    batch = np.arange(8, dtype=np.int32).reshape(8, 1) % 5
    like = [devices.replicated_like(shared) for shared in (state, data)]
    wait = devices.compile_ahead(mapped, *like, batch)
    wait()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    try:
        (after, _) = mapped(devices.replicate(state), devices.replicate(data), batch)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(traced) == 1
    assert not [event for event in compiled if "compile" in event or "trace" in event]
    assert after["sum"].shape == (3,)


def test_pmap_and_shard_map_give_the_same_bits(monkeypatch):
    one, other = (leaves(trained(kind, 8, monkeypatch)) for kind in devices.KINDS)
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("kind, times", [("pmap", "stratified"), ("shard_map", "importance")])
def test_eight_devices_see_what_one_sees(kind, times, monkeypatch):
    """Noise, times, dropout and augmentation belong to the example: the loss of each term
    agrees to float32 rounding, and so do the parameters after three steps."""
    changes = {"model.times": times} if times == "importance" else {}
    many = trained(kind, 8, monkeypatch, **changes)
    one = trained(kind, 1, monkeypatch, **changes)
    if times == "importance":
        np.testing.assert_allclose(many[0].moments, one[0].moments, rtol=1e-3, atol=1e-3)
        assert one[0].moments[0].sum() == pytest.approx(16 * (1 + 0.99 + 0.99**2), rel=1e-5)
    for name in ("diffusion", "reconstruction", "prior", "grad_norm"):
        np.testing.assert_allclose(many[1][name], one[1][name], rtol=2e-5, atol=1e-6)
    far = leaves(many[0].params)
    for name, value in leaves(one[0].params).items():
        np.testing.assert_allclose(far[name], value, rtol=1e-3, atol=2e-4, err_msg=name)


def test_accumulation_is_the_same_batch(monkeypatch):
    changes = {"model.times": "importance"}
    whole = trained("pmap", 2, monkeypatch, **changes)
    parts = trained("pmap", 2, monkeypatch, accumulate=4, **changes)
    np.testing.assert_allclose(parts[0].moments, whole[0].moments, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(parts[1]["loss"], whole[1]["loss"], rtol=2e-5)
    np.testing.assert_allclose(parts[1]["grad_norm"], whole[1]["grad_norm"], rtol=1e-4)


def test_other_seeds_and_steps_see_other_noise(monkeypatch):
    one = trained("pmap", 2, monkeypatch)[1]["diffusion"]
    other = trained("pmap", 2, monkeypatch, seed=1)[1]["diffusion"]
    assert np.abs(one - other).min() > 1e-3


def test_ema_follows_the_parameters(monkeypatch):
    """By hand: decay min(ema, (1 + n)/(10 + n)) at step n, from the parameters of the start."""
    states = [
        trained("pmap", 1, monkeypatch, **{"optimizer.learning_rate": rate})[0]
        for rate in (0.0, 1e-2)
    ]
    for start, ema in zip(jax.tree.leaves(states[0].params), jax.tree.leaves(states[0].ema)):
        np.testing.assert_allclose(ema, start, rtol=1e-6)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, states[1][1:3]))]
    assert max(moved) > 1e-3


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


@pytest.mark.parametrize("first, then", [devices.KINDS, devices.KINDS[::-1]])
def test_two_processes_train_save_and_resume_together(first, then, tmp_path):
    """Stopped at step 8 under one kind and started again under the other, they end where one process of four
    devices does."""
    flags = {
        "config.train.log_every": 4,
        "config.train.sample_every": 4,
        "config.eval.passes_in_training": 2,
    }
    together(tmp_path / "two", **flags, **{"config.train.steps": 8, "config.parallel": first})
    outputs = together(tmp_path / "two", **flags, **{"config.parallel": then})
    assert "resuming at step 8 of 12" in outputs[0]
    assert "step" not in outputs[1], "only the first process reports"

    done = run(tmp_path / "one", devices=4, **flags)
    assert done.returncode == 0, done.stderr
    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(two) == len(one) == 6
    for a, b in zip(two, one):
        assert a.keys() == b.keys() and a["step"] == b["step"]
        np.testing.assert_allclose(a["bpd"], b["bpd"], rtol=1e-4)
    two, one = state(tmp_path / "two"), state(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, value in one.items():
        a, b = (np.frombuffer(v, np.int32 if "step" in name or "count" in name else np.float32)
                for v in (two[name], value))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5, err_msg=name)
