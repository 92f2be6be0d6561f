"""pmap and shard_map give the same bits; many devices, accumulation and sharded states agree with one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import few_devices, make_config, slow
from vdm import optimizer, run as run_lib, step
from vdm.data.dataset import Spec
from vdm.objective import ELBO
from vdm.runtime import checkpoint, devices, randomness

SPEC = Spec((4, 4, 1), 17, 10)

FIELDS = {
    "model.net.name": "mlp",
    "model.net.depth": 2,
    "model.net.width": 16,
    "model.net.dropout": 0.3,
    "data.augment": "flip,rotate",
    "optimizer.learning_rate": 1e-2,
    "optimizer.warmup": 0,
    "model.times": "importance",
}


# Fields with which a difference in rounding stays one: with times by importance, it may move a time over the
# edge of a bin, to another density; and Adam would turn a gradient that is 0 except for rounding into a step.
SMOOTH = {"model.times": "stratified", "optimizer.eps": 1e-3}


@functools.cache
def trained(kind, count, **changes):
    """The state and metrics after three steps on `count` devices, each on 16 given images."""
    config = make_config(FIELDS | changes)
    random = np.random.default_rng(0)
    images = random.integers(0, 17, (48, 4, 4, 1)).astype(np.uint8)
    labels = random.integers(0, 10, 48).astype(np.int32)
    batch = {"image": images, "label": labels, "augmented": np.zeros(48, np.float32)}
    made = run_lib.build_model(config, SPEC)
    params, _ = jax.eval_shape(lambda: step.init_params(made, ELBO(), jax.random.key(0), batch))
    updates = optimizer.build(config.optimizer, 100, made.roles(params))
    with few_devices(count):
        mapped = devices.over_devices(
            step.make_step(made, ELBO(), updates, config, SPEC.shape),
            kind,
            split_in=(False, False, True),
            split_out=(False, False),
            donate=(0,),
            batch_axis=1,
        )
        init = step.make_init(made, ELBO(), updates, 0, batch)
        state = devices.create(init, kind, devices.state_like(jax.eval_shape(init), kind))()
        index = np.arange(48, dtype=np.int32).reshape(3, count, -1).swapaxes(0, 1)
        resident = devices.replicate({"image": images, "label": labels, "root": randomness.root(config.seed)})
        return mapped(state, resident, {"index": index})


def leaves(tree):
    return {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("kind", devices.KINDS)
def test_what_is_compiled_ahead_is_what_is_called(kind):
    """The function is traced and compiled once, with only the shapes of its shared arguments."""
    traced = []

    def step(state, data, batch):
        traced.append(1)
        seen = jax.lax.pmean(jnp.sum(data["image"][batch]), devices.AXIS)
        return {"sum": state["sum"] + seen}, batch

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


def test_pmap_and_shard_map_give_the_same_bits():
    one, other = (leaves(jax.device_get(trained(kind, 8))) for kind in ("pmap", "shard_map"))
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def assert_close(many, one):
    """The metrics of each step agree to float32 rounding, and so do the parameters after three steps."""
    for name in ("diffusion", "reconstruction", "prior", "loss", "grad_norm"):
        np.testing.assert_allclose(many[1][name], one[1][name], rtol=2e-5, atol=1e-6)
    found = leaves(many[0].params)
    for name, value in leaves(one[0].params).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["mlp", "transformer"])
def test_a_state_in_shares_is_trained_as_a_whole_one(net, monkeypatch):
    """To rounding. Each device holds an eighth of each large array of the parameters, the average and the
    optimiser's state."""
    monkeypatch.setattr(devices, "SMALL", 64)
    changes = SMOOTH | {"model.net.name": net}
    shares, whole = (trained(kind, 8, **changes) for kind in ("fsdp", "pmap"))
    assert_close(shares, whole)
    for tree in (shares[0].params, shares[0].ema, shares[0].opt_state):
        large = [leaf for leaf in jax.tree.leaves(tree) if leaf.size >= 256]
        assert large and all(leaf.addressable_shards[0].data.size * 8 == leaf.size for leaf in large)


def test_an_array_is_cut_along_its_largest_axis_that_the_devices_divide():
    assert devices._share((32, 3, 3, 128, 256)) == (None, None, None, None, devices.AXIS)
    assert devices._share((1024, 100, 12)) == (devices.AXIS,)
    assert devices._share((4097, 1023)) == ()
    assert devices._share((8, 8)) == ()


@pytest.mark.parametrize(
    "first, then, count", [("fsdp", "pmap", 4), ("pmap", "fsdp", 4), ("fsdp", "fsdp", 2)]
)
def test_a_checkpoint_of_one_way_is_one_of_the_other(first, then, count, tmp_path, monkeypatch):
    """Restored on fewer devices, to the same bits."""
    monkeypatch.setattr(devices, "SMALL", 64)
    state, _ = trained(first, 8)
    checkpoints = checkpoint.Checkpoints(tmp_path, 1)
    checkpoints.save(3, state, {})
    checkpoints.close()
    with few_devices(count):
        like = devices.state_like(jax.eval_shape(lambda: state), then)
        found, _ = checkpoint.Checkpoints(tmp_path, 1, read_only=True).restore(like, 3)
    for name, value in leaves(jax.device_get(state)).items():
        assert leaves(jax.device_get(found))[name].tobytes() == value.tobytes(), name
    kernel = max(jax.tree.leaves(found.params), key=lambda leaf: leaf.size)
    assert len(kernel.sharding.device_set) == count
    share = kernel.size // count if then == "fsdp" else kernel.size
    assert kernel.addressable_shards[0].data.size == share


def test_eight_devices_see_what_one_sees():
    """Noise, times, dropout and augmentation depend on the example, not on the device."""
    many, one = (trained("pmap", count, **SMOOTH) for count in (8, 1))
    assert_close(many, one)


@pytest.mark.parametrize("count", [8, slow(1)])
def test_the_moments_of_all_devices_are_summed(count):
    """Each of three steps counts 16 losses, and remembers those before by 0.995."""
    moments = trained("pmap", count)[0].moments
    assert moments[0].sum() == pytest.approx(16 * (1 + 0.995 + 0.995**2), rel=1e-5)


@pytest.mark.slow
def test_accumulation_is_the_same_batch():
    """On two devices, four parts each."""
    whole, parts = (
        trained("pmap", 1, **SMOOTH),
        trained("pmap", 2, **SMOOTH, **{"train.accumulate": 4}),
    )
    assert_close(parts, whole)
    one, other = trained("pmap", 1), trained("pmap", 2, **{"train.accumulate": 4})
    np.testing.assert_allclose(other[0].moments[0].sum(), one[0].moments[0].sum(), rtol=1e-5)


def test_other_seeds_see_other_noise():
    one, other = (trained("pmap", 1, **changes)[1]["diffusion"] for changes in ({}, {"seed": 1}))
    assert np.abs(one - other).min() > 1e-3
