"""Optimisers: which parameters they take, one step against NumPy, clipping, and learning rates."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from conftest import make_config
from vdm import model as model_lib, optimizer as optimizer_lib, step as step_lib
from vdm.data import sources
from vdm.data.batches import eval_batches
from vdm.errors import UserError
from vdm.optimizer import AdamW, Optimizer


@functools.cache
def model_of(file="configs/digits.py", **fields):
    """The model of a config, and the shapes of its parameters."""
    config = make_config({name.replace("__", "."): value for name, value in fields.items()}, file)
    data = sources.load(config.data)
    model = model_lib.build(config, data.spec)
    example = next(eval_batches(data.train, 1))
    return model, jax.eval_shape(lambda: step_lib.init_params(model, 0, example))


def flat(tree):
    """{path: leaf}, of the network's parameters without what they all begin with."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path).removeprefix("net/params/"): leaf for path, leaf in leaves}


def section(name, **fields):
    cls = optimizer_lib.OPTIMIZERS.find(name, "config.optimizer.name")
    return ConfigDict({"name": name, **cls.config_fields()} | {"warmup": 0} | fields)


def random_like(shapes, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(random.normal(size=s.shape), jnp.float32), shapes)


# ---- which parameters are matrices ---------------------------------------------------

STACKED = ((1,), (2,))  # of layers [layers, in, out]
LONE = ((0,), (1,))

TRANSFORMER = {
    "layers/Attention_0/qkv/kernel": STACKED,
    "layers/Attention_0/out/kernel": STACKED,
    "layers/Dense_0/kernel": STACKED,
    "layers/Dense_1/kernel": STACKED,
    "layers/modulation/kernel": ((1,), (3,)),  # six matrices a layer
}
MLP = {f"layers/{name}/kernel": STACKED for name in ("embed", "first", "second")}
CAUSAL = {f"layers/{name}/kernel": STACKED for name in ("qkv", "out", "Dense_0", "Dense_1")}


def block(path, first, shortcut=False):
    """Of a block of a U-Net, whose axes in and out begin at `first`."""
    convolution = ((first, first + 1, first + 2), (first + 3,))
    dense = ((first,), (first + 1,))
    found = {f"{path}/Conv_{i}/kernel": convolution for i in (0, 1)} | {f"{path}/Dense_0/kernel": dense}
    return found | ({f"{path}/shortcut": dense} if shortcut else {})


def attention(path, axes):
    return {f"{path}/{name}/kernel": axes for name in ("qkv", "out")}


UNET = {
    **block("down/Block_0", 1),
    **block("middle_0", 0),
    **attention("middle_attention/Attention_0", LONE),
    **block("middle_1", 0),
    **block("up_first/Block_0", 0, shortcut=True),
    **block("up/Block_0", 1, shortcut=True),
}
EVERYWHERE = {
    **attention("down/AttentionBlock_0/Attention_0", STACKED),
    **attention("up_first/AttentionBlock_0/Attention_0", LONE),
    **attention("up/AttentionBlock_0/Attention_0", STACKED),
}
SMALL_UNET = {"model__net__name": "unet", "model__net__width": 16, "model__net__depth": 2}

MATRICES = {
    "transformer": ({}, TRANSFORMER),
    "mlp": ({"model__net__name": "mlp"}, MLP),
    "autoregressor": ({"file": "configs/autoregressor.py"}, CAUSAL),
    "latent": ({"file": "configs/latent.py"}, MLP),
    "naive": ({"file": "configs/naive.py"}, TRANSFORMER),
    "unet": (SMALL_UNET, UNET),
    "unet with attention everywhere": (
        SMALL_UNET | {"model__net__attention": "everywhere"},
        UNET | EVERYWHERE,
    ),
}


@pytest.mark.parametrize("case", MATRICES)
def test_these_are_matrices_and_no_others(case):
    fields, expected = MATRICES[case]
    model, params = model_of(**fields)
    roles, values = flat(model.roles(params)), flat(params)
    assert {path: role.matrix for path, role in roles.items() if role.matrix} == expected
    for path, (inner, outer) in expected.items():
        assert min(math.prod(values[path].shape[axis] for axis in axes) for axes in (inner, outer)) >= 16, (
            path
        )


@pytest.mark.parametrize("name", ["vae", "mhvae"])
def test_muon_is_refused_without_matrices(name):
    model, params = model_of(file=f"configs/{name}.py")
    with pytest.raises(
        UserError, match="config.optimizer.name is 'muon', but no parameter .* accepted .*'adamw'"
    ):
        optimizer_lib.build(section("muon"), 10, model, params)
    optimizer_lib.build(section("adamw"), 10, model, params)


# ---- Muon ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "path", "to_matrices"),
    [
        ({}, "layers/Dense_0/kernel", lambda v: v),
        (
            {},
            "layers/modulation/kernel",
            lambda v: v.transpose(0, 2, 1, 3).reshape(-1, v.shape[1], v.shape[3]),
        ),
        (SMALL_UNET, "down/Block_0/Conv_0/kernel", lambda v: v.reshape(v.shape[0], -1, v.shape[-1])),
        (SMALL_UNET, "up/Block_0/Conv_0/kernel", lambda v: v.reshape(v.shape[0], -1, v.shape[-1])),
        (SMALL_UNET, "middle_0/Conv_1/kernel", lambda v: v.reshape(1, -1, v.shape[-1])),
        (SMALL_UNET, "up_first/Block_0/shortcut", lambda v: v[None]),
    ],
)
def test_the_update_of_a_matrix_is_orthogonal(fields, path, to_matrices):
    """Its singular values lie in the band of five Newton–Schulz steps, times 0.2 √(the longer side), so that
    its mean square is about that of an Adam update; a convolution counts as one matrix [3 · 3 · in, out]."""
    model, params = model_of(**fields)
    tx = optimizer_lib.build(section("muon", learning_rate=1.0, weight_decay=0.0), 10, model, params)
    value, grads = random_like(params), random_like(params, 1)
    update, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, value)
    found = np.asarray(to_matrices(np.asarray(flat(update)[path])), np.float64)
    raw = np.asarray(to_matrices(np.asarray(flat(grads)[path])), np.float64)
    scale = 0.2 * math.sqrt(max(found.shape[1:]))
    singular = np.linalg.svd(found, compute_uv=False) / scale
    assert 0.65 < singular.min() and singular.max() < 1.25, (singular.min(), singular.max())
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.2 * 0.9, rel=0.2)
    # It points where the gradient's own polar factor does, downhill.
    left, _, right = np.linalg.svd(raw, full_matrices=False)
    polar = left @ right
    cosine = -np.sum(found * polar) / math.sqrt(np.sum(found**2) * np.sum(polar**2))
    assert cosine > 0.97


def test_muon_moves_what_is_no_matrix_as_nadam():
    """Two steps of Adam with Nesterov's momentum (Dozat 2016), float64."""
    model, params = model_of()
    given = section("muon", learning_rate=0.01, weight_decay=0.0, b1=0.8, b2=0.9)
    tx = optimizer_lib.build(given, 10, model, params)
    value = random_like(params)
    state = tx.init(value)
    first, second, path = 0.0, 0.0, "patch_in/kernel"
    for n in (1, 2):
        grads = random_like(params, n)
        update, state = jax.jit(tx.update)(grads, state, value)
        g = np.asarray(flat(grads)[path], np.float64)
        first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g * g
        looking_ahead = 0.8 * first / (1 - 0.8 ** (n + 1)) + 0.2 * g / (1 - 0.8**n)
        expected = -0.01 * looking_ahead / (np.sqrt(second / (1 - 0.9**n)) + 1e-8)
        np.testing.assert_allclose(flat(update)[path], expected, rtol=1e-4, atol=1e-7)


# ---- AdamW ---------------------------------------------------------------------------


def test_adamw_is_its_formula():
    """Three steps with warm-up and decay, float64 (Loshchilov & Hutter 2019, algorithm 2)."""
    model, params = model_of()
    fields = {"learning_rate": 0.02, "weight_decay": 0.3, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "warmup": 2}
    tx = optimizer_lib.build(section("adamw", **fields), 10, model, params)
    value = random_like(params)
    state, path = tx.init(value), "layers/Dense_0/kernel"
    expected = np.asarray(flat(value)[path], np.float64)
    first, second = 0.0, 0.0
    for n in (1, 2, 3):
        grads = random_like(params, n)
        update, state = jax.jit(tx.update)(grads, state, value)
        value = optax.apply_updates(value, update)
        g = np.asarray(flat(grads)[path], np.float64)
        first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g * g
        adam = first / (1 - 0.8**n) / (np.sqrt(second / (1 - 0.9**n)) + 1e-3)
        rate = 0.02 * min(1.0, (n - 1) / 2)
        expected = expected - rate * (adam + 0.3 * expected)
        np.testing.assert_allclose(flat(value)[path], expected, rtol=2e-5, atol=2e-6)


MUON_DECAYS = pytest.mark.xfail(strict=True, reason="optax.contrib.muon gives its Adam no mask")


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=MUON_DECAYS)])
@pytest.mark.parametrize("schedule", ["learned_linear", "learned_net", "multivariate"])
def test_a_schedule_is_not_decayed(name, schedule):
    """Without a gradient all other parameters shrink by rate · weight decay, and a schedule stays."""
    more = {
        "learned_net": {"model__schedule__learn_ends": True},
        "multivariate": {"model__schedule__context": 3},
    }
    model, params = model_of(model__net__name="mlp", model__schedule__name=schedule, **more.get(schedule, {}))
    tx = optimizer_lib.build(section(name, learning_rate=0.1, weight_decay=0.5), 10, model, params)
    value, zeros = random_like(params), jax.tree.map(lambda s: jnp.zeros(s.shape), params)
    update, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(zeros, value)
    decayed = 0
    for path, moved in flat(update).items():
        if path.startswith("schedule/"):
            assert not np.any(moved), path
        else:
            np.testing.assert_allclose(moved, -0.05 * flat(value)[path], rtol=1e-5, err_msg=path)
            decayed += 1
    assert 0 < decayed < len(flat(update))


# ---- clipping ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plain(Optimizer):
    """Gradients as they are, to see what clipping makes of them."""

    def updates(self, rate, roles):
        return optax.identity()


@pytest.mark.parametrize("clip", [0.0, 2.0, 1e6])
def test_the_interior_of_a_schedule_is_clipped_apart(clip):
    fields = {"model__schedule__name": "learned_net", "model__schedule__learn_ends": True}
    model, params = model_of(model__net__name="mlp", **fields)
    tx = optimizer_lib.build(section(f"{__name__}:Plain", clip=clip), 10, model, params)
    # The interior's gradient is a thousand times as large.
    grads, roles = random_like(params), model.roles(params)
    grads = jax.tree.map(lambda role, g: 1e3 * g if role.interior else g, roles, grads)
    found, _ = tx.update(grads, tx.init(params))
    parts = {"interior": [], "others": []}
    for path in flat(grads):
        inside = path.startswith("schedule/") and "/ends/" not in path
        parts["interior" if inside else "others"].append(path)
    assert len(parts["interior"]) == 6 and "schedule/params/ends/start" in parts["others"]
    for paths in parts.values():
        norm = math.sqrt(sum(float(np.sum(np.float64(flat(grads)[path]) ** 2)) for path in paths))
        share = min(1.0, clip / norm) if clip else 1.0
        assert (share < 1) == (clip == 2.0)
        for path in paths:
            np.testing.assert_allclose(flat(found)[path], share * np.asarray(flat(grads)[path]), rtol=1e-5)


# ---- learning rates ------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["constant", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(10, 50), (0, 20), (1, 20), (30, 20)])
def test_learning_rates_are_their_formula(decay, warmup, steps):
    rate = optimizer_lib.learning_rate(AdamW(learning_rate=0.3, warmup=warmup, decay=decay), steps)
    for n in range(steps + 1):
        if n < warmup:
            expected = 0.3 * n / warmup
        elif decay == "constant":
            expected = 0.3
        else:
            way = min(1.0, (n - warmup) / max(1, steps - warmup))
            expected = 0.15 * (1.0 + math.cos(math.pi * way))
        assert float(rate(n)) == pytest.approx(expected, abs=1e-6), n


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"decay": "cosin"}, "decay is 'cosin'; accepted: 'constant', 'cosine'. Did you mean 'cosine'?"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; accepted: 0 or more."),
        ({"warmup": -1}, "warmup is -1; accepted: 0 or more."),
        ({"clip": -0.5}, "clip is -0.5; accepted: 0 or more."),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; accepted: 0 or more."),
    ],
)
def test_values_that_are_not_accepted(fields, text):
    model, params = model_of()
    for name in ("adamw", "muon"):
        with pytest.raises(UserError) as error:
            optimizer_lib.build(section(name, **fields), 10, model, params)
        assert str(error.value) == f"config.optimizer.{text}"
