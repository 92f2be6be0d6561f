"""The networks: the paper's size, their start, conditioning, dropout, and their two scans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cifar10
from vdm import data, model, rng
from vdm.nets import layers, mlp, transformer, unet

COMMON = dict(
    out_channels=2,
    depth=2,
    width=16,
    dropout=0.5,
    frequencies=(4.0, 2.0),
    dtype=jnp.dtype("float32"),
    remat="dots",
    unroll=True,
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
    keys = rng.Rng(jax.random.key(3), jnp.arange(4), 4).keys(rng.DROPOUT)
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
    keys = rng.Rng(jax.random.key(3), jnp.arange(3), 3).keys(rng.DROPOUT)
    rolled = net.clone(unroll=False)
    np.testing.assert_allclose(
        jax.jit(rolled.apply)(params, z, time, condition, keys),
        jax.jit(net.apply)(params, z, time, condition, keys),
        atol=1e-4,
    )


def test_dropout_keeps_the_mean():
    h = jnp.ones((64, 100))
    keys = jax.random.split(jax.random.key(0), 64)
    out = np.asarray(layers.dropout(h, 0.25, keys))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert abs(out.mean() - 1.0) < 4 * np.sqrt(0.25 / 0.75 / out.size)
