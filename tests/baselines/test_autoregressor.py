"""The autoregressor: its exact likelihood, and samples that follow it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config, slow
from exact import split
from vdm import run as run_lib
from vdm.data.dataset import Spec
from vdm.errors import UserError
from vdm.evaluation import elbo
from vdm.run import Run
from vdm.runtime.randomness import QuasiRng, Rng
from vdm.step import State

LEVELS = 3
SHAPES = [(2, 2, 1), (2, 1, 2)]
FILE = "configs/autoregressor.py"
NET = {"model.net.depth": 2, "model.net.width": 16, "model.net.dropout": 0.5}
HEADS = {"model.net.heads": 2}
PIXELCNN = {"model.net.name": "pixelcnn"}


@functools.cache
def made(shape=(2, 2, 1), **changes):
    """A small autoregressor for images of the given shape, and random parameters."""
    config = make_config(NET | (changes if "model.net.name" in changes else HEADS | changes), FILE)
    found = run_lib.build_model(config, Spec(shape, LEVELS, 4))
    like = jax.eval_shape(lambda: found.init(jax.random.key(0), batch(np.zeros((1, *shape)))))
    random = np.random.default_rng(0)
    return found, jax.tree.map(lambda v: jnp.float32(0.3 * random.normal(size=v.shape)), like)


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
    """All images of the given shape: [LEVELS^values, *shape]."""
    return np.array(list(itertools.product(range(LEVELS), repeat=int(np.prod(shape))))).reshape(-1, *shape)


sample = jax.jit(lambda found, *args: found.sample(*args), static_argnums=0)
draw = jax.jit(
    lambda found, params, rng, batch, train: found.draw(params, rng, batch, train), static_argnums=(0, 4)
)


def log_p(found, params, given):
    terms = draw(found, params, rng(len(given["image"])), given, False).terms
    assert list(terms) == ["likelihood"]
    return -np.asarray(terms["likelihood"], np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("net", [HEADS, PIXELCNN])
def test_probabilities_sum_to_one(net, shape):
    found, params = made(shape, **net)
    of_all = log_p(found, params, batch(every(shape)))
    assert of_all.std() > 0.1
    assert np.exp(of_all).sum() == pytest.approx(1.0, abs=1e-5)


def test_at_the_start_of_a_transformer_every_image_is_as_likely():
    found, _ = made((2, 2, 1))
    given = batch(every((2, 2, 1)))
    params = jax.jit(found.init)(jax.random.key(0), given)
    np.testing.assert_allclose(log_p(found, params, given), -4 * np.log(LEVELS), rtol=1e-6)


def test_layers_are_unrolled_on_a_cpu():
    assert made()[0].net.unroll


COUNT = 20_000


def fits(drawn, log_p):
    """Whether COUNT images fit these log-probabilities of all 81 images, by χ²: with k degrees of freedom it
    has the mean k and the standard deviation √2k. The images expected fewer than 5 times are one category."""
    place = np.asarray(drawn).reshape(COUNT, 4) @ LEVELS ** np.arange(4)[::-1]
    expected = COUNT * np.exp(log_p)
    category = np.where(expected < 5, 81, np.arange(81))
    found, wanted = np.bincount(category[place], minlength=82), np.bincount(category, expected, minlength=82)
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    degrees = len(wanted) - 1
    assert degrees > 20
    squares = np.sum((found - wanted) ** 2 / np.maximum(wanted, 5.0))
    return abs(squares - degrees) < 4 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("net", [HEADS, slow(PIXELCNN)])
def test_samples_have_the_probabilities_that_it_gives(net, shape):
    found, params = made(shape, **net)
    given = batch(np.zeros((COUNT, *shape)))
    drawn = np.asarray(sample(found, params, rng(COUNT), given))
    assert drawn.shape == (COUNT, *shape) and drawn.dtype == np.uint8 and drawn.max() < LEVELS
    assert fits(drawn, log_p(found, params, batch(every(shape))))

    others = Rng(jax.random.key(0), jnp.arange(COUNT) + 5, COUNT)  # a sample depends only on its example
    np.testing.assert_array_equal(drawn[5:], np.asarray(sample(found, params, others, given))[:-5])


def test_the_label_reaches_likelihood_and_samples():
    found, params = made(**{"model.condition": "label"})
    of_labels = [log_p(found, params, batch(every((2, 2, 1)), label)) for label in range(2)]
    for label in range(2):
        assert np.exp(of_labels[label]).sum() == pytest.approx(1.0, abs=1e-5)
        drawn = sample(found, params, rng(COUNT), batch(np.zeros((COUNT, 2, 2, 1)), label))
        assert fits(drawn, of_labels[label]) and not fits(drawn, of_labels[1 - label])


def test_every_evaluation_gives_the_same():
    """The likelihood is exact: all passes agree, and the standard error contains no noise."""
    found, params = made((2, 2, 1))
    given = batch(every((2, 2, 1)))
    spread = lambda number, key: QuasiRng(jax.random.key(key), jnp.arange(81), number, 81, 4)
    one, other = (
        draw(found, params, s, given, False).terms["likelihood"] for s in (spread(0, 0), spread(3, 5))
    )
    np.testing.assert_array_equal(one, other)
    one, other = (draw(found, params, rng(81, n), given, True).terms["likelihood"] for n in (0, 1))
    assert np.abs(one - other).max() > 1e-3  # dropout

    config = make_config({"eval.batch_size": 8, "eval.passes": 4}, FILE)
    run = Run(split(given["image"], LEVELS), found, State(None, params, params, None))
    row, profile = elbo.elbo_row(config, run, found)
    assert row.name == "exact" and row.estimate.noise["bpd"] == 0.0 and profile is None
    assert row.estimate.mean["bpd"] == pytest.approx(np.mean(-log_p(found, params, given)) / 4 / np.log(2))


def test_other_networks_are_refused():
    with pytest.raises(UserError, match="config.model.net.name is 'unet'; accepted: 'transformer'"):
        made(**{"model.net.name": "unet"})
    with pytest.raises(UserError, match="multiple of"):
        made(**{"model.net.heads": 3})
