"""The autoregressor: its exact likelihood, what it may see, and samples that are its own."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import autoregressor as config_lib
from exact import split
from vdm import model
from vdm.data import dataset as data
from vdm.evaluation import estimators
from vdm.errors import UserError
from vdm.nets import causal, layers
from vdm.runtime.randomness import Rng, Spread

LEVELS = 3
SHAPES = [(2, 2, 1), (2, 1, 2)]


@functools.cache
def made(shape=(2, 2, 1), **changes):
    """A small autoregressor of pictures of a shape, and random parameters."""
    config = config_lib.get_config()
    config.model.net.update(dict(depth=2, width=16, heads=2, dropout=0.5))
    config.model.update_from_flattened_dict(changes)
    found = model.build(config, data.Spec(shape, LEVELS, 4))
    like = jax.eval_shape(lambda: found.init(jax.random.key(0), batch(np.zeros((1, *shape)))))
    draw = np.random.default_rng(0)
    return found, jax.tree.map(lambda v: jnp.float32(0.3 * draw.normal(size=v.shape)), like)


def batch(images, label=0):
    n = len(images)
    return {
        "image": np.asarray(images, np.uint8),
        "label": np.full(n, label, np.int32),
        "augmented": np.zeros(n, np.float32),
    }


def rng(size, number=0):
    return Rng(jax.random.key(number), jnp.arange(size), size)


def every(shape):
    """All pictures of a shape: [LEVELS^values, *shape]."""
    return np.array(list(itertools.product(range(LEVELS), repeat=int(np.prod(shape))))).reshape(-1, *shape)


sample = jax.jit(lambda found, *args: found.sample(*args), static_argnums=0)
loss = jax.jit(lambda found, *args: found.loss(*args), static_argnums=(0, 4))


def log_p(found, params, given):
    terms = loss(found, params, rng(len(given["image"])), given, False)
    assert list(terms) == ["likelihood"]
    return -np.asarray(terms["likelihood"], np.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_sum_to_one(shape):
    found, params = made(shape)
    of_all = log_p(found, params, batch(every(shape)))
    assert of_all.std() > 0.1
    assert np.exp(of_all).sum() == pytest.approx(1.0, abs=1e-5)


def test_at_its_start_every_picture_is_as_likely():
    found, _ = made((2, 2, 1))
    given = batch(every((2, 2, 1)))
    params = jax.jit(found.init)(jax.random.key(0), given)
    np.testing.assert_allclose(log_p(found, params, given), -4 * np.log(LEVELS), rtol=1e-6)


def test_a_value_is_seen_by_those_after_it_alone():
    """In raster order; of two channels too."""
    found, params = made((2, 3, 2))
    levels = np.random.default_rng(0).integers(0, LEVELS, (1, 12))
    logits = jax.jit(found.net.apply)
    want = logits(params["net"], levels)
    for i in range(12):
        changed = levels.copy()
        changed[0, i] = (changed[0, i] + 1) % LEVELS
        moved = np.abs(logits(params["net"], changed) - want)[0].max(axis=-1)
        np.testing.assert_array_equal(moved[: i + 1], 0.0)
        assert i == 11 or moved[i + 1 :].min() > 1e-4


@pytest.mark.parametrize("tokens", [5, 150])  # one block of queries, and several
def test_attention_on_a_cpu_is_that_of_jax(tokens):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 7, tokens, 2, 8))

    @functools.partial(jax.jit, static_argnums=0)
    def out_and_gradients(attend):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(jnp.cos(out))

    in_blocks = lambda *qkv: layers.attend_on_cpu(*qkv, causal.attend_in_blocks)  # noqa: E731
    for got, want in zip(*map(out_and_gradients, (in_blocks, causal.attend_before))):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    "condition, dtype, error", [("none", "float32", 1e-5), ("label", "bfloat16", 0.03)]
)
def test_step_after_step_it_is_the_same_network(condition, dtype, error):
    found, params = made((3, 2, 2), **{"condition": condition, "net.dtype": dtype})
    levels = np.random.default_rng(0).integers(0, LEVELS, (5, 12))
    told = None if condition == "none" else jax.nn.one_hot(np.arange(5) % 4, 4)
    want = jax.jit(found.net.apply)(params["net"], levels, told)
    kept = found.net.nothing(5)
    assert kept.dtype == dtype and want.dtype == np.float32

    @jax.jit
    def step(*args):
        return found.net.apply(params["net"], *args, told, method="step")

    for at in range(12):
        before = levels[:, at - 1] if at else np.full(5, 2)  # of no meaning
        logits, kept = step(before, kept, at)
        np.testing.assert_allclose(logits, want[:, at], atol=error * np.abs(want).max())


COUNT = 20_000


def fits(drawn, log_p):
    """Whether COUNT pictures were drawn with these log-probabilities of all 81, by χ²: its mean is the
    degrees of freedom, 80, and its standard deviation √160."""
    place = np.asarray(drawn).reshape(COUNT, 4) @ LEVELS ** np.arange(4)[::-1]
    expected = COUNT * np.exp(log_p)
    assert expected.min() > 5
    squares = np.sum((np.bincount(place, minlength=81) - expected) ** 2 / expected)
    return abs(squares - 80) < 4 * np.sqrt(160)


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_have_the_probabilities_that_it_gives(shape):
    found, params = made(shape)
    given = batch(np.zeros((COUNT, *shape)))
    drawn = sample(found, params, rng(COUNT), given)
    assert drawn.shape == (COUNT, *shape) and drawn.dtype == np.uint8 and drawn.max() < LEVELS
    assert fits(drawn, log_p(found, params, batch(every(shape))))

    others = Rng(jax.random.key(0), jnp.arange(COUNT) + 5, COUNT)  # a sample is its example's own
    np.testing.assert_array_equal(drawn[5:], sample(found, params, others, given)[:-5])


def test_the_label_reaches_likelihood_and_samples():
    found, params = made(condition="label")
    of_labels = [log_p(found, params, batch(every((2, 2, 1)), label)) for label in range(2)]
    for label in range(2):
        assert np.exp(of_labels[label]).sum() == pytest.approx(1.0, abs=1e-5)
        drawn = sample(found, params, rng(COUNT), batch(np.zeros((COUNT, 2, 2, 1)), label))
        assert fits(drawn, of_labels[label]) and not fits(drawn, of_labels[1 - label])


def test_every_evaluation_gives_the_same():
    """The likelihood is exact: passes differ in nothing, and the standard error has no noise in it."""
    found, params = made((2, 2, 1))
    given = batch(every((2, 2, 1)))
    spread = lambda number, key: Spread(jax.random.key(key), jnp.arange(81), number, 81, 4)  # noqa: E731
    one, other = (loss(found, params, s, given, False)["likelihood"] for s in (spread(0, 0), spread(3, 5)))
    np.testing.assert_array_equal(one, other)
    one, other = (loss(found, params, rng(81, n), given, True)["likelihood"] for n in (0, 1))
    assert np.abs(one - other).max() > 1e-3  # dropout

    config = config_lib.get_config()
    config.eval.update(dict(batch_size=8, passes=4))
    this = SimpleNamespace(state=SimpleNamespace(ema=params), data=split(given["image"], LEVELS))
    row, profile = estimators.elbo_row(config, this, found)
    assert row.name == "exact" and row.estimate.noise["bpd"] == 0.0 and profile is None
    assert row.estimate.mean["bpd"] == pytest.approx(np.mean(-log_p(found, params, given)) / 4 / np.log(2))


def test_unrolled_is_the_same_function():
    """And so are its gradients, where nothing is kept for them."""
    found, params = made()
    keys = rng(81).keys(0)
    levels = every((2, 2, 1)).reshape(81, 4)

    def out_and_gradient(net):
        def loss(params):
            out = net.apply(params, levels, None, keys)
            return jnp.square(out).mean(), out

        return jax.jit(jax.grad(loss, has_aux=True))(params["net"])

    assert found.net.unroll
    want = out_and_gradient(found.net)
    got = out_and_gradient(found.net.clone(unroll=False, remat="block"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, want)


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="config.model.net.name is 'unet'; accepted: 'transformer'"):
        made(**{"net.name": "unet"})
    with pytest.raises(UserError, match="multiple of"):
        made(**{"net.heads": 3})
