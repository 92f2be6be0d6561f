"""The convolution and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.nets import conv, layers


@pytest.mark.parametrize("shape, features", [((3, 5, 4, 6), 7), ((2, 40, 33, 2), 3)])
def test_convolution_and_its_gradients_against_sums(shape, features):
    """The CPU form, the plain form and the CPU form per part, against nine shifted products in float64."""
    random = np.random.default_rng(0)
    h = random.normal(size=shape)
    kernel = random.normal(size=(3, 3, shape[-1], features))
    dy = random.normal(size=(*shape[:3], features))
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
