"""Group normalisation for a CPU and for accelerators against Flax's, and the U-Net with both."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import slow
from tests.nets.test_nets import NETS, given, perturbed
from vdm.nets import group_norm
from vdm.runtime import devices

CHANNELS, FEATURES = 16, 8
RATE = 0.25


def normal(name, *shape):
    return jax.random.normal(jax.random.key(sum(name.encode())), shape)


def by_flax(h, scale, bias):
    return nn.silu(nn.GroupNorm(num_groups=4).apply({"params": {"scale": scale, "bias": bias}}, h))


def on_cpu(h, scale, bias):
    parts = jnp.split(h, [6], axis=-1)
    return jnp.concatenate(group_norm.normalise_on_cpu(nn.silu, parts, scale, bias), axis=-1)


def assert_same(functions, arguments, argnums):
    """Compares the outputs of two functions, and the gradients of a weighted sum of the outputs."""

    def out_and_gradients(function):
        out, pull = jax.vjp(function, *arguments)
        weights = jax.tree.map(lambda value: normal("weights", *value.shape), out)
        return out, [pull(weights)[n] for n in argnums]

    want, got = (jax.jit(out_and_gradients, static_argnums=0)(function) for function in functions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4), got, want)


@pytest.mark.parametrize("ours", [on_cpu, functools.partial(group_norm.normalise, nn.silu)])
def test_against_flax(ours):
    arguments = 2.0 + normal("h", 3, 4, 5, CHANNELS), normal("scale", CHANNELS), normal("bias", CHANNELS)
    assert_same((by_flax, ours), arguments, (0, 1, 2))


def plain_convolution(parts, offset, params, keep):
    """The result of `convolve_normed`, computed step by step, with Flax's norm of each image."""
    h = jnp.concatenate(parts, axis=-1)
    before = h if offset is None else h + offset[:, None, None]
    normed = jax.vmap(lambda h, *of: by_flax(h[None], *of)[0])(before, params.scale, params.bias)
    if keep is not None:
        normed = jnp.where(keep, normed / (1.0 - RATE), 0.0)
    out = jax.lax.conv_general_dilated(
        normed, params.kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    out += 0.0 if params.added is None else params.added[0]
    return out, h if params.shortcut is None else jnp.einsum("bhwc,cf->bhwf", h, params.shortcut)


@pytest.mark.parametrize("all_of_it", [True, False])
def test_normed_convolution_against_its_steps(all_of_it):
    images = 3
    kernel = normal("kernel", 3, 3, CHANNELS, FEATURES)
    params = group_norm.NormedConv(
        normal("scale", images, CHANNELS), normal("bias", images, CHANNELS), kernel
    )
    offset = keep = None
    if all_of_it:
        params = params._replace(shortcut=normal("shortcut", CHANNELS, FEATURES))
        offset = 3.0 * normal("offset", images, CHANNELS)
        keep = normal("keep", images, 4, 5, CHANNELS) > -0.7
    parts = normal("part", images, 4, 5, 6), 1.0 + normal("other", images, 4, 5, 10)
    rate = RATE if all_of_it else 0.0
    ours = functools.partial(group_norm.convolve_normed, rate)
    assert_same((plain_convolution, ours), (parts, offset, params, keep), (0, 1, 2) if all_of_it else (0, 2))


def test_what_is_added_is_the_same_for_each_image():
    """Each image contributes its own share of the gradient."""
    bias = normal("bias", FEATURES)
    (added,) = group_norm.over_images(3, bias)
    ones = jnp.ones((3, CHANNELS))
    parts = (normal("h", 3, 4, 5, CHANNELS),)
    kernel = normal("kernel", 3, 3, CHANNELS, FEATURES)

    def total(bias):
        (added,) = group_norm.over_images(3, bias)
        params = group_norm.NormedConv(ones, ones, kernel, added)
        out, _ = group_norm.convolve_normed(0.0, parts, None, params, None)
        return jnp.sum(out * normal("weights", *out.shape))

    np.testing.assert_array_equal(added, np.broadcast_to(bias, (3, FEATURES)))
    want = normal("weights", 3, 4, 5, FEATURES).sum((0, 1, 2))
    np.testing.assert_allclose(jax.grad(total)(bias), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "platform, fields",
    [
        slow("tpu", {"remat": "dots"}),
        slow("tpu", {"remat": "block"}),
        slow("gpu", {"unroll": True}),
    ],
)
def test_the_unet_is_the_same_function_on_an_accelerator(platform, fields, monkeypatch):
    """The accelerator's form, run on a CPU: values, gradients, dropout."""
    net = NETS["unet"].clone(depth=1, dropout=0.3, **fields)
    z, time, condition = given(3)
    params = perturbed(jax.jit(net.init)(jax.random.key(0), z, time, condition), seed=1)
    keys = jax.random.split(jax.random.key(2), 3)

    def found():
        loss = lambda params, z: jnp.sum(jnp.sin(net.apply(params, z, time, condition, keys)))
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, z)

    want = found()
    monkeypatch.setattr(devices, "platform", lambda: platform)
    jax.clear_caches()
    text = str(jax.make_jaxpr(lambda z: net.apply(params, z, time, condition, keys))(z))
    assert "convolve_normed" in text
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), found(), want)
    jax.clear_caches()
