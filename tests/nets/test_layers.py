"""Layers that the networks share: Fourier features, attention, dropout, swish."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.nets import layers


def test_fourier_features_have_the_period_of_the_levels():
    """At V/2 cycles per unit, a shift by one level, 2/V, changes no feature."""
    vocab_size = 17
    z = jnp.linspace(-0.5, 0.5, 7)[None, None, :, None]
    here = layers.fourier_features(z, (vocab_size / 2,))[..., 1:]
    there = layers.fourier_features(z + 2 / vocab_size, (vocab_size / 2,))[..., 1:]
    np.testing.assert_allclose(here, there, atol=1e-5)


@pytest.mark.parametrize("tokens", [16, 800])  # all images at once, and one by one
def test_attention_on_a_cpu_is_that_of_jax(tokens):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 3, tokens, 2, 8))

    @functools.partial(jax.jit, static_argnums=0)
    def found(attend, q, k, v):
        half = [part.astype(jnp.bfloat16) for part in (q, k, v)]
        out, pull = jax.vjp(attend, q, k, v)
        return attend(*half), out, pull(out)

    (rough, out, gradients), (want_rough, want, wanted) = (
        found(attend, q, k, v) for attend in (layers.attend_on_cpu, jax.nn.dot_product_attention)
    )
    assert rough.dtype == want_rough.dtype
    rough, want_rough = np.float32(rough), np.float32(want_rough)
    assert np.square(rough - want_rough).mean() < 0.005**2 * np.square(want_rough).mean()
    np.testing.assert_allclose(out, want, atol=1e-5)
    for got, want in zip(gradients, wanted):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_dropout_keeps_the_mean():
    h = jnp.ones((64, 100))
    keys = jax.random.split(jax.random.key(0), 64)
    out = np.asarray(layers.dropout(h, 0.25, keys))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert abs(out.mean() - 1.0) < 4 * np.sqrt(0.25 / 0.75 / out.size)


def test_swish_and_its_gradient():
    """Against float64."""
    x = np.linspace(-30.0, 30.0, 2_001)
    sigmoid = 1.0 / (1.0 + np.exp(-x))
    value, gradient = jax.vmap(jax.value_and_grad(layers.swish))(jnp.float32(x))
    np.testing.assert_allclose(value, x * sigmoid, atol=4e-6)
    np.testing.assert_allclose(gradient, sigmoid * (1.0 + x * (1.0 - sigmoid)), atol=4e-6)
    second = jax.vmap(jax.grad(jax.grad(layers.swish)))(jnp.float32(x))
    want = sigmoid * (1.0 - sigmoid) * (2.0 + x * (1.0 - 2.0 * sigmoid))
    np.testing.assert_allclose(second, want, atol=4e-6)
