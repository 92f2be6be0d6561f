"""The networks: the paper's size, their start, conditioning, dropout, and their two scans."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10
from vdm import model
from vdm.data import dataset as data
from vdm.runtime import randomness
from vdm.errors import UserError
from vdm.nets import conv, layers, mlp, transformer, unet

COMMON = dict(
    out_channels=2,
    depth=2,
    width=16,
    dropout=0.5,
    frequencies=(4.0, 2.0),
    dtype=jnp.dtype("float32"),
    remat="dots",
    unroll=False,
)
NETS = {
    "unet": unet.UNet(attention="everywhere", heads=2, **COMMON),
    "transformer": transformer.Transformer(heads=2, patch=2, **COMMON),
    "mlp": mlp.MLP(**COMMON),
}


def given(batch=3):
    draw = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(draw[0], (batch, 4, 4, 1))
    return z, jax.random.uniform(draw[1], (batch,)), jax.random.normal(draw[2], (batch, 1))


def pushed(params):
    """Parameters away from their start, where the last layers are zero."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [v + 0.1 * jax.random.normal(key, v.shape) for v, key in zip(leaves, keys)]
    )


def test_cifar10_has_the_papers_number_of_parameters():
    config = cifar10.get_config()
    made = model.build(config, data.Spec((32, 32, 3), 256, 10))
    batch = {
        "image": np.zeros((1, 32, 32, 3), np.uint8),
        "label": np.zeros(1, np.int32),
        "augmented": np.zeros(1, np.float32),
    }
    params = jax.eval_shape(lambda: made.init(jax.random.key(0), batch))
    assert sum(value.size for value in jax.tree.leaves(params)) == 30_578_181


def test_cifar10_fourier_frequencies_are_the_papers():
    made = model.build(cifar10.get_config(), data.Spec((32, 32, 3), 256, 10))
    assert made.net.frequencies == (2.0**7, 2.0**6)


def test_fourier_features_have_the_period_of_the_levels():
    """At V/2 cycles a unit, moving by one level, 2/V, changes no feature."""
    vocab_size = 17
    z = jnp.linspace(-0.5, 0.5, 7)[None, None, :, None]
    here = layers.fourier_features(z, (vocab_size / 2,))[..., 1:]
    there = layers.fourier_features(z + 2 / vocab_size, (vocab_size / 2,))[..., 1:]
    np.testing.assert_allclose(here, there, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_starts_at_zero_and_depends_on_all_it_is_given(name):
    net, (z, time, condition) = NETS[name], given()
    params = jax.jit(net.init)(jax.random.key(0), z, time, condition)
    apply = jax.jit(net.apply)
    start = apply(params, z, time, condition)
    assert start.shape == (3, 4, 4, 2)
    np.testing.assert_array_equal(start, 0.0)

    params = pushed(params)
    out = apply(params, z, time, condition)
    for other in (
        (z.at[0, 0, 0, 0].add(1.0), time, condition),
        (z, time + 0.3, condition),
        (z, time, condition + 1.0),
    ):
        assert np.abs(apply(params, *other) - out).max() > 1e-3
    far = apply(params, z.at[0, 0, 0, 0].add(1.0), time, condition) - out
    assert np.abs(far[0, 3, 3]).max() > 1e-6, "attention carries a pixel to every other"
    np.testing.assert_allclose(far[1:], 0.0, atol=1e-5, err_msg="examples do not mix")


@pytest.mark.parametrize("name", NETS)
def test_dropout_belongs_to_the_example(name):
    """Half of a batch, with its keys, drops what it drops in the whole batch."""
    net, (z, time, condition) = NETS[name], given(4)
    params = pushed(jax.jit(net.init)(jax.random.key(0), z, time, condition))
    keys = randomness.Rng(jax.random.key(3), jnp.arange(4), 4).keys(randomness.DROPOUT)
    apply = jax.jit(net.apply)
    whole = apply(params, z, time, condition, keys)
    half = apply(params, z[2:], time[2:], condition[2:], keys[2:])
    np.testing.assert_allclose(whole[2:], half, atol=1e-4)
    other = apply(params, z, time, condition, keys[::-1])
    assert np.abs(whole - other).max() > 1e-2


@pytest.mark.parametrize("name", NETS)
def test_unrolled_is_the_same_function(name):
    net, (z, time, condition) = NETS[name], given()
    params = pushed(jax.jit(net.init)(jax.random.key(0), z, time, condition))
    keys = randomness.Rng(jax.random.key(3), jnp.arange(3), 3).keys(randomness.DROPOUT)
    np.testing.assert_allclose(
        jax.jit(net.apply)(params, z, time, condition, keys),
        jax.jit(net.clone(unroll=True).apply)(params, z, time, condition, keys),
        atol=1e-4,
    )


@pytest.mark.parametrize("name", NETS)
def test_what_is_kept_changes_no_gradient(name):
    net, (z, time, condition) = NETS[name], given()
    params = pushed(jax.jit(net.init)(jax.random.key(0), z, time, condition))
    keys = randomness.Rng(jax.random.key(3), jnp.arange(3), 3).keys(randomness.DROPOUT)

    def gradient(net):
        return jax.jit(
            jax.grad(lambda p: jnp.square(net.apply(p, z, time, condition, keys)).mean())
        )(params)

    want = gradient(net)
    for other in ({"remat": "none"}, {"remat": "block"}, {"unroll": True}, {"unroll": True, "remat": "block"}):
        got = gradient(net.clone(**other))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, want)


@pytest.mark.parametrize("name", NETS)
def test_bfloat16_is_the_same_function_to_its_rounding(name):
    """Parameters, and what comes out, stay float32; what is computed differs by about 2^-8."""
    net, (z, time, condition) = NETS[name], given()
    half = net.clone(dtype=jnp.dtype("bfloat16"))
    params = pushed(jax.jit(half.init)(jax.random.key(0), z, time, condition))
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    want = jax.jit(net.apply)(params, z, time, condition)
    got = jax.jit(half.apply)(params, z, time, condition)
    assert got.dtype == jnp.float32
    error = float(jnp.abs(got - want).max() / jnp.abs(want).max())
    assert 1e-4 < error < 0.05

    keys = randomness.Rng(jax.random.key(3), jnp.arange(3), 3).keys(randomness.DROPOUT)

    def gradient(net):
        loss = lambda params: jnp.square(net.apply(params, z, time, condition, keys)).mean()
        leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
        return np.concatenate([np.ravel(leaf) for leaf in leaves])

    want, got = (gradient(n) for n in (net, half))
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)


def test_a_second_derivative_is_refused_where_blocks_are_rematerialised():
    """It would be wrong; the first is not, and by the others there is one."""
    z = given()[0][:1]
    net = NETS["unet"].clone(depth=1)
    params = pushed(jax.jit(net.init)(jax.random.key(0), z, z[:, 0, 0, 0]))

    def second(remat):
        first = jax.grad(lambda z: jnp.sum(jnp.square(net.clone(remat=remat).apply(params, z, z[:, 0, 0, 0]))))
        return jax.jit(jax.grad(lambda z: jnp.sum(jnp.square(first(z)))))(z)

    assert np.abs(second("dots")).max() > 0
    with pytest.raises(UserError, match="'block'.*accepted for more: 'none', 'dots'"):
        second("block")


def test_less_is_kept_where_layers_are_a_loop():
    z = jnp.zeros((16, 16, 16, 1))

    def temporary(remat, depth):
        net = NETS["unet"].clone(depth=depth, attention="middle", remat=remat)
        params = jax.eval_shape(net.init, jax.random.key(0), z, z[:, 0, 0, 0])
        loss = lambda params: net.apply(params, z, z[:, 0, 0, 0]).sum()
        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    none, dots, block = (temporary(remat, 8) for remat in layers.REMAT)
    assert block < dots < 0.8 * none
    # A block down and one up: what each is given, once, and the gradient of what goes across.
    picture = 4 * z.size * NETS["unet"].width
    assert temporary("block", 24) - block < 16 * 3.5 * picture


@pytest.mark.parametrize("shape, features", [((3, 5, 4, 6), 7), ((2, 40, 33, 2), 3)])
def test_convolution_and_its_gradients_against_sums(shape, features):
    """On a CPU, whole and per part, against nine shifted products in float64."""
    draw = np.random.default_rng(0)
    h = draw.normal(size=shape)
    kernel = draw.normal(size=(3, 3, shape[-1], features))
    dy = draw.normal(size=(*shape[:3], features))
    rows, columns = shape[1:3]
    around = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want, dh, dk = np.zeros_like(dy), np.zeros_like(around), np.zeros_like(kernel)
    for i in range(3):
        for j in range(3):
            at = np.s_[:, i : i + rows, j : j + columns]
            want += around[at] @ kernel[i, j]
            dh[at] += dy @ kernel[i, j].T
            dk[i, j] = np.einsum("brci,brco->io", around[at], dy)
    dh = dh[:, 1:-1, 1:-1]

    def close(got, want):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())

    h, kernel, dy = (jnp.float32(v) for v in (h, kernel, dy))
    for convolve in (conv.convolve_on_cpu, conv.convolve_3x3):
        got, pull = jax.vjp(convolve, h, kernel)
        close(got, want)
        for one, other in zip(pull(dy), (dh, dk)):
            close(one, other)
    parts = jnp.split(h, [1], axis=-1)
    got = layers.product_of_parts(conv.convolve_on_cpu, parts, kernel, jnp.ones(features), "float32")
    close(got, want + 1.0)


def test_group_norm_against_flax():
    """Of two parts, as flax has it of both together, and the gradient."""
    draw = jax.random.split(jax.random.key(0), 4)
    h = 2.0 + jax.random.normal(draw[0], (3, 4, 5, 16))
    params = {"scale": jax.random.normal(draw[1], (16,)), "bias": jax.random.normal(draw[2], (16,))}
    weights = jax.random.normal(draw[3], h.shape)

    def ours(h):
        parts = jnp.split(h, [6], axis=-1)
        out = layers.GroupNorm(nn.silu).apply({"params": params}, *parts)
        return jnp.concatenate(out, axis=-1)

    def flax(h):
        return nn.silu(nn.GroupNorm(num_groups=4).apply({"params": params}, h))

    np.testing.assert_allclose(ours(h), flax(h), atol=1e-5)
    got, want = (jax.grad(lambda h, f=f: jnp.sum(weights * f(h)))(h) for f in (ours, flax))
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("tokens", [16, 800])  # all pictures at once, and one by one
def test_attention_on_a_cpu_is_that_of_jax(tokens):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 3, tokens, 2, 8))
    half = [part.astype(jnp.bfloat16) for part in (q, k, v)]
    rough, want = layers.attend_on_cpu(*half), jax.nn.dot_product_attention(*half)
    assert rough.dtype == want.dtype
    rough, want = jnp.float32(rough), jnp.float32(want)
    assert jnp.square(rough - want).mean() < 0.005**2 * jnp.square(want).mean()

    out, pull = jax.vjp(layers.attend_on_cpu, q, k, v)
    want, wanted = jax.vjp(jax.nn.dot_product_attention, q, k, v)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for got, want in zip(pull(out), wanted(out)):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_dropout_keeps_the_mean():
    h = jnp.ones((64, 100))
    keys = jax.random.split(jax.random.key(0), 64)
    out = np.asarray(layers.dropout(h, 0.25, keys))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert abs(out.mean() - 1.0) < 4 * np.sqrt(0.25 / 0.75 / out.size)
