"""The VAE against quadrature over its latent: likelihood, ELBO, importance weights, samples."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from baseline_helpers import assert_bounds_agree, bounds_of_grid, importance_bounds, random_parameters
from conftest import make_config
import exact
from vdm import run, run as run_lib, step
from vdm.baselines import vae
from vdm.data.dataset import Spec
from vdm.errors import UserError
from vdm.evaluation import elbo, estimator
from vdm.runtime.randomness import Rng
from weight_helpers import assert_weights_of_samples

LEVELS, SHAPE = 3, (1, 2, 1)
IMAGES = np.array(list(itertools.product(range(LEVELS), repeat=2)), np.uint8).reshape(-1, *SHAPE)
COUNT = 20_000


def made(latent=1, **changes):
    """A small VAE, and its parameters."""
    small = {"model.name": "vae", "model.latent": latent, "model.net.depth": 1, "model.net.width": 16}
    built = run_lib.build_model(make_config(small | changes), Spec(SHAPE, LEVELS, 4))
    return built, random_parameters(built, {})


def rng(count=COUNT, number=0):
    return Rng(jax.random.key(number), jnp.arange(count), count)


def integrated(built, params):
    """For quadrature over z: the points, the weight of each, log p(z) and log p(x|z) [points, images]."""
    axis = np.linspace(-8.0, 8.0, 321 if built.latent == 1 else 81)
    z = np.stack(np.meshgrid(*[axis] * built.latent, indexing="ij"), axis=-1).reshape(-1, built.latent)

    @jax.jit
    def log_p(z, image):
        p_x = built.decode(params, z)
        return vae.log_likelihood(jnp.broadcast_to(image, (len(z), *SHAPE)), p_x, LEVELS)

    log_p_x = np.stack([log_p(z, image) for image in IMAGES], axis=1).astype(np.float64)
    return z, (axis[1] - axis[0]) ** built.latent, stats.norm.logpdf(z).sum(axis=1), log_p_x


@pytest.mark.parametrize("latent", [1, 2])
def test_elbo_and_importance_weights_against_quadrature(latent):
    """The ELBO has the mean log p(x) − KL(q(z|x) ‖ p(z|x)) (lecture (9)). Importance weights have the mean
    p(x); the bound of K weights rises with K, from the ELBO towards log p(x); p(x) sums to 1."""
    built, params = made(latent)
    z, cell, log_prior, log_p_x = integrated(built, params)
    np.testing.assert_allclose(np.exp(log_p_x).sum(axis=1), 1.0, atol=1e-5)
    log_p = np.log(np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4)

    q = jax.tree.map(np.asarray, jax.jit(built.encode)(params, IMAGES))

    @jax.jit
    def draws(image):
        batch = {"image": jnp.broadcast_to(image, (COUNT, *SHAPE))}
        return built.draw(params, rng(), batch).terms, built.log_weight(params, rng(), batch)

    gaps = []
    for i, image in enumerate(IMAGES):
        log_q = stats.norm.logpdf(z, q.mean[i], np.exp(0.5 * q.log_variance[i])).sum(axis=1)
        posterior = log_prior + log_p_x[:, i] - log_p[i]
        gaps.append(np.sum(np.exp(log_q) * (log_q - posterior)) * cell)

        terms, log_w = draws(image)
        assert set(terms) == {"reconstruction", "prior"}
        nats = np.asarray(sum(terms.values()), np.float64)
        assert nats.mean() == pytest.approx(gaps[-1] - log_p[i], abs=4 * nats.std() / math.sqrt(COUNT))

        log_w = np.asarray(log_w, np.float64)
        w = np.exp(log_w - log_p[i])
        assert w.mean() == pytest.approx(1.0, abs=4 * w.std() / math.sqrt(COUNT))
        assert log_w.mean() == pytest.approx(log_p[i] - gaps[-1], abs=4 * log_w.std() / math.sqrt(COUNT))
        tight = importance_bounds(log_w)
        assert_bounds_agree(tight, bounds_of_grid(log_q, log_prior + log_p_x[:, i], COUNT), log_p[i])
        assert tight[2, 0] > log_p[i] - 0.5 * gaps[-1]
    assert np.mean(gaps) > 0.05  # q is not the posterior, so the ELBO differs from log p


def test_samples_have_the_integrated_probabilities():
    built, params = made()
    params["decoder"]["params"]["out"]["kernel"] *= 4.0  # so that p(x|z) depends on z
    _, cell, log_prior, log_p_x = integrated(built, params)
    p = np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell
    drawn = np.asarray(jax.jit(lambda: built.sample(params, rng(), {}))())
    assert drawn.shape == (COUNT, *SHAPE) and drawn.dtype == np.uint8
    share = (drawn[:, None] == IMAGES).all(axis=(2, 3, 4)).mean(axis=0)
    assert np.abs(share - p).max() < 4 * math.sqrt(p.max() / COUNT)
    assert log_p_x.std(axis=0).min() > 0.5
    assert_weights_of_samples(built, params, IMAGES, COUNT)


def test_dropout_acts_in_training_alone():
    built, params = made(**{"model.net.dropout": 0.5})
    batch = {"image": IMAGES}
    prior = lambda number, train: built.draw(params, rng(9, number), batch, train).terms["prior"]
    both = jax.jit(lambda number: (prior(number, True), prior(number, False)))
    (train, test), (other_train, other_test) = both(0), both(1)
    assert np.abs(train - test).max() > 1e-2 and np.abs(train - other_train).max() > 1e-2
    np.testing.assert_array_equal(test, other_test)


def test_descent_brings_the_bound_to_the_entropy_of_the_data():
    """The two values of an image are equal, one of three levels: log 3 nats, if z tells the levels apart."""
    built, _ = made()
    batch = {"image": jnp.tile(jnp.repeat(jnp.arange(LEVELS), 2).reshape(-1, *SHAPE), (32, 1, 1, 1))}

    def loss(params, number):
        terms = built.draw(params, rng(32 * LEVELS, number), batch).terms
        return sum(jnp.mean(nats) for nats in terms.values())

    def one(params, number):
        value, grads = jax.value_and_grad(loss)(params, number)
        rate = 0.05 * (1.0 - number / 500)
        return jax.tree.map(lambda v, g: v - rate * jnp.clip(g, -1.0, 1.0), params, grads), value

    def run_all():
        return jax.lax.scan(one, built.init(jax.random.key(0), {}), jnp.arange(500))[1]

    values = np.asarray(jax.jit(run_all)())
    assert math.log(3) < values[-50:].mean() < math.log(3) + 0.3 < values[:5].mean(), values[::50]


@pytest.mark.slow
def test_the_table_of_estimators():
    """The ELBO and the importance-weighted bounds, under names that mention no chain or depth."""
    built, params = made()
    _, cell, log_prior, log_p_x = integrated(built, params)
    log_p = np.log(np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell)
    images = np.tile(IMAGES, (16, 1, 1, 1))
    this = run.Run(exact.split(images, LEVELS), built, step.State(None, params, params, None))
    config = exact.config(passes=40, chain__samples=64, estimators="all")
    first, profile = elbo.elbo_row(config, this, built)
    assert (first.name, first.bounds, profile) == ("ELBO", "the model", None)
    assert estimator.choose(config, built) == ["elbo", "chain", "codec"]
    rows, series, checks, _ = estimator.measure(config, this, ["elbo", "chain"])
    assert [row.name for row in rows] == ["ELBO", "importance-weighted, K = 64"] and rows[1].evaluations == 64
    assert "yes" in checks[0]
    truth = -log_p.mean() / (2 * math.log(2.0))
    means = [row.estimate.mean["bpd"] for row in series["chain"]]
    assert len(means) == 7 and np.all(np.diff(means) < 0)
    assert truth - 0.002 < means[-1] < truth + 0.3 * (means[0] - truth)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"model.latent": 0}, "latent is 0; accepted: 1 or more"),
        ({"model.condition": "label"}, "config.model.condition is set, but 'vae' has no such field"),
        ({"model.net.width": 0}, "net.width is 0; accepted: 1 or more"),
        ({"model.net.dropout": 1.0}, "dropout is 1.0; accepted: at least 0"),
        ({"model.net.dtype": "float16"}, "'float16'; accepted: 'float32', 'bfloat16'"),
    ],
)
def test_bad_values_are_refused(changes, text):
    with pytest.raises(UserError, match=text):
        run_lib.build_model(make_config(changes, "configs/vae.py"), Spec(SHAPE, LEVELS, 4))
