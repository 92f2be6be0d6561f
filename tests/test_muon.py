"""Muon: which parameters it treats as matrices, and its steps against NumPy."""

import math
import re

import jax
import numpy as np
import optax
import pytest

from conftest import slow
from optimizer_helpers import flat, model_of, random_like, section
from vdm import optimizer as optimizer_lib
from vdm.errors import UserError

# ---- which parameters are matrices ---------------------------------------------------

STACKED = ((1,), (2,))  # axes of stacked matrices [layers, in, out]
LONE = ((0,), (1,))

TRANSFORMER = {
    "layers/Attention_0/qkv/kernel": STACKED,
    "layers/Attention_0/out/kernel": STACKED,
    "layers/Dense_0/kernel": STACKED,
    "layers/Dense_1/kernel": STACKED,
    "layers/modulation/kernel": ((1,), (3,)),  # six matrices per layer
}
MLP = {f"layers/{name}/kernel": STACKED for name in ("embed", "first", "second")}
PIXELCNN = {
    f"{stack}_{layer}/{name}/kernel": axes
    for layer in (0, 1)
    for stack, name, axes in [
        *(("above", f"Conv_{i}", ((0, 1, 2), (3,))) for i in (0, 1)),
        *(("before", name, LONE) for name in ("mix", "out")),
    ]
}
SMALL_PIXELCNN = {"model__net__name": "pixelcnn", "model__net__depth": 2}
CAUSAL = {f"layers/{name}/kernel": STACKED for name in ("qkv", "out", "Dense_0", "Dense_1")}


def block(path, first, shortcut=False):
    """The matrices of a U-Net block, whose input axes begin at `first`."""
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
    "pixelcnn": ({"file": "configs/autoregressor.py", **SMALL_PIXELCNN}, PIXELCNN),
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
        UserError, match="config.optimizer.name is 'muon', but this model declares no .* accepted .*'adamw'"
    ):
        optimizer_lib.build(section("muon"), 10, model.roles(params))
    optimizer_lib.build(section("adamw"), 10, model.roles(params))


# ---- Muon ----------------------------------------------------------------------------

# (model, path of a parameter, its matrices [matrices, in, out])
AS_MATRICES = [
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
]


# Newton–Schulz takes each singular value s to a s + b s³ + c s⁵, five times (Jordan et al. 2024).
A, B, C = 3.4445, -4.7750, 2.0315


def nearly_orthogonal(matrices):
    """Newton–Schulz applied to each matrix of [matrices, in, out], by its singular values in float64."""
    left, s, right = np.linalg.svd(matrices, full_matrices=False)
    s = s / np.linalg.norm(s, axis=-1, keepdims=True)  # the norm of the singular values is the Frobenius norm
    for _ in range(5):
        s = A * s + B * s**3 + C * s**5
    return left * s[:, None] @ right


@pytest.mark.parametrize("fields", [{}, slow(SMALL_UNET)], ids=["transformer", "unet"])
def test_muon_is_its_formula(fields):
    """Four steps with warm-up and decay, in float64: Nesterov momentum of 0.95, whatever b1 is, with both
    parts bias-corrected as in NAdam (Dozat 2016); Newton–Schulz; 0.2 √(the longer side) (Liu et al. 2025)."""
    model, params = model_of(**fields)
    given = {"learning_rate": 0.02, "weight_decay": 0.3, "b1": 0.8, "warmup": 2}
    tx = optimizer_lib.build(section("muon", **given), 10, model.roles(params))
    value = random_like(params)
    state, update = tx.init(value), jax.jit(tx.update)
    matrices = {path: to_matrices for of, path, to_matrices in AS_MATRICES if of == fields}
    momentum = dict.fromkeys(matrices, 0.0)
    for n in (1, 2, 3, 4):
        grads = random_like(params, n)
        moved, state = update(grads, state, value)
        for path, to_matrices in matrices.items():
            found, g, before = (np.float64(to_matrices(flat(v)[path])) for v in (moved, grads, value))
            momentum[path] = 0.95 * momentum[path] + 0.05 * g
            looking_ahead = 0.95 * momentum[path] / (1 - 0.95 ** (n + 1)) + 0.05 * g / (1 - 0.95**n)
            orthogonal = 0.2 * math.sqrt(max(g.shape[1:])) * nearly_orthogonal(looking_ahead)
            expected = -0.02 * min(1.0, (n - 1) / 2) * (orthogonal + 0.3 * before)
            # Newton–Schulz multiplies the rounding of a small singular value by up to A⁵ = 485.
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=4e-7, err_msg=f"{path}, step {n}")
        value = optax.apply_updates(value, moved)


@pytest.mark.parametrize(("fields", "path", "to_matrices"), AS_MATRICES)
def test_the_update_of_a_matrix_is_orthogonal(fields, path, to_matrices):
    """Its singular values lie in the band of five Newton–Schulz steps, times 0.2 √(the longer side), so that
    its mean square is about that of an Adam update; a convolution counts as one matrix [3 · 3 · in, out]."""
    model, params = model_of(**fields)
    tx = optimizer_lib.build(section("muon", learning_rate=1.0, weight_decay=0.0), 10, model.roles(params))
    value, grads = random_like(params), random_like(params, 1)
    update, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, value)
    found = np.asarray(to_matrices(np.asarray(flat(update)[path])), np.float64)
    raw = np.asarray(to_matrices(np.asarray(flat(grads)[path])), np.float64)
    scale = 0.2 * math.sqrt(max(found.shape[1:]))
    singular = np.linalg.svd(found, compute_uv=False) / scale
    assert 0.65 < singular.min() and singular.max() < 1.25, (singular.min(), singular.max())
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.2 * 0.9, rel=0.2)
    # It points downhill, along the polar factor of the gradient.
    left, _, right = np.linalg.svd(raw, full_matrices=False)
    polar = left @ right
    cosine = -np.sum(found * polar) / math.sqrt(np.sum(found**2) * np.sum(polar**2))
    assert cosine > 0.97


def test_muon_moves_what_is_no_matrix_as_nadam():
    """Two steps of Adam with Nesterov momentum (Dozat 2016), in float64."""
    model, params = model_of()
    given = section("muon", learning_rate=0.01, weight_decay=0.0, b1=0.8, b2=0.9)
    tx = optimizer_lib.build(given, 10, model.roles(params))
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


@pytest.mark.parametrize("fields", [slow({}), slow(SMALL_UNET)], ids=["transformer", "unet"])
def test_in_bfloat16_all_products_are_and_the_rest_is_as_before(fields):
    """Momentum, parameters and the updates of other parameters stay float32. A matrix's update has the
    direction and size of the float32 update, whose momentum is bias-corrected."""
    model, params = model_of(**fields)
    roles, value = model.roles(params), random_like(params)
    given = {"learning_rate": 0.02, "weight_decay": 0.3, "warmup": 0}
    narrow, wide = (
        optimizer_lib.build(section("muon", **given, dtype=dtype), 10, roles)
        for dtype in ("bfloat16", "float32")
    )
    states = [narrow.init(value), wide.init(value)]
    for n in (1, 2, 3):
        grads = random_like(params, n)
        moved, states[0] = jax.jit(narrow.update)(grads, states[0], value)
        expected, states[1] = jax.jit(wide.update)(grads, states[1], value)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {np.dtype("float32")}
    matrices = {path for of, path, _ in AS_MATRICES if of == fields}
    for path, found in flat(moved).items():
        want = np.asarray(flat(expected)[path], np.float64)
        if path in matrices:
            cosine = np.sum(found * want) / math.sqrt(np.sum(np.square(found)) * np.sum(want**2))
            assert cosine > 0.97 and np.std(found) == pytest.approx(np.std(want), rel=0.05), path
    text = str(jax.make_jaxpr(narrow.update)(grads, states[0], value))
    products = re.findall(r":(\w+)\[[\d,]*\] = dot_general", text)
    assert products and set(products) == {"bf16"}
    others = [path for path in flat(moved) if path.endswith("bias")]
    assert others
    for path in others:
        np.testing.assert_allclose(flat(moved)[path], flat(expected)[path], rtol=1e-5, atol=1e-8)
