"""The networks: the paper's size, initial output, conditioning, dropout, unrolling, rematerialisation."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config, perturbed, slow
from vdm import run as run_lib
from vdm.data.dataset import Spec
from vdm.errors import UserError
from vdm.nets import mlp, pyramid, transformer, unet
from vdm.nets.network import REMAT, Network
from vdm.runtime import randomness

COMMON = dict(
    shape=(4, 4, 1),
    vocab_size=8,
    out_channels=2,
    unroll=False,
    depth=2,
    width=16,
    dropout=0.5,
    fourier=2,
)
NETS = {
    "unet": unet.UNet(attention="everywhere", heads=2, **COMMON),
    "transformer": transformer.Transformer(heads=2, patch=2, **COMMON),
    "mlp": mlp.MLP(**COMMON),
    "pyramid": pyramid.Pyramid(
        (4, 4, 1), 8, 2, unroll=False, scales=2, depth=1, width=16, patch=1, dropout=0.5
    ),
}
EACH = [slow(name) if name == "unet" else name for name in NETS]


def given(batch=3):
    keys = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (batch, 4, 4, 1))
    return z, jax.random.uniform(keys[1], (batch,)), jax.random.normal(keys[2], (batch, 1))


@functools.cache
def start(name):
    """The initial parameters of a network."""
    return jax.jit(NETS[name].init)(jax.random.key(0), *given(1))


def test_cifar10_has_the_papers_number_of_parameters():
    made = run_lib.build_model(make_config(file="configs/cifar10.py"), Spec((32, 32, 3), 256, 10))
    batch = {
        "image": np.zeros((1, 32, 32, 3), np.uint8),
        "label": np.zeros(1, np.int32),
        "augmented": np.zeros(1, np.float32),
    }
    params = jax.eval_shape(lambda: made.init(jax.random.key(0), batch))
    assert sum(value.size for value in jax.tree.leaves(params)) == 30_578_181


def test_cifar10_fourier_frequencies_are_the_papers():
    made = run_lib.build_model(make_config(file="configs/cifar10.py"), Spec((32, 32, 3), 256, 10))
    assert made.net.frequencies == (2.0**7, 2.0**6)


@pytest.mark.parametrize("name", EACH)
def test_starts_at_zero_and_depends_on_all_it_is_given(name):
    net, (z, time, condition) = NETS[name], given()
    apply = jax.jit(net.apply)
    first = apply(start(name), z, time, condition)
    assert first.shape == (3, 4, 4, 2)
    np.testing.assert_array_equal(first, 0.0)

    params = perturbed(start(name), seed=1)
    out = apply(params, z, time, condition)
    for other in (
        (z.at[0, 0, 0, 0].add(1.0), time, condition),
        (z, time + 0.3, condition),
        (z, time, condition + 1.0),
    ):
        assert np.abs(apply(params, *other) - out).max() > 1e-3
    far = apply(params, z.at[0, 0, 0, 0].add(1.0), time, condition) - out
    assert np.abs(far[0, 3, 3]).max() > 1e-6, "a pixel reaches every other"
    np.testing.assert_allclose(far[1:], 0.0, atol=1e-5, err_msg="examples do not mix")


@pytest.mark.parametrize("name", EACH)
def test_dropout_belongs_to_the_example(name):
    """Half of a batch, with its keys, has the same dropout as in the whole batch."""
    net, (z, time, condition) = NETS[name], given(4)
    params = perturbed(start(name), seed=1)
    keys = randomness.Rng(jax.random.key(3), jnp.arange(4), 4).keys(randomness.DROPOUT)
    apply = jax.jit(net.apply)
    whole = apply(params, z, time, condition, keys)
    half = apply(params, z[2:], time[2:], condition[2:], keys[2:])
    np.testing.assert_allclose(whole[2:], half, atol=1e-4)
    other = apply(params, z, time, condition, keys[::-1])
    assert np.abs(whole - other).max() > 1e-2


class Dropped(Network):
    """A network in the style of Flax, whose call takes `train`. It returns a constant after dropout."""

    @nn.compact
    def __call__(self, z, time, condition=None, train=False):
        scale = self.param("scale", nn.initializers.ones, (self.out_channels,))
        ones = jnp.ones((*z.shape[:-1], self.out_channels))
        return scale * nn.Dropout(0.25, deterministic=not train)(ones)


def test_dropout_of_flax_belongs_to_the_example_too():
    """The rate is right; examples drop different units, the same in half of a batch; only in training."""
    net, inputs = Dropped((4, 4, 1), 8, 64, unroll=False), given(4)
    params = net.init(jax.random.key(0), *given(1))
    keys = randomness.Rng(jax.random.key(3), jnp.arange(4), 4).keys(randomness.DROPOUT)
    np.testing.assert_array_equal(net.predict(params, *inputs), 1.0)
    whole = np.asarray(jax.jit(net.predict)(params, *inputs, keys))
    assert set(np.unique(whole)) == {0.0, np.float32(1 / 0.75)}
    assert abs(whole.mean() - 1.0) < 4 * np.sqrt(0.25 / 0.75 / whole.size)
    for i in range(4):
        assert all(np.mean(whole[i] != whole[j]) > 0.25 for j in range(i))
    z, time, _ = (part[2:] for part in inputs)
    np.testing.assert_array_equal(net.predict(params, z, time, None, keys[2:]), whole[2:])
    gradient = jax.grad(lambda params: net.predict(params, *inputs, keys).sum())(params)
    np.testing.assert_allclose(gradient["params"]["scale"], whole.sum(axis=(0, 1, 2)), rtol=1e-6)


@functools.cache
def out_and_gradient(name, **changes):
    """The output of a network with dropout, and the gradient of its mean square."""
    net, inputs = NETS[name].clone(**changes), given()
    keys = randomness.Rng(jax.random.key(3), jnp.arange(3), 3).keys(randomness.DROPOUT)

    def loss(params):
        out = net.apply(params, *inputs, keys)
        return jnp.square(out).mean(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(perturbed(start(name), seed=1))
    return out, gradient


@pytest.mark.parametrize("name", [slow("unet"), slow("transformer"), "mlp"])
def test_unrolled_is_the_same_function_and_what_is_kept_changes_no_gradient(name):
    want, want_gradient = out_and_gradient(name)
    for other in (
        {"remat": "none"},
        {"remat": "block"},
        {"unroll": True, "remat": "block"},
    ):
        out, gradient = out_and_gradient(name, **other)
        np.testing.assert_allclose(out, want, atol=1e-4)
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3)
        jax.tree.map(close, gradient, want_gradient)


@pytest.mark.parametrize("name", [slow("unet"), "transformer", "mlp", "pyramid"])
def test_bfloat16_is_the_same_function_to_its_rounding(name):
    """Parameters and outputs stay float32; the values differ by about 2^-8."""
    half = NETS[name].clone(dtype="bfloat16")
    params = jax.eval_shape(half.init, jax.random.key(0), *given())
    assert {v.dtype for v in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    (want, want_gradient), (got, gradient) = (
        out_and_gradient(name, **d) for d in ({}, {"dtype": "bfloat16"})
    )
    assert got.dtype == jnp.float32
    error = float(jnp.abs(got - want).max() / jnp.abs(want).max())
    assert 1e-4 < error < 0.05
    a, b = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(of)]) for of in (gradient, want_gradient)
    )
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


@pytest.mark.slow
def test_a_second_derivative_is_refused_where_blocks_are_rematerialised():
    """It would be wrong, whether or not time depends on z. First derivatives are right, and other values of
    remat have second ones."""
    net = NETS["unet"].clone(depth=1, attention="middle")
    z, time, _ = given(1)
    params = perturbed(jax.jit(net.init)(jax.random.key(0), z, time), seed=1)

    def second(remat, time_of):
        apply = lambda z: net.clone(remat=remat).apply(params, z, time_of(z))
        first = jax.grad(lambda z: jnp.sum(jnp.square(apply(z))))
        return jax.jit(jax.grad(lambda z: jnp.sum(jnp.square(first(z)))))(z)

    assert np.abs(second("dots", lambda z: z[:, 0, 0, 0])).max() > 0
    for time_of in (lambda z: z[:, 0, 0, 0], lambda z: time):
        with pytest.raises(UserError, match="'block'.*accepted for second ones: 'none', 'dots'"):
            second("block", time_of)


@pytest.mark.slow
def test_less_is_kept_where_layers_are_a_loop():
    z = jnp.zeros((16, 16, 16, 1))

    def temporary(remat, depth):
        net = NETS["unet"].clone(depth=depth, attention="middle", remat=remat)
        params = jax.eval_shape(net.init, jax.random.key(0), z, z[:, 0, 0, 0])
        loss = lambda params: net.apply(params, z, z[:, 0, 0, 0]).sum()
        return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

    none, dots, block = (temporary(remat, 8) for remat in REMAT)
    assert block < dots < 0.8 * none
    # For a block down and a block up: the input of each, once, and the gradient of the skip connection.
    image = 4 * z.size * NETS["unet"].width
    assert temporary("block", 24) - block < 16 * 3.5 * image
