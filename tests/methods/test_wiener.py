"""The stationary Gaussian: its fit to its own samples, its posterior, and its ELBO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, stats

from conftest import make_config, slow
from vdm import run as run_lib
from vdm.data.dataset import Spec, in_memory
from vdm.methods import wiener
from vdm.runtime.randomness import Rng

SHAPE = (4, 6, 2)
LEVELS = 256


def gaussian(seed=0):
    """(mean, variance, basis) in float64: the variances of smooth images, and correlated channels."""
    random = np.random.default_rng(seed)
    height, width, channels = SHAPE
    frequency = np.hypot(*np.ogrid[:height, :width])[..., None]
    variance = 0.05 / (1.0 + frequency) ** 2 * random.uniform(0.2, 1.0, SHAPE)
    basis, _ = np.linalg.qr(random.normal(size=(height, width, channels, channels)))
    return np.array([-0.2, 0.1]), variance, basis


def covariance():
    """The covariance of all values of an image."""
    _, variance, basis = gaussian()
    size = np.prod(SHAPE)
    images = fft.idctn(np.eye(size).reshape(size, *SHAPE), axes=(1, 2), norm="ortho").reshape(size, size)
    blocks = np.einsum("ijcd,ijd,ijed->ijce", basis, variance, basis)
    of_frequencies = np.zeros((*SHAPE, *SHAPE))
    for i, j in np.ndindex(SHAPE[:2]):
        of_frequencies[i, j, :, i, j] = blocks[i, j]
    return images.T @ of_frequencies.reshape(size, size) @ images


def draw(count, seed=1):
    """Images drawn from the Gaussian, as levels."""
    mean = np.broadcast_to(gaussian()[0], SHAPE).ravel()
    x = np.random.default_rng(seed).multivariate_normal(mean, covariance(), count)
    levels = np.round((x + 1.0) * LEVELS / 2.0 - 0.5)
    assert levels.min() >= 0 and levels.max() < LEVELS
    return levels.reshape(count, *SHAPE).astype(np.uint8)


def as_float32(of):
    return wiener.Stationary(*(jnp.asarray(value, jnp.float32) for value in of))


def test_the_transform_is_that_of_scipy():
    for size in (1, 5, 8):
        np.testing.assert_allclose(
            wiener.cosines(size), fft.dct(np.eye(size), axis=0, norm="ortho"), atol=1e-12
        )


def test_fit_finds_what_the_images_were_drawn_from():
    count = 4_500  # more than are read at a time
    found = wiener.fit(in_memory(draw(count)), SHAPE, LEVELS)
    mean, variance, basis = gaussian()
    np.testing.assert_allclose(found.mean, mean, atol=0.01)
    rounding = (2.0 / LEVELS) ** 2 / 12.0
    got, want = (
        np.einsum("ijcd,ijd,ijed->ijce", vectors, values, vectors)
        for vectors, values in ((found.basis, found.variance), (basis, variance + rounding))
    )
    diagonal = np.einsum("ijcc->ijc", want)
    error = np.sqrt((diagonal[..., None] * diagonal[..., None, :] + want**2) / count)
    assert np.abs((got - want) / error).max() < 5.0


def test_mirrored_images_have_the_same_fit():
    images = draw(50)
    one, other = (wiener.fit(in_memory(v), SHAPE, LEVELS) for v in (images, images[:, :, ::-1]))
    for a, b in zip(one, other):
        np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-4, atol=1e-6)


def test_a_value_that_never_changes_is_known_to_its_rounding():
    found = wiener.fit(in_memory(np.full((3, *SHAPE), 7, np.uint8)), SHAPE, LEVELS)
    np.testing.assert_allclose(found.variance, (2.0 / LEVELS) ** 2 / 12.0, rtol=1e-5)


@pytest.mark.parametrize("gamma", [-9.0, -3.0, 0.0, 4.0])
def test_posterior_is_that_of_all_values_at_once(gamma):
    """By the inverse of the whole covariance, in float64."""
    z = np.random.default_rng(3).normal(size=(2, *SHAPE))
    mean = np.broadcast_to(gaussian()[0], SHAPE).ravel()
    alpha2, sigma2 = 1.0 / (1.0 + np.exp(gamma)), 1.0 / (1.0 + np.exp(-gamma))
    of_x, alpha = covariance(), np.sqrt(alpha2)
    gain = alpha * of_x @ np.linalg.inv(alpha2 * of_x + sigma2 * np.eye(len(of_x)))
    want = mean + (z.reshape(2, -1) - alpha * mean) @ gain.T
    left = np.diag(of_x - alpha * gain @ of_x)

    got, _ = wiener.posterior(
        as_float32(gaussian()), jnp.float32(z), jnp.full((2, 1, 1, 1), gamma, jnp.float32)
    )
    np.testing.assert_allclose(got.mean.reshape(2, -1), want, atol=3e-5)
    np.testing.assert_allclose(got.variance.reshape(2, -1), np.broadcast_to(left, want.shape), rtol=1e-4)


@pytest.mark.parametrize("gamma", [-13.3, -9.0, -3.0, 0.0, 4.0])
def test_prediction_is_that_from_all_other_values(gamma):
    """For each value i, from the covariance of z_t without row and column i, in float64."""
    x = draw(2).reshape(2, -1) * (2.0 / LEVELS) + 1.0 / LEVELS - 1.0
    mean = np.broadcast_to(gaussian()[0], SHAPE).ravel()
    alpha2, sigma2 = 1.0 / (1.0 + np.exp(gamma)), 1.0 / (1.0 + np.exp(-gamma))
    alpha, of_x = np.sqrt(alpha2), covariance()
    z = np.float32(alpha * x + np.sqrt(sigma2) * np.random.default_rng(3).normal(size=x.shape))
    of_z = alpha2 * of_x + sigma2 * np.eye(len(of_x))
    want, spread = np.zeros(z.shape), np.zeros(len(of_x))
    for i in range(len(of_x)):
        others = np.arange(len(of_x)) != i
        gain = alpha * np.linalg.solve(of_z[np.ix_(others, others)], of_x[others, i])
        want[:, i] = mean[i] + (z - alpha * mean)[:, others] @ gain
        spread[i] = of_x[i, i] - alpha * gain @ of_x[others, i]

    shaped = jnp.asarray(z.reshape(2, *SHAPE))
    _, got = wiener.posterior(as_float32(gaussian()), shaped, jnp.full((2, 1, 1, 1), gamma, jnp.float32))
    np.testing.assert_allclose(got.variance.reshape(2, -1), np.broadcast_to(spread, z.shape), rtol=1e-3)
    error = (np.asarray(got.mean, np.float64).reshape(2, -1) - want) / np.sqrt(spread)
    assert np.abs(error).max() < 0.01


def test_dequantised_nats():
    """Against the mean over random points in the cells, by SciPy with the whole covariance, in nats."""
    random, images = np.random.default_rng(2), draw(3)
    width = 2.0 / 8  # few levels, so that the cells matter
    x = 0.5 * width * (np.round(images / 32.0) % 8) - 0.9
    got = wiener.dequantised_nats(wiener.Stationary(*gaussian()), x, 8)
    mean, size = np.broadcast_to(gaussian()[0], SHAPE).ravel(), np.prod(SHAPE)
    density = stats.multivariate_normal(mean, covariance() + width**2 / 12.0 * np.eye(size))
    for value, bound in zip(x.reshape(3, -1), got):
        points = value + random.uniform(-0.5 * width, 0.5 * width, (100_000, size))
        nats = -density.logpdf(points) - size * np.log(width)
        assert abs(nats.mean() - bound) < 4 * nats.std() / np.sqrt(len(nats))


@pytest.mark.parametrize("made", [wiener.Wiener(), wiener.LeaveOneOut()], ids=["posterior", "prediction"])
def test_nothing_goes_back_through_the_gaussian(made):
    of, net = as_float32(gaussian()), lambda given: 0.1 * given[..., :4]
    z = jnp.ones((2, *SHAPE))

    def given(of, z):
        eps_hat = made.eps_hat(net, z, jnp.array([-3.0, 1.0]).reshape(2, 1, 1, 1), {"gaussian": of}, LEVELS)
        return jnp.sum(jnp.square(eps_hat))

    gradient, of_z = jax.jit(jax.grad(given, (0, 1)))(of, z)
    for value in gradient:
        np.testing.assert_array_equal(value, 0.0)
    assert np.abs(of_z).max() > 0


@pytest.mark.parametrize("name", [slow("wiener"), "leave_one_out"])
def test_the_first_elbo_is_the_likelihood_of_the_gaussian(name):
    """For images drawn from the Gaussian, with fine levels. The initial network returns zero."""
    fields = {
        "model.parameterisation": name,
        "model.schedule.name": "fixed_linear",
        "model.net.name": "mlp",
        "model.net.depth": 1,
        "model.net.width": 16,
        "model.net.fourier": 0,
    }
    model, images = run_lib.build_model(make_config(fields), Spec(SHAPE, LEVELS, 0)), draw(500)
    batch = {"image": images, "label": np.zeros(500, np.int32), "augmented": np.zeros(500, np.float32)}
    params = jax.jit(model.init)(jax.random.key(0), batch) | {"gaussian": as_float32(gaussian())}

    def nats(number):
        terms = model.draw(params, Rng(jax.random.key(number), jnp.arange(500), 500), batch).terms
        return sum(terms.values())

    elbo = np.asarray(jax.lax.map(nats, jnp.arange(40)))
    mean = np.broadcast_to(gaussian()[0], SHAPE).ravel()
    x = (2.0 * images.reshape(500, -1) + 1.0) / LEVELS - 1.0
    size = np.prod(SHAPE)
    density = stats.multivariate_normal(mean, covariance() + (2.0 / LEVELS) ** 2 / 12.0 * np.eye(size))
    want = -density.logpdf(x) - size * np.log(2.0 / LEVELS)
    gap = (elbo.mean(axis=0) - want) / size
    error = elbo.mean(axis=1).std(ddof=1) / np.sqrt(len(elbo)) / size
    assert error < 0.01 and abs(gap.mean()) < 3.5 * error


def test_training_leaves_the_gaussian_as_it_is_and_changes_the_network(single):
    config = make_config(
        {"model.parameterisation": "wiener", "model.net.name": "pyramid", "model.net.width": 8,
         "model.net.scales": 2, "model.net.depth": 1, "optimizer.warmup": 0, "optimizer.weight_decay": 0.5},
        "configs/digits.py",
    )  # fmt: skip
    parts = run_lib.build(config)
    state = parts.init()
    fitted = wiener.fit(parts.data.train, parts.data.spec.shape, parts.data.spec.vocab_size)
    gradient = jax.tree.map(jnp.ones_like, state.params)
    updates, _ = jax.jit(parts.optimizer.update)(gradient, state.opt_state, state.params)
    for found, want, update in zip(state.params["gaussian"], fitted, updates["gaussian"]):
        np.testing.assert_array_equal(found, want)
        np.testing.assert_array_equal(update, 0.0)
    for update in jax.tree.leaves(updates["net"]):
        assert np.abs(update).max() > 0
