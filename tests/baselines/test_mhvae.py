"""The hierarchical VAE against quadrature over all its latents, and restricted to a VAE and to a VDM."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from baseline_helpers import assert_bounds_agree, bounds_of_grid, importance_bounds, random_parameters
from conftest import make_config, slow
from vdm import gaussian, run as run_lib
from vdm.baselines import vae
from vdm.data.dataset import Spec
from vdm.diffusion import process
from vdm.errors import UserError
from vdm.runtime import randomness
from vdm.runtime.randomness import Rng
from weight_helpers import assert_weights_of_samples

LEVELS, COUNT = 3, 20_000
AXIS = np.linspace(-9.0, 9.0, 101)
CELL = AXIS[1] - AXIS[0]


SMALL = {
    "schedule.name": "fixed_linear",
    "schedule.gamma_min": -2.5,
    "schedule.gamma_max": 1.5,
    "net.name": "mlp",
    "net.depth": 1,
    "net.width": 16,
    "net.fourier": 0,
}


def made(shape=(1, 1, 1), vocab_size=LEVELS, **changes):
    """A small model, by default with images of one value and latents of one dimension, and its parameters."""
    fields = SMALL | {"name": "mhvae", "latent": 1, "parameterisation": "x"} | changes
    return of_fields(shape, vocab_size, fields)


def of_fields(shape, vocab_size, fields):
    """The model with these fields of config.model, and its parameters."""
    config = make_config({f"model.{name}": value for name, value in fields.items()})
    built = run_lib.build_model(config, Spec(shape, vocab_size, 0))
    return built, random_parameters(built, {"image": np.zeros((1, *shape), np.uint8)})


def rng(count=COUNT, number=0):
    return Rng(jax.random.key(number), jnp.arange(count), count)


# ---- quadrature -------------------------------------------------------------------------


def density(of):
    """log N(z; of) for a batch of one-dimensional Gaussians, at the points of the grid: [points, batch]."""
    mean = np.asarray(of.mean, np.float64).reshape(-1)
    log_variance = np.broadcast_to(np.asarray(of.log_variance).reshape(-1), mean.shape)
    return stats.norm.logpdf(AXIS[:, None], mean, np.exp(0.5 * log_variance))


def integrated(built, params):
    """log q(z_1 … z_T|x) and log p(x, z_1 … z_T) for each x on a grid: [x, z_1, …, z_T]."""
    chain, steps = built.chain, built.timesteps
    z = jnp.asarray(AXIS, jnp.float32).reshape(-1, *(1,) * len(chain.shape))
    all_x = jnp.arange(LEVELS).reshape(-1, 1, 1, 1)

    @jax.jit
    def pieces():
        p_x = chain.decode(params, z)
        log_p_x = [vae.log_likelihood(jnp.broadcast_to(x, (len(z), 1, 1, 1)), p_x, LEVELS) for x in all_x]
        conditionals = [(chain.q(params, t, z), chain.p(params, t, z)) for t in range(2, steps + 1)]
        return jnp.stack(log_p_x), chain.q_1(params, all_x), conditionals

    def along(values, first, second):  # [a, b] as these two of all axes
        shape = [1] * (steps + 1)
        shape[first], shape[second] = values.shape
        return values.reshape(shape)

    log_p_x, q_1, conditionals = pieces()
    log_p, log_q = along(np.asarray(log_p_x, np.float64), 0, 1), along(density(q_1).T, 0, 1)
    for t, (q, p) in enumerate(conditionals, 2):
        log_q, log_p = log_q + along(density(q).T, t - 1, t), log_p + along(density(p), t - 1, t)
    assert steps < 3 or np.abs(conditionals[0][1].mean - conditionals[1][1].mean).max() > 0.1  # they differ
    prior = gaussian.Gaussian(**params.get("prior", {"mean": np.zeros(1), "log_variance": np.zeros(1)}))
    return log_q, log_p + along(density(prior).T, 0, steps)


@pytest.mark.parametrize(
    "restrictions, steps",
    [
        slow("", 3),
        slow("I", 2),
        slow("III", 2),
        slow("I,II", 3),
        ("I,II,III", 2),
    ],
)
def test_elbo_weights_and_samples_against_quadrature(restrictions, steps):
    """The ELBO has the mean log p(x) − KL(q(z|x) ‖ p(z|x)) (lecture (9)), whether from the terms of (18) or
    (21) or as a log importance weight. The weights have the mean p(x), and the bound of K weights rises with
    K. Samples follow p(x), which sums to 1."""
    built, params = made(restrictions=restrictions, timesteps=steps)
    log_q, log_joint = integrated(built, params)
    axes = tuple(range(1, steps + 1))
    log_p = np.log(np.exp(log_joint).sum(axis=axes) * CELL**steps)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(np.exp(log_q).sum(axis=axes) * CELL**steps, 1.0, atol=1e-4)
    posterior = log_joint - log_p.reshape(-1, *(1,) * steps)
    gaps = np.sum(np.exp(log_q) * (log_q - posterior), axis=axes) * CELL**steps
    assert gaps.min() > 0.02

    @jax.jit
    def draws(x):
        batch = {"image": jnp.full((COUNT, 1, 1, 1), x)}
        return built.draw(params, rng(), batch).terms, built.log_weight(params, rng(), batch)

    for x in range(LEVELS):
        terms, log_w = draws(jnp.int32(x))
        assert set(terms) == {"reconstruction", "prior", *(f"level_{t}" for t in range(1, steps))}
        log_w = np.asarray(log_w, np.float64)
        for nats in (np.asarray(sum(terms.values()), np.float64), -log_w):
            assert nats.mean() == pytest.approx(gaps[x] - log_p[x], abs=4 * nats.std() / math.sqrt(COUNT))
        w = np.exp(log_w - log_p[x])
        assert w.mean() == pytest.approx(1.0, abs=4 * w.std() / math.sqrt(COUNT))
        assert_bounds_agree(importance_bounds(log_w), bounds_of_grid(log_q[x], log_joint[x], COUNT), log_p[x])

    drawn = np.asarray(jax.jit(lambda: built.sample(params, rng(), {}))())
    assert drawn.shape == (COUNT, 1, 1, 1) and drawn.dtype == np.uint8
    share = np.bincount(drawn.ravel(), minlength=LEVELS) / COUNT
    assert np.abs(share - np.exp(log_p)).max() < 4 * math.sqrt(0.25 / COUNT)
    assert_weights_of_samples(built, params, np.arange(LEVELS).reshape(-1, 1, 1, 1), COUNT)


# ---- the restrictions -------------------------------------------------------------------

SHAPE, V = (4, 4, 1), 17
IMAGES = np.random.default_rng(0).integers(0, V, (32, *SHAPE)).astype(np.uint8)


class Given:
    """An Rng that draws times as `rng` does, but returns the noise that is given for each use."""

    def __init__(self, rng, **noise):
        self._rng, self._noise = rng, {getattr(randomness, name): eps for name, eps in noise.items()}

    def normal(self, use, shape):
        return self._noise[use]

    def __getattr__(self, name):
        return getattr(self._rng, name)


@pytest.mark.parametrize("schedule, steps", [slow("learned_net", 5), slow("multivariate", 2)])
def test_all_three_restrictions_make_it_a_vdm(schedule, steps):
    """On the same noise, its terms are those of vdm.Diffusion with one step less: reconstruction and prior
    agree, each level is one step of the VDM, and the sum is the VDM's over all steps. Samples agree too."""
    ends = {"schedule.gamma_min": -6.0, "schedule.gamma_max": 4.0}
    fields = SMALL | {"parameterisation": "eps", "schedule.name": schedule, **ends}
    chain = {"name": "mhvae", "timesteps": steps, "restrictions": "I,II,III"}
    built, params = of_fields(SHAPE, V, fields | chain)
    vdm, of_vdm = of_fields(SHAPE, V, fields | {"name": "diffusion", "timesteps": steps - 1})
    assert jax.tree.structure(params) == jax.tree.structure(of_vdm)
    batch, count = {"image": IMAGES}, len(IMAGES)

    @jax.jit
    def both(params):
        eps = rng(count).normal(randomness.LATENT, (steps, *SHAPE))
        z, _ = built.path(params, IMAGES, eps)
        x = process.scale(IMAGES, V)
        gammas = vdm.gamma(params, jnp.linspace(0.0, 1.0, steps))
        noise = jnp.stack([(z[t] - process.alpha(g) * x) / process.sigma(g) for t, g in enumerate(gammas)])

        def step(offset):  # shifts the times, so that each image meets each step once
            draws = Rng(jax.random.key(1), jnp.arange(count) + offset * count, count * (steps - 1))
            t = vdm.draw(params, draws, batch).denoising.t
            at = jnp.floor(t * (steps - 1)).astype(jnp.int32)
            eps = noise[at + 1, jnp.arange(count)]
            return at, vdm.draw(params, Given(draws, NOISE=eps, RECONSTRUCTION=noise[0]), batch).terms

        samples = [m.sample(params, rng(count), {}) for m in (built, vdm)]
        terms = built.draw(params, rng(count), batch).terms
        return terms, jax.lax.map(step, jnp.arange(steps - 1)), samples

    terms, (at, of_vdm), samples = jax.tree.map(np.asarray, both(params))
    assert (np.sort(at, axis=0) == np.arange(steps - 1)[:, None]).all()
    for name in ("reconstruction", "prior"):
        np.testing.assert_allclose(terms[name], of_vdm[name][0], rtol=1e-5, atol=1e-4)
    levels = np.stack([terms[f"level_{t}"] for t in range(1, steps)])
    drawn = np.take_along_axis(levels, at, 0)
    np.testing.assert_allclose(drawn, of_vdm["diffusion"] / (steps - 1), rtol=1e-4)
    np.testing.assert_allclose(sum(terms.values()), sum(of_vdm.values()).mean(axis=0), rtol=1e-5)
    assert np.mean(samples[0] == samples[1]) > 0.99


def test_one_latent_makes_it_a_vae():
    built, params = made(SHAPE, V, latent=3, restrictions="III", timesteps=1)
    net = {name: value for name, value in SMALL.items() if name in ("net.depth", "net.width")}
    plain, _ = of_fields(SHAPE, V, {"name": "vae", "latent": 3} | net)
    draws = rng(len(IMAGES))

    @jax.jit
    def both(params):
        batch = {"image": IMAGES}
        return [
            (m.draw(params, draws, batch, train=True).terms, m.log_weight(params, draws, batch))
            for m in (built, plain)
        ]

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *both(params))


def test_each_restriction_restricts():
    """I fixes the size of the latents; II leaves only γ of q learned; III fixes p(z_T)."""
    sets = ("", "III", "I", "I,II", "I,II,III")
    of = {r: made(SHAPE, V, timesteps=3, latent=5, restrictions=r) for r in sets}
    shapes = {r: built.chain.shape for r, (built, _) in of.items()}
    assert shapes == {"": (5,), "III": (5,), "I": (16,), "I,II": SHAPE, "I,II,III": SHAPE}
    names = {r: set(params) for r, (_, params) in of.items()}
    learned = {"encoder", "decoder", "up", "down"}
    assert names[""] == names["I"] == learned | {"prior"} and names["III"] == learned
    assert names["I,II"] == {"schedule", "net", "prior"} and names["I,II,III"] == {"schedule", "net"}


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"restrictions": "IV"}, "restrictions is 'IV'; accepted: 'I', 'II', 'III'"),
        ({"restrictions": "II,III"}, "restrictions is 'II,III'; accepted: 'I,II' instead of only II"),
        ({"timesteps": 0}, "timesteps is 0.*: 1 or more"),
        ({"restrictions": "I,II", "timesteps": 1}, "timesteps is 1.*: 2 or more"),
        ({"condition": "label"}, "config.model.condition is set, but 'mhvae' has no such field"),
    ],
)
def test_bad_values_are_refused(changes, text):
    changes = {f"model.{name}": value for name, value in changes.items()}
    with pytest.raises(UserError, match=text):
        run_lib.build_model(make_config(changes, "configs/mhvae.py"), Spec(SHAPE, V, 4))
