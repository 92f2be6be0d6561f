"""The components in examples/ against their formulas; tests/soak/test_forks.py trains them."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from conftest import make_config
from diffusion_helpers import rng, small
import exact
from examples.beta_times import Beta
from examples.certificate import Certificate
from examples.clipped import Clipped
from examples.edm import EDM
from examples.euler import Euler
from examples.huber import Huber
from examples.log_variance import LogVariance
from examples.power import Power
from vdm import run as run_lib
from vdm.data import dataset
from vdm.data.dataset import Spec
from vdm.diffusion import process
from vdm.run import Run

pytestmark = pytest.mark.usefixtures("single")


def test_power_is_linear_in_a_root_of_sigma():
    schedule = Power(shape=(2, 2, 1), power=3.0)
    t = np.linspace(0.0, 1.0, 11)
    params = {"params": {"log_power": jnp.float32(np.log(2.0))}}  # so that the power is 6
    gamma = np.asarray(schedule.apply(params, jnp.float32(t)), np.float64)
    root = np.exp(gamma / 2.0) ** (1.0 / 6.0)
    np.testing.assert_allclose(root, root[0] + (root[-1] - root[0]) * t, rtol=1e-5)
    np.testing.assert_allclose(gamma[[0, -1]], [-13.3, 5.0], rtol=1e-5)


def test_edm_is_its_preconditioning():
    random = np.random.default_rng(0)
    x, eps, output = random.normal(size=(3, 4, 2, 2, 1))
    gamma = np.array([-10.0, -2.0, 0.5, 4.0]).reshape(4, 1, 1, 1)
    s, data = np.exp(gamma / 2.0), 0.7
    y = x + s * eps
    seen = []
    net = lambda given: seen.append(given) or jnp.float32(output)
    alpha = 1.0 / np.sqrt(1.0 + np.exp(gamma))
    eps_hat = EDM(data=data).eps_hat(net, jnp.float32(alpha * y), jnp.float32(gamma), {}, 17)
    total = s**2 + data**2
    x_hat = data**2 / total * y + s * data / np.sqrt(total) * output
    np.testing.assert_allclose(eps_hat, (y - x_hat) / s, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen[0], y / np.sqrt(total), rtol=1e-5)


def test_beta_times_have_their_distribution_and_weights():
    t, weight = Beta(a=0.6, b=1.3).draw(rng(size=20_000), None)
    for edge in (0.1, 0.25, 0.7):
        assert abs(np.mean(t < edge) - scipy.special.betainc(0.6, 1.3, edge)) < 1e-3
    assert abs(np.mean(weight * np.cos(3.0 * t)) - np.sin(3.0) / 3.0) < 1e-3


def test_huber_is_the_elbo_where_errors_are_small():
    model, params, batch = small()
    draw = model.draw(params, rng(), batch)
    found = Huber(delta=1e3)({}, draw)
    np.testing.assert_allclose(found["diffusion"], draw.terms["diffusion"], rtol=1e-5)
    d = draw.denoising
    off = np.abs(np.asarray(d.target - d.eps_hat, np.float64))
    loss = (
        np.where(off < 0.3, 0.5 * off**2, 0.3 * (off - 0.15)).sum(axis=(1, 2, 3)) * d.weight * d.time_weight
    )
    np.testing.assert_allclose(Huber(delta=0.3)({}, draw)["diffusion"], loss, rtol=1e-4)


def test_log_variance_is_least_at_the_log_of_the_loss():
    model, params, batch = small()
    draw = model.draw(params, rng(), batch)
    of = draw._replace(denoising=draw.denoising._replace(gamma=jnp.zeros(64)))  # one level of noise for all
    objective = LogVariance(features=8)
    loss = lambda own: jnp.mean(objective(own, of)["diffusion"])
    own = objective.init(jax.random.key(0), batch)
    for _ in range(200):
        own = jax.tree.map(lambda value, slope: value - 0.5 * slope, own, jax.grad(loss)(own))
    mean = float(jnp.mean(draw.terms["diffusion"])) / 16
    np.testing.assert_allclose(loss(own), 1.0 + np.log(mean), rtol=1e-3)


def test_euler_solves_the_ode_of_a_gaussian():
    """For data N(0, s²), z moves in proportion to the standard deviation of z_t."""
    s2, gammas, z_1 = 0.3, np.linspace(-6.0, 5.0, 2001), np.ones((1, 2, 2, 1), np.float32)
    alpha2 = lambda gamma: 1.0 / (1.0 + np.exp(gamma))
    variance = lambda gamma: alpha2(gamma) * s2 + 1.0 - alpha2(gamma)

    def predict_x(z, gamma):
        a2 = process.alpha(gamma) ** 2
        return process.alpha(gamma) * s2 / (a2 * s2 + 1.0 - a2) * z

    z_0 = Euler().sample(predict_x, jnp.float32(gammas), z_1, None)
    np.testing.assert_allclose(z_0, z_1 * np.sqrt(variance(-6.0) / variance(5.0)), rtol=2e-3)


def test_clipped_has_no_value_beyond_its_limit():
    plain, params, _ = small(**{"model.parameterisation": "v"})
    params = jax.tree.map(lambda v: v + 0.1 * jax.random.normal(jax.random.key(1), v.shape), params)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    z, gamma = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), np.array([-5.0, 0.0, 3.0])
    sigma = np.sqrt(1.0 / (1.0 + np.exp(-gamma)))[:, None, None, None]
    alpha = np.sqrt(1.0 - sigma**2)
    free, clipped = (
        (z - sigma * model.eps_hat(params, z, jnp.float32(gamma), None)) / alpha
        for model in (plain, Clipped(**fields, limit=0.3))
    )
    assert np.abs(free).max() > 0.5
    np.testing.assert_allclose(clipped, np.clip(free, -0.3, 0.3), atol=1e-5)


# ---- the certificate, where log p(x) is known ------------------------------------------------


def certificate_of(model, params, spec, **fields):
    """The rows (lower bound, upper bound) of the certificate for samples of a model."""
    split = dataset.in_memory(np.zeros((2048, *spec.shape), np.uint8))
    data = dataset.Data(split, split, spec)
    run = Run(data, model, types.SimpleNamespace(step=0, ema=params))
    config = make_config({"eval.batch_size": 1024})
    return Certificate(images=2048, **fields).measure(config, run, []).rows


def encloses(rows, bits):
    lower, upper = (row.estimate for row in rows)
    assert lower.mean["bpd"] - 4.0 * lower.se["bpd"] < bits < upper.mean["bpd"] + 4.0 * upper.se["bpd"]
    return upper.mean["bpd"] - lower.mean["bpd"]


@pytest.mark.slow
def test_certificate_encloses_the_entropy_of_a_tiny_vdm():
    """One value of three levels, T = 3; p(x) by the chain's transitions on a fine grid, in float64."""
    shape, levels, ends, steps = (1, 1, 1), 3, (-3.0, 3.0), 3
    log_p = exact.log_probabilities(shape, levels) + np.array([0.0, 1.0, 0.5])  # unnormalised: changes x̂
    model = exact.model(log_p, *ends)

    alpha, sigma = (lambda g, sign=sign: np.sqrt(1.0 / (1.0 + np.exp(sign * g))) for sign in (1.0, -1.0))
    values = (2.0 * np.arange(levels) + 1.0) / levels - 1.0
    normal = lambda z, mean, sd: np.exp(-0.5 * ((z - mean) / sd) ** 2) / sd / np.sqrt(2.0 * np.pi)
    z = np.linspace(-6.0, 6.0, 3001)
    density = normal(z, 0.0, 1.0)
    gammas = np.linspace(*ends, steps + 1)
    for s, t in reversed(list(zip(gammas[:-1], gammas[1:]))):
        weights = np.exp(-0.5 * ((z[:, None] - alpha(t) * values) / sigma(t)) ** 2 + log_p.reshape(-1))
        x_hat = weights @ values / weights.sum(axis=1)
        ratio2 = alpha(t) ** 2 / alpha(s) ** 2
        fresh = sigma(t) ** 2 - ratio2 * sigma(s) ** 2
        mean = (np.sqrt(ratio2) * sigma(s) ** 2 * z + alpha(s) * fresh * x_hat) / sigma(t) ** 2
        sd = np.sqrt(fresh) * sigma(s) / sigma(t)
        density = np.trapezoid(density[:, None] * normal(z, mean[:, None], sd), z, axis=0)
    p_x = np.exp(-0.5 * ((z[:, None] - alpha(gammas[0]) * values) / sigma(gammas[0])) ** 2)
    p_x = np.trapezoid(density[:, None] * p_x / p_x.sum(axis=1, keepdims=True), z, axis=0)
    assert abs(p_x.sum() - 1.0) < 1e-6
    bits = -np.sum(p_x * np.log2(p_x))

    params, spec = {"schedule": {}, "net": {}}, Spec(shape, levels, 0)
    wide = encloses(certificate_of(model, params, spec, timesteps=steps, samples=1), bits)
    narrow = encloses(certificate_of(model, params, spec, timesteps=steps, samples=64), bits)
    assert 0.0 < narrow < 0.5 * wide


@pytest.mark.slow
def test_certificate_encloses_the_entropy_of_a_vae_of_one_latent():
    """p(x) of all images by quadrature over the latent."""
    shape, levels = (1, 2, 1), 3
    spec = Spec(shape, levels, 0)
    fields = {"model.name": "vae", "model.latent": 1, "model.net.depth": 1, "model.net.width": 8}
    model = run_lib.build_model(make_config(fields), spec)
    batch = {"image": np.zeros((1, *shape), np.uint8), "label": np.zeros(1, np.int32)}
    params = model.init(jax.random.key(0), batch)
    params = jax.tree.map(lambda v: v + 0.4 * jax.random.normal(jax.random.key(1), v.shape), params)

    z = np.linspace(-8.0, 8.0, 4001)
    mean, gamma = (np.asarray(part, np.float64) for part in model.decode(params, jnp.float32(z[:, None])))
    alpha = 1.0 / np.sqrt(1.0 + np.exp(gamma))
    values = (2.0 * np.arange(levels) + 1.0) / levels - 1.0
    logits = -0.5 * np.exp(-gamma[..., None]) * ((mean / alpha)[..., None] - values) ** 2
    logits = (logits - scipy.special.logsumexp(logits, axis=-1, keepdims=True)).reshape(len(z), 2, levels)
    prior = np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi)
    p_x = np.array(
        [
            np.trapezoid(prior * np.exp(logits[:, 0, i] + logits[:, 1, j]), z)
            for i, j in itertools.product(range(levels), repeat=2)
        ]
    )
    assert abs(p_x.sum() - 1.0) < 1e-6
    bits = -np.sum(p_x * np.log2(p_x)) / 2.0

    wide = encloses(certificate_of(model, params, spec, samples=1), bits)
    narrow = encloses(certificate_of(model, params, spec, samples=64), bits)
    assert 0.0 < narrow < 0.5 * wide
