"""The causal networks: the values that a value depends on, and evaluation step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm.nets import causal, layers
from vdm.nets.pixelcnn import PixelCNN
from vdm.runtime.randomness import Rng

LEVELS = 3
NETS = (causal.CausalTransformer, PixelCNN)


def made(shape, classes=0, kind=causal.CausalTransformer, **fields):
    """A small network and random parameters; it is conditioned on a label if there are classes."""
    fields = dict(depth=2, width=16, dropout=0.5) | fields
    fields |= {"heads": 2} if kind is causal.CausalTransformer else {}
    net = kind(shape=shape, vocab_size=LEVELS, unroll=True, **fields)
    condition = jnp.zeros((1, classes)) if classes else None
    like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, net.tokens), jnp.int32), condition)
    random = np.random.default_rng(0)
    return net, jax.tree.map(lambda v: jnp.float32(0.3 * random.normal(size=v.shape)), like)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("shape", [(2, 3, 2), (6, 2, 1)])
def test_a_value_is_seen_by_those_after_it_alone(kind, shape):
    net, params = made(shape, kind=kind)
    levels = np.random.default_rng(0).integers(0, LEVELS, (1, 12))
    logits = jax.jit(net.apply)
    want = logits(params, levels)
    for i in range(12):
        changed = levels.copy()
        changed[0, i] = (changed[0, i] + 1) % LEVELS
        moved = np.abs(np.asarray(logits(params, changed)) - want)[0].max(axis=-1)
        np.testing.assert_array_equal(moved[: i + 1], 0.0)
        assert i == 11 or moved[i + 1 :].min() > 1e-4


@pytest.mark.parametrize("tokens", [5, 150])  # one block of queries, and several
def test_causal_attention_on_a_cpu_is_that_of_jax(tokens):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 7, tokens, 2, 8))

    @functools.partial(jax.jit, static_argnums=0)
    def out_and_gradients(attend, q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(jnp.cos(out))

    in_blocks = lambda *qkv: layers.attend_on_cpu(*qkv, causal.attend_in_blocks)
    for got, want in zip(
        *(out_and_gradients(attend, q, k, v) for attend in (in_blocks, causal.attend_before))
    ):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("kind, shape", [(NETS[0], (2, 3, 2)), (PixelCNN, (2, 3, 2)), (PixelCNN, (14, 2, 1))])
@pytest.mark.parametrize("classes, dtype, error", [(0, "float32", 1e-5), (4, "bfloat16", 0.03)])
def test_step_after_step_it_is_the_same_network(kind, shape, classes, dtype, error):
    net, params = made(shape, classes, kind, dtype=dtype)
    levels = np.random.default_rng(0).integers(0, LEVELS, (5, net.tokens))
    condition = jax.nn.one_hot(np.arange(5) % 4, 4) if classes else None
    want = np.asarray(jax.jit(net.apply)(params, levels, condition))
    kept = net.nothing(5)
    assert jax.tree.leaves(kept)[-1].dtype == dtype and want.dtype == np.float32

    @jax.jit
    def step(*args):
        return net.apply(params, *args, condition, method="step")

    for at in range(net.tokens):
        before = levels[:, at - 1] if at else np.full(5, 2)  # ignored at the first step
        logits, kept = step(before, kept, at)
        np.testing.assert_allclose(logits, want[:, at], atol=error * np.abs(want).max())


def test_dropout_of_a_pixelcnn():
    """Each image has its own, from its key."""
    net, params = made((2, 3, 2), kind=PixelCNN)
    levels = np.zeros((2, 12), int)
    apply = jax.jit(net.apply)
    one, other = (apply(params, levels, None, jax.random.split(jax.random.key(n), 2)) for n in (0, 1))
    assert np.abs(one - other).max(axis=(1, 2)).min() > 0.01 and np.abs(one[0] - one[1]).max() > 0.01
    whole = apply(params, levels)
    np.testing.assert_array_equal(whole[0], whole[1])


def test_unrolled_is_the_same_function():
    """Outputs and gradients are those of a loop over rematerialised blocks."""
    net, params = made((2, 2, 1))
    keys = Rng(jax.random.key(0), jnp.arange(81), 81).keys(0)
    levels = np.stack(np.unravel_index(np.arange(81), (LEVELS,) * 4), axis=1)  # all images of four values

    def out_and_gradient(net):
        def loss(params):
            out = net.apply(params, levels, None, keys)
            return jnp.square(out).mean(), out

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    want = out_and_gradient(net)
    got = out_and_gradient(net.clone(unroll=False, remat="block"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, want)
