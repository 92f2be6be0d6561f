"""Checkpoints of the official code: its own files where available, and always a small one made here."""

import json
import os
import pathlib
import types

from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import ROOT, make_config
from vdm import run as run_lib
from vdm.data.dataset import Spec
from vdm.diffusion import process
from vdm.errors import UserError
from vdm.exchange import importing, official
from vdm.runtime import randomness

pytestmark = pytest.mark.usefixtures("single")

FOLDER = pathlib.Path(os.environ.get("VDM_OFFICIAL", ROOT.parent / "shared" / "official"))
NAMES = ("scalar", "scalar_T100", "net_attention")


def model_of(given, timesteps=0, shape=(32, 32, 3)):
    """The Diffusion with the fields that a checkpoint implies, and its parameters, both checked."""
    fields = {f"model.{name}": value for name, value in given.fields.items()} | {"model.timesteps": timesteps}
    config = make_config(fields, "configs/cifar10.py")
    importing.check_fields(config, given.fields, "x")
    made, params = run_lib.build_model(config, Spec(shape, 256, 10)), official.parameters(given.ema)
    batch = {"image": np.zeros((1, *shape), np.uint8), "augmented": np.zeros(1, np.float32)}
    importing.check_shapes(params, jax.eval_shape(lambda: made.init(jax.random.key(0), batch)), "x")
    return made, params


def relative(found, want):
    """The largest difference, relative to the largest value."""
    return np.abs(np.asarray(found, np.float64) - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_official_code_computed(name):
    """γ, ε̂ and each term, on the official code's noise. Where its terms lose digits by cancellation in
    float32, computing the equation in its order gives its number, and our number agrees with float64."""
    if not (FOLDER / f"{name}.npz").exists():
        pytest.skip(f"no {name}.npz in {FOLDER}")
    with np.load(FOLDER / f"{name}.npz") as file:
        their = dict(file)
    timesteps = json.loads(str(their["config"]))["sm_n_timesteps"]
    made, params = model_of(official.read(str(FOLDER / f"ckpt-{name}.flax")), timesteps)
    gamma = lambda t: made.gamma(params, jnp.asarray(t, jnp.float32))
    assert relative(gamma(their["gamma_times"]), their["gamma"]) < 1e-6
    with jax.default_matmul_precision("highest"):
        eps_hat = jax.jit(lambda z, g, c: made.eps_hat(params, z, g, c[:, None]))
        found = eps_hat(their["z"], their["gamma_t"], their["conditioning"])
        assert relative(found, their["eps_hat"]) < 1e-5

        drawn = {randomness.RECONSTRUCTION: their["eps_0"], randomness.NOISE: their["eps"]}
        rng = types.SimpleNamespace(normal=lambda use, shape: jnp.asarray(drawn[use]))
        t = jnp.asarray(their["t"])
        t = t - 0.5 / timesteps if timesteps else t  # within the step that ends at t
        times = lambda rng: (t, jnp.ones(()))
        batch = {"image": jnp.asarray(their["image"]), "augmented": jnp.asarray(their["conditioning"])}
        terms = jax.jit(lambda params: made.draw(params, rng, batch, times=times).terms)(params)
    np.testing.assert_allclose(terms["diffusion"], their["loss_diff"], rtol=1e-5)

    gamma_0, gamma_1 = gamma(0.0), gamma(1.0)
    levels = their["image"].astype(np.int32)
    x = process.scale(their["image"], 256)
    as_theirs = float32_terms(levels, x, their["eps_0"], gamma_0, gamma_1)
    for ours, theirs, equation, exact in zip(
        (terms["reconstruction"], terms["prior"]),
        (their["loss_recon"], their["loss_klz"]),
        as_theirs,
        float64_terms(levels, their["eps_0"], float(gamma_0), float(gamma_1)),
    ):
        np.testing.assert_allclose(equation, theirs, rtol=1e-6)
        np.testing.assert_allclose(ours, exact, rtol=1e-5)
        np.testing.assert_allclose(ours, theirs, rtol=3e-5)  # their rounding error, as `exact` shows


def float32_terms(levels, x, eps_0, gamma_0, gamma_1):
    """Reconstruction and prior in the order in which the official code computes them."""
    rescaled = x + jnp.exp(0.5 * gamma_0) * eps_0
    values = 2 * ((jnp.arange(256) + 0.5) / 256) - 1
    log_p = jax.nn.log_softmax(-0.5 * jnp.square((rescaled[..., None] - values) * jnp.exp(-0.5 * gamma_0)))
    reconstruction = -jnp.sum(jax.nn.one_hot(levels, 256) * log_p, axis=(1, 2, 3, 4))
    variance = jax.nn.sigmoid(gamma_1)
    kl = (1.0 - variance) * jnp.square(x) + variance - jnp.log(variance) - 1.0
    return reconstruction, 0.5 * jnp.sum(kl, axis=(1, 2, 3))


def float64_terms(levels, eps_0, gamma_0, gamma_1):
    """The same terms in float64 NumPy."""
    values = (2.0 * np.arange(256) + 1.0) / 256.0 - 1.0
    x = values[levels]
    reconstruction = []
    for image, level, eps in zip(x, levels, eps_0):
        offset = image[..., None] + np.exp(0.5 * gamma_0) * np.float64(eps)[..., None] - values
        logits = -0.5 * np.exp(-gamma_0) * offset**2
        top = logits.max(axis=-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
        reconstruction.append(-np.take_along_axis(log_p, level[..., None], axis=-1).sum())
    alpha2 = 1.0 / (1.0 + np.exp(gamma_1))
    prior = 0.5 * (alpha2 * x**2 - alpha2 + np.log1p(np.exp(-gamma_1))).sum(axis=(1, 2, 3))
    return np.array(reconstruction), prior


def small(attention, fourier, net_schedule, depth=2, width=128, colours=1):
    """Random `ema_params` in the form that the official trainer writes."""
    random = np.random.default_rng(0)
    draw = lambda *shape: (random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    dense = lambda *shape: {"kernel": draw(*shape), "bias": 0.1 * draw(shape[-1])}
    norm = lambda size: {"scale": 1.0 + 0.1 * draw(size), "bias": 0.1 * draw(size)}

    def block(inputs):
        found = {
            "GroupNorm_0": norm(inputs),
            "GroupNorm_1": norm(width),
            "conv1": dense(3, 3, inputs, width),
            "conv2": dense(3, 3, width, width),
            "cond_proj": {"kernel": draw(4 * width, width)},
        }
        return found | ({"nin_shortcut": dense(inputs, width)} if inputs != width else {})

    def attend():
        return {"GroupNorm_0": norm(width)} | {n: dense(width, width) for n in ("q", "k", "v", "proj_out")}

    net = {
        "dense0": dense(width + 1, 4 * width),
        "dense1": dense(4 * width, 4 * width),
        "conv_in": dense(3, 3, colours * (5 if fourier else 1), width),
        "conv_out": dense(3, 3, width, colours),
        "GroupNorm_0": norm(width),
        "mid.block_1": block(width),
        "mid.block_2": block(width),
        "mid.attn_1": attend(),
    }
    net |= {f"down.block_{i}": block(width) for i in range(depth)}
    net |= {f"up.block_{i}": block(2 * width) for i in range(depth + 1)}
    if attention:
        net |= {
            f"{way}.attn_{i}": attend() for way, n in (("down", depth), ("up", depth + 1)) for i in range(n)
        }
    gamma = {"b": np.float32([-13.0]), "w": np.float32([17.5])}
    if net_schedule:
        gamma = {"l1": {"kernel": np.float32([[18.0]]), "bias": np.float32([-13.0])}}
        gamma |= {"l2": dense(1, 64), "l3": {"kernel": 40.0 * draw(64, 1)}}
    return {"score_model": net, "gamma": gamma}


def theirs(ema, z, time, flag):
    """ε̂ of the official U-Net in float64 NumPy, written from its description."""
    net = jax.tree.map(np.float64, ema["score_model"])
    width = net["conv_in"]["kernel"].shape[-1]
    swish = lambda h: h / (1.0 + np.exp(-h))
    dense = lambda p, h: h @ p["kernel"] + p.get("bias", 0.0)

    def norm(p, h):
        groups = h.reshape(len(h), -1, 32, h.shape[-1] // 32)
        mean = groups.mean(axis=(1, 3), keepdims=True)
        variance = groups.var(axis=(1, 3), keepdims=True)
        return ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(h.shape) * p["scale"] + p["bias"]

    def conv(p, h):
        height, across = h.shape[1:3]
        wide = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = [(i, j) for i in range(3) for j in range(3)]
        parts = [wide[:, i : i + height, j : j + across] @ p["kernel"][i, j] for i, j in windows]
        return sum(parts) + p["bias"]

    angles = 1000.0 * time[:, None] * np.exp(-np.log(10000.0) * np.arange(width // 2) / (width // 2 - 1))
    told = np.concatenate([np.sin(angles), np.cos(angles), flag[:, None]], axis=1)
    told = swish(dense(net["dense1"], swish(dense(net["dense0"], told))))

    def block(p, h):
        out = conv(p["conv1"], swish(norm(p["GroupNorm_0"], h)))
        out = out + dense(p["cond_proj"], told)[:, None, None]
        out = conv(p["conv2"], swish(norm(p["GroupNorm_1"], out)))
        return out + (dense(p["nin_shortcut"], h) if "nin_shortcut" in p else h)

    def attend(p, h):
        flat = norm(p["GroupNorm_0"], h).reshape(len(h), -1, width)
        q, k, v = (dense(p[name], flat) for name in ("q", "k", "v"))
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(width))
        out = weights / weights.sum(axis=-1, keepdims=True) @ v
        return h + dense(p["proj_out"], out).reshape(h.shape)

    def layer(way, i, h):
        h = block(net[f"{way}.block_{i}"], h)
        return attend(net[f"{way}.attn_{i}"], h) if f"{way}.attn_{i}" in net else h

    features = z
    if net["conv_in"]["kernel"].shape[2] > z.shape[-1]:
        turns = np.stack([z * 2.0**n * 2.0 * np.pi for n in (6, 7)], axis=-1).reshape(*z.shape[:-1], -1)
        features = np.concatenate([z, np.sin(turns), np.cos(turns)], axis=-1)
    outputs = [conv(net["conv_in"], features)]
    depth = sum(name.startswith("down.block") for name in net)
    for i in range(depth):
        outputs.append(layer("down", i, outputs[-1]))
    h = attend(net["mid.attn_1"], block(net["mid.block_1"], outputs[-1]))
    h = block(net["mid.block_2"], h)
    for i in range(depth + 1):
        h = layer("up", i, np.concatenate([h, outputs.pop()], axis=-1))
    return z + conv(net["conv_out"], swish(norm(net["GroupNorm_0"], h)))


@pytest.mark.parametrize("attention, fourier, net_schedule", [(True, True, True), (False, False, False)])
def test_a_small_one_is_the_function_of_numpy(attention, fourier, net_schedule):
    ema = small(attention, fourier, net_schedule)
    given = official.Checkpoint(3, ema, official._fields(ema))
    made, params = model_of(given, shape=(4, 4, 1))
    random = np.random.default_rng(1)
    z, gamma_t, flag = random.normal(size=(2, 4, 4, 1)), np.array([-6.0, 2.0]), np.array([1.0, 0.0])
    found = jax.jit(lambda *args: made.eps_hat(params, *args))(
        jnp.float32(z), jnp.float32(gamma_t), jnp.float32(flag[:, None])
    )
    want = theirs(ema, np.float64(np.float32(z)), (gamma_t + 13.3) / 18.3, flag)
    assert relative(found, want) < 1e-4 and np.abs(want - z).max() > 0.1
    if net_schedule:
        t, p = np.linspace(0.0, 1.0, 5)[:, None], jax.tree.map(np.float64, ema["gamma"])
        bends = 2.0 / (1.0 + np.exp(-((2.0 * t - 1.0) @ np.abs(p["l2"]["kernel"]) + p["l2"]["bias"]))) - 1.0
        want = t * 18.0 - 13.0 + bends @ np.abs(p["l3"]["kernel"]) / 64
        assert relative(made.gamma(params, jnp.float32(t[:, 0])), want[:, 0]) < 1e-6
        assert abs(want[0, 0] + 13.0) > 0.01, "the schedule's ends move"


def test_what_is_no_such_file_is_one_line(tmp_path):
    path = tmp_path / "ckpt-1.flax"
    with pytest.raises(UserError, match="which is not a file; give a ckpt-N.flax"):
        official.read(str(path))
    ema = small(False, False, False, depth=1)
    whole = serialization.msgpack_serialize({"step": 7, "params": {}, "ema_params": ema, "opt_state": {}})
    for data, text in (
        (whole[:-9], "it is no complete flax msgpack"),
        (b"", "it is no complete flax msgpack"),
        (serialization.msgpack_serialize({"step": 7, "params": ema}), "it has no 'ema_params'"),
        (serialization.msgpack_serialize({"step": 7, "ema_params": {"net": {}}}), "of another model"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=text):
            official.read(str(path))
    path.write_bytes(whole)
    given = official.read(str(path))
    assert given.step == 7 and given.fields["net.depth"] == 1
    config = make_config(file="configs/cifar10.py")
    with pytest.raises(UserError, match="add --config.model.net.depth=1 --config.model.net.fourier=0$"):
        importing.check_fields(config, given.fields, "x")
    with pytest.raises(UserError, match="another model than the config: net/params/conv_in/kernel is"):
        importing.check_shapes(official.parameters(small(False, True, False)), official.parameters(ema), "x")
