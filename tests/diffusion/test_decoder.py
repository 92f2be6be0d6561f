"""The decoder against float64 NumPy, and its gradient against autodiff over all levels at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.diffusion import decoder
from vdm.runtime import devices


@pytest.mark.parametrize("vocab_size", [2, 17, 256])
@pytest.mark.parametrize("gamma_0", [-13.3, -5.0, 2.0])
def test_decoder_is_a_distribution(vocab_size, gamma_0):
    """The probabilities of all levels sum to one and agree with float64."""
    z_0 = np.float32(np.random.default_rng(0).normal(size=64))
    every = jnp.broadcast_to(jnp.arange(vocab_size), (64, vocab_size))
    log_prob = jax.jit(decoder.log_prob, static_argnums=3)
    got = log_prob(every, jnp.asarray(z_0)[:, None], jnp.float32(gamma_0), vocab_size)
    assert got.max() <= 0.0
    np.testing.assert_allclose(np.exp(np.float64(got)).sum(-1), 1.0, rtol=2e-4)

    gamma = np.float64(np.float32(gamma_0))
    levels = (2 * np.arange(vocab_size) + 1) / vocab_size - 1
    logits = -0.5 * np.exp(-gamma) * (z_0[:, None] * np.sqrt(1 + np.exp(gamma)) - levels) ** 2
    top = logits.max(-1, keepdims=True)
    want = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    # Rounding z_0/α_0 (below 4) to float32, by up to 2^-23, changes the difference between the logits of
    # neighbouring levels by e^-γ times the levels' distance times the rounding error.
    near = want > -20
    rounding = np.exp(-gamma) * (2 / vocab_size) * 2.0**-23
    np.testing.assert_allclose(got[near], want[near], atol=1e-4 + 2 * rounding)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("gamma_0", [-7.0, 2.0])
def test_decoders_gradient_is_that_of_all_levels_at_once(gamma_0, platform, monkeypatch):
    """With respect to z_0 and γ_0, against autodiff of the softmax over all logits."""
    monkeypatch.setattr(devices, "platform", lambda: platform)
    draw = np.random.default_rng(0)
    levels = jnp.asarray(draw.integers(0, 256, (40,)))
    x = (2.0 * levels + 1.0) / 256 - 1.0
    z_0 = x + 0.05 * jnp.float32(draw.normal(size=40))

    def plain(z_0, gamma_0):
        log_p = jax.nn.log_softmax(decoder.logits(z_0, gamma_0, 256))
        return jnp.take_along_axis(log_p, levels[:, None], axis=-1).sum()

    def ours(z_0, gamma_0):
        return decoder.log_prob(levels, z_0, gamma_0, 256).sum()

    got, want = (jax.grad(f, (0, 1))(z_0, jnp.float32(gamma_0)) for f in (ours, plain))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-3)


@pytest.mark.parametrize(
    ("gamma_0", "vocab_size", "reach"), [(-13.3, 256, 1), (-10.0, 256, 5), (-9.0, 17, 1)]
)
def test_levels_within_reach_are_all_that_count(gamma_0, vocab_size, reach):
    """Against float64 over all levels: near each level, half-way between neighbours, and beyond the ends."""
    assert decoder.reach(gamma_0, vocab_size) == reach
    levels = np.repeat(np.arange(vocab_size), 101)
    offset = np.float32(np.tile(np.linspace(-3.0, 3.0, 101), vocab_size) * 2.0 / vocab_size)
    got = decoder.log_prob_at(jnp.asarray(levels), jnp.asarray(offset), gamma_0, vocab_size, reach)
    apart = 2.0 / vocab_size * (np.arange(vocab_size) - levels[:, None])
    precision = np.exp(-np.float64(np.float32(gamma_0)))
    logits = 0.5 * precision * apart * (2.0 * np.float64(offset)[:, None] - apart)
    want = -np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) - logits.max(-1)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
