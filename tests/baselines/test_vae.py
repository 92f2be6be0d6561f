"""The VAE against quadrature over its latent: likelihood, ELBO, importance weights, samples."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import exact
from configs import default, vae as vae_config
from vdm import model, run, step
from vdm.data import dataset as data
from vdm.diffusion import gaussian
from vdm.evaluation import estimators
from vdm.baselines import vae
from vdm.errors import UserError
from vdm.runtime.randomness import Rng

LEVELS, SHAPE = 3, (1, 2, 1)
PICTURES = np.array(list(itertools.product(range(LEVELS), repeat=2)), np.uint8).reshape(-1, *SHAPE)
COUNT = 20_000


def made(latent=1, **changes):
    """A small VAE, and its parameters."""
    config = default.get_config()
    config.model.net.update(dict(depth=1, width=16))
    config.update_from_flattened_dict({"model.name": "vae", "model.latent": latent, **changes})
    built = model.build(config, data.Spec(SHAPE, LEVELS, 4))
    return built, parameters(built, {})


def parameters(built, batch):
    """Random parameters, but of q such that it is wide enough to weigh its draws."""
    shapes = jax.eval_shape(built.init, jax.random.key(0), batch)
    draw = np.random.default_rng(0)

    def one(path, leaf):
        names = [getattr(key, "key", None) for key in path]
        size = 0.5 if names[0] in ("encoder", "up", "down") and "out" in names or names[0] == "prior" else 1.0
        value = draw.normal(size=leaf.shape) * size / math.sqrt(max(4, *leaf.shape[:1]))
        return jnp.asarray(value + (names[-1] == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)


def rng(count=COUNT, number=0):
    return Rng(jax.random.key(number), jnp.arange(count), count)


def integrated(built, params):
    """By quadrature over z: the points, the weight of one, log p(z) and log p(x|z) [points, pictures]."""
    axis = np.linspace(-8.0, 8.0, 321 if built.latent == 1 else 81)
    z = np.stack(np.meshgrid(*[axis] * built.latent, indexing="ij"), axis=-1).reshape(-1, built.latent)

    @jax.jit
    def log_p(z, picture):
        p_x = built.decode(params, z)
        return vae.log_likelihood(jnp.broadcast_to(picture, (len(z), *SHAPE)), p_x, LEVELS)

    log_p_x = np.stack([log_p(z, picture) for picture in PICTURES], axis=1).astype(np.float64)
    return z, (axis[1] - axis[0]) ** built.latent, stats.norm.logpdf(z).sum(axis=1), log_p_x


@pytest.mark.parametrize("latent", [1, 2])
def test_elbo_and_importance_weights_against_quadrature(latent):
    """The mean of the ELBO is log p(x) − KL(q(z|x) ‖ p(z|x)) (lecture (9)); weights have the mean p(x); the
    bound of K of them rises with K, from the ELBO towards log p(x); and p(x) sums to 1."""
    built, params = made(latent)
    z, cell, log_prior, log_p_x = integrated(built, params)
    np.testing.assert_allclose(np.exp(log_p_x).sum(axis=1), 1.0, atol=1e-5)
    log_p = np.log(np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4)

    q = jax.tree.map(np.asarray, built.encode(params, PICTURES))

    @jax.jit
    def draws(picture):
        batch = {"image": jnp.broadcast_to(picture, (COUNT, *SHAPE))}
        return built.loss(params, rng(), batch, False), built.log_weight(params, rng(), batch)

    gaps = []
    for i, picture in enumerate(PICTURES):
        log_q = stats.norm.logpdf(z, q.mean[i], np.exp(0.5 * q.log_variance[i])).sum(axis=1)
        posterior = log_prior + log_p_x[:, i] - log_p[i]
        gaps.append(np.sum(np.exp(log_q) * (log_q - posterior)) * cell)

        terms, log_w = draws(picture)
        assert set(terms) == {"reconstruction", "prior"}
        nats = np.asarray(sum(terms.values()), np.float64)
        assert nats.mean() == pytest.approx(gaps[-1] - log_p[i], abs=4 * nats.std() / math.sqrt(COUNT))

        log_w = np.asarray(log_w, np.float64)
        w = np.exp(log_w - log_p[i])
        assert w.mean() == pytest.approx(1.0, abs=4 * w.std() / math.sqrt(COUNT))
        assert log_w.mean() == pytest.approx(log_p[i] - gaps[-1], abs=4 * log_w.std() / math.sqrt(COUNT))
        tight = [np.log(np.exp(log_w).reshape(-1, k).mean(axis=1)).mean() for k in (1, 5, 50)]
        assert tight[0] < tight[1] < tight[2] < log_p[i] + 4 * w.std() / math.sqrt(COUNT)
        assert tight[2] > log_p[i] - 0.5 * gaps[-1]
    assert np.mean(gaps) > 0.05  # q is not the posterior, so that a bound is something else than log p


def test_samples_have_the_integrated_probabilities():
    built, params = made()
    params["decoder"]["params"]["out"]["kernel"] *= 4.0  # or one z would do for all
    _, cell, log_prior, log_p_x = integrated(built, params)
    p = np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell
    drawn = np.asarray(jax.jit(lambda: built.sample(params, rng(), {}))())
    assert drawn.shape == (COUNT, *SHAPE) and drawn.dtype == np.uint8
    share = (drawn[:, None] == PICTURES).all(axis=(2, 3, 4)).mean(axis=0)
    assert np.abs(share - p).max() < 4 * math.sqrt(p.max() / COUNT)
    assert log_p_x.std(axis=0).min() > 0.5


@pytest.mark.parametrize("standard", [True, False])
def test_kl_is_the_integral(standard):
    """KL(q ‖ p) = ∫ q (log q − log p) of each of three numbers; log_prob is SciPy's; draws have q's moments."""
    draw = np.random.default_rng(0)
    q = gaussian.Gaussian(*draw.normal(size=(2, 4, 3)).astype(np.float32))
    p = gaussian.STANDARD if standard else gaussian.Gaussian(*draw.normal(size=(2, 4, 3)).astype(np.float32))
    z = np.linspace(-25.0, 25.0, 20_001)[:, None, None]
    log_q, log_p = (stats.norm.logpdf(z, of.mean, np.exp(0.5 * of.log_variance)) for of in (q, p))
    want = np.sum(np.exp(log_q) * (log_q - log_p), axis=(0, 2)) * 2.5e-3
    np.testing.assert_allclose(gaussian.kl(q, p), want, rtol=1e-4)
    at = draw.normal(size=(4, 3)).astype(np.float32)
    want = stats.norm.logpdf(at, p.mean, np.exp(0.5 * p.log_variance)).sum(axis=1)
    np.testing.assert_allclose(gaussian.log_prob(p, at), want, rtol=1e-5)
    drawn = np.asarray(gaussian.draw(q, draw.normal(size=(COUNT, 4, 3))))
    bar = 4 * np.exp(0.5 * q.log_variance) / math.sqrt(COUNT)
    assert (np.abs(drawn.mean(axis=0) - q.mean) < bar).all()
    assert (np.abs(drawn.std(axis=0) - np.exp(0.5 * q.log_variance)) < bar).all()


def test_dropout_acts_in_training_alone():
    built, params = made(**{"model.net.dropout": 0.5})
    batch = {"image": PICTURES}
    loss = lambda *args: built.loss(params, rng(9, args[0]), batch, args[1])["prior"]  # noqa: E731
    both = jax.jit(lambda number: (loss(number, True), loss(number, False)))
    (train, test), (other_train, other_test) = both(0), both(1)
    assert np.abs(train - test).max() > 1e-2 and np.abs(train - other_train).max() > 1e-2
    np.testing.assert_array_equal(test, other_test)


def test_descent_brings_the_bound_to_the_entropy_of_the_data():
    """Where the two values are one, drawn from three: log 3 nats, which takes a z that tells them."""
    built, _ = made()
    batch = {"image": jnp.tile(jnp.repeat(jnp.arange(LEVELS), 2).reshape(-1, *SHAPE), (32, 1, 1, 1))}

    def loss(params, number):
        terms = built.loss(params, rng(32 * LEVELS, number), batch, False)
        return sum(jnp.mean(nats) for nats in terms.values())

    def one(params, number):
        value, grads = jax.value_and_grad(loss)(params, number)
        rate = 0.05 * (1.0 - number / 500)
        return jax.tree.map(lambda v, g: v - rate * jnp.clip(g, -1.0, 1.0), params, grads), value

    def run_all():
        return jax.lax.scan(one, built.init(jax.random.key(0), {}), jnp.arange(500))[1]

    values = np.asarray(jax.jit(run_all)())
    assert math.log(3) < values[-50:].mean() < math.log(3) + 0.3 < values[:5].mean(), values[::50]


def test_the_table_of_estimators():
    """The ELBO and the importance-weighted bounds, under names that claim no chain of any depth."""
    built, params = made()
    _, cell, log_prior, log_p_x = integrated(built, params)
    log_p = np.log(np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell)
    images = np.tile(PICTURES, (16, 1, 1, 1))
    state = step.State(None, params, params, None)
    this = run.Run(exact.split(images, LEVELS), built, state)
    config = exact.config(passes=40, chain__samples=64)
    first, profile = estimators.elbo_row(config, this, built)
    assert (first.name, first.bounds, profile) == ("ELBO", "the model", None)
    assert estimators.of_model(built) == ("elbo", "chain")
    rows, series, checks = estimators.measure(config, this, ["elbo", "chain"], [first])
    assert [row.name for row in rows] == ["ELBO", "importance-weighted, K = 64"] and rows[1].evaluations == 64
    assert "yes" in checks[0]
    truth = -log_p.mean() / (2 * math.log(2.0))
    means = [row.estimate.mean["bpd"] for row in series["chain"]]
    assert len(means) == 7 and np.all(np.diff(means) < 0)
    assert truth - 0.002 < means[-1] < truth + 0.3 * (means[0] - truth)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"latent": 0}, "latent is 0; accepted: 1 or more"),
        ({"condition": "label"}, "condition is 'label'; accepted: 'none'"),
        ({"net.width": 0}, "net.width is 0; accepted: 1 or more"),
        ({"net.dropout": 1.0}, "dropout is 1.0; accepted: 0 up to"),
        ({"net.dtype": "float16"}, "'float16'; accepted: 'float32', 'bfloat16'"),
    ],
)
def test_bad_values_are_refused(changes, text):
    config = vae_config.get_config()
    config.model.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=text):
        model.build(config, data.Spec(SHAPE, LEVELS, 4))
