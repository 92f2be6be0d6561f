"""The latent VDM against quadrature over its chain, and its labels and guidance."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from baseline_helpers import random_parameters
from conftest import make_config
from vdm import run as run_lib
from vdm.contract import Ability
from vdm.data.dataset import Spec
from vdm.errors import UserError
from vdm.evaluation import ode_solver
from vdm.runtime.randomness import Rng
from weight_helpers import assert_weights_of_samples

LEVELS, CLASSES, COUNT = 3, 2, 20_000
AXIS = np.linspace(-8.0, 8.0, 101)
CELL = AXIS[1] - AXIS[0]


SMALL = {
    "name": "latent",
    "latent": 1,
    "timesteps": 2,
    "parameterisation": "v",
    "schedule.name": "fixed_linear",
    "schedule.gamma_min": -1.5,
    "schedule.gamma_max": 1.0,
    "net.name": "mlp",
    "net.depth": 1,
    "net.width": 16,
    "net.fourier": 0,
    "net.dropout": 0.0,
}


def made(classes=CLASSES, **changes):
    """A small model and its parameters: images of one value, one latent dimension, a chain of two steps."""
    config = make_config({f"model.{name}": value for name, value in (SMALL | changes).items()})
    built = run_lib.build_model(config, Spec((1, 1, 1), LEVELS, classes))
    batch = {"image": np.zeros((1, 1, 1, 1), np.uint8), "label": np.zeros(1, np.int32)}
    params = random_parameters(built, batch)
    embedding = params["net"]["params"]["Embedding_0"]["Dense_0"]
    embedding["kernel"] = embedding["kernel"].at[-CLASSES:].multiply(20.0)  # the label's rows
    layers = params["net"]["params"]["layers"]["embed"]
    layers["kernel"] *= 3.0
    return built, params


def rng(count=COUNT, number=0):
    return Rng(jax.random.key(number), jnp.arange(count), count)


def integrated(built, params, label):
    """log q(z_0, z_½, z_1|x) and log p(x, z_0, z_½, z_1|label) for each x on a grid [x, z_0, z_½, z_1], in
    float64 by the paper's formulas from the networks' outputs. Label −1 means no label."""
    gammas = np.array([-1.5, -0.25, 1.0])
    alpha, sigma = np.sqrt(special.expit(-gammas)), np.sqrt(special.expit(gammas))
    points = jnp.asarray(AXIS, jnp.float32)[:, None]
    conditioned = built.vdm.condition == "label"
    condition = jax.nn.one_hot(jnp.full(len(AXIS), label), CLASSES) if conditioned else None

    @jax.jit
    def net(gamma):
        time = jnp.full(len(AXIS), (gamma + 1.5) / 2.5)
        return built.vdm.net.apply(params["net"], points[:, None, None], time, condition)

    def v_hat(gamma):
        return np.asarray(net(gamma), np.float64).ravel()

    x = (2.0 * np.arange(LEVELS) + 1.0) / LEVELS - 1.0
    apply = jax.jit(lambda net, params, h: net.apply(params, h), static_argnums=0)
    mu = np.asarray(apply(built.encoder, params["encoder"], jnp.asarray(x, jnp.float32)[:, None]), np.float64)
    output = np.asarray(apply(built.decoder, params["decoder"], points), np.float64)
    logits = -0.5 * np.exp(-output[:, 1:]) * (output[:, :1] - x) ** 2
    log_p = (logits - special.logsumexp(logits, axis=1, keepdims=True)).T[:, :, None, None]
    log_p = log_p + stats.norm.logpdf(AXIS)
    log_q = stats.norm.logpdf(AXIS, alpha[2] * mu, sigma[2])[:, None, None]

    for s, t in ((0, 1), (1, 2)):
        fresh = -np.expm1(gammas[s] - gammas[t])
        kept = (alpha[t] / alpha[s]) * sigma[s] ** 2 / sigma[t] ** 2
        to_x = alpha[s] * fresh
        x_hat = alpha[t] * AXIS - sigma[t] * v_hat(gammas[t])
        p, q = (
            stats.norm.logpdf(AXIS[:, None], kept * AXIS + to_x * target, sigma[s] * math.sqrt(fresh))
            for target in (x_hat, mu[:, :, None])
        )
        log_p = log_p + (p[None, :, :, None] if s == 0 else p[None, None])
        log_q = log_q + (q[:, :, :, None] if s == 0 else q[:, None])
    return log_q, log_p


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["none", "label"])
def test_elbo_and_samples_against_quadrature(condition):
    """The bound has the mean −log p(x) + KL(q(z|x) ‖ p(z|x)) (lecture (9)). With labels, −log p(x, label),
    which is larger, takes the place of −log p(x), and samples follow p(x|label)."""
    built, params = made(condition=condition)
    labels = range(CLASSES) if condition == "label" else (0,)
    log_p_given = []
    for label in labels:
        log_q, log_joint = integrated(built, params, label)
        np.testing.assert_allclose(np.exp(log_q).sum(axis=(1, 2, 3)) * CELL**3, 1.0, atol=1e-4)
        log_p = np.log(np.exp(log_joint).sum(axis=(1, 2, 3)) * CELL**3)
        assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4)
        posterior = log_joint - log_p[:, None, None, None]
        gaps = np.sum(np.exp(log_q) * (log_q - posterior), axis=(1, 2, 3)) * CELL**3
        assert gaps.min() > 0.01
        log_p_given.append(log_p)

        @jax.jit
        def draws(x):
            batch = {"image": jnp.full((COUNT, 1, 1, 1), x), "label": jnp.full(COUNT, label)}
            return built.draw(params, rng(), batch).terms

        for x in range(LEVELS):
            terms = draws(jnp.int32(x))
            of_label = {"label"} if condition == "label" else set()
            assert set(terms) == {"reconstruction", "prior", "diffusion"} | of_label
            nats = np.asarray(sum(terms.values()), np.float64)
            want = gaps[x] - log_p[x] + math.log(len(labels))
            assert nats.mean() == pytest.approx(want, abs=4 * nats.std() / math.sqrt(COUNT))

        batch = {"label": jnp.full(COUNT, label)}
        drawn = np.asarray(jax.jit(lambda: built.sample(params, rng(), batch))()).ravel()
        share = np.bincount(drawn, minlength=LEVELS) / COUNT
        assert np.abs(share - np.exp(log_p)).max() < 4 * 0.5 / math.sqrt(COUNT)
        images = np.arange(LEVELS).reshape(-1, 1, 1, 1)
        assert_weights_of_samples(built, params, images, COUNT, 1 / len(labels), **batch)
    if condition == "label":
        assert np.abs(log_p_given[0] - log_p_given[1]).max() > 0.05  # the label matters


def flow_density(built, params, label):
    """p(z_0) on AXIS under the ODE dz/dγ = ½ α σ v̂ from N(0, 1) at γ_1, by RK4 in float64."""
    low, high, steps, h = -1.5, 1.0, 60, 1e-3

    @jax.jit
    def v_hat(z, gamma):
        condition = jax.nn.one_hot(jnp.full(len(z), label), CLASSES)
        time = jnp.full(len(z), (gamma + 1.5) / 2.5)
        return built.vdm.net.apply(params["net"], z[:, None, None, None], time, condition).ravel()

    def slope(z, gamma):
        alpha, sigma = math.sqrt(special.expit(-gamma)), math.sqrt(special.expit(gamma))
        return 0.5 * alpha * sigma * np.asarray(v_hat(jnp.asarray(z, jnp.float32), gamma), np.float64)

    z, width = np.concatenate([AXIS - h, AXIS, AXIS + h]), (high - low) / steps
    for i in range(steps):
        gamma = low + i * width
        a = slope(z, gamma)
        b = slope(z + 0.5 * width * a, gamma + 0.5 * width)
        c = slope(z + 0.5 * width * b, gamma + 0.5 * width)
        z = z + width / 6.0 * (a + 2.0 * b + 2.0 * c + slope(z + width * c, gamma + width))
    below, at, above = np.split(z, 3)
    return stats.norm.pdf(at) * (above - below) / (2.0 * h)


@pytest.mark.slow
def test_log_weights_of_paths_and_of_the_ode_against_quadrature():
    """The chain has E[log w] = E_q[log p(x, z)/q(z|x)]. The ODE, which is another model, has E_q[log p(x|z_0)
    p(z_0)/q(z_0|x)] with its own density p(z_0). With labels, p(x, label) takes the place of p(x)."""
    built, params = made(condition="label")
    assert {Ability.LOG_WEIGHT, Ability.FLOW} <= built.abilities and Ability.DENOISER not in built.abilities
    label, share = 1, math.log(CLASSES)
    log_q, log_joint = integrated(built, params, label)
    chain = np.sum(np.exp(log_q) * (log_joint - log_q), axis=(1, 2, 3)) * CELL**3 - share

    x = (2.0 * np.arange(LEVELS) + 1.0) / LEVELS - 1.0
    apply = jax.jit(lambda net, params, h: net.apply(params, h), static_argnums=0)
    values, points = (jnp.asarray(part, jnp.float32)[:, None] for part in (x, AXIS))
    mu = np.asarray(apply(built.encoder, params["encoder"], values), np.float64)
    output = np.asarray(apply(built.decoder, params["decoder"], points), np.float64)
    logits = -0.5 * np.exp(-output[:, 1:]) * (output[:, :1] - x) ** 2
    log_p = (logits - special.logsumexp(logits, axis=1, keepdims=True)).T
    density = flow_density(built, params, label)
    assert density.sum() * CELL == pytest.approx(1.0, abs=1e-3)
    log_q = stats.norm.logpdf(AXIS, math.sqrt(special.expit(1.5)) * mu, math.sqrt(special.expit(-1.5)))
    flow = np.sum(np.exp(log_q) * (log_p + np.log(density) - log_q), axis=1) * CELL - share

    count = 4_000

    @jax.jit
    def log_weights(x):
        batch = {"image": jnp.full((count, 1, 1, 1), x), "label": jnp.full(count, label)}
        flow, keys = (
            built.flow(params, rng(count), batch, "latent"),
            jax.random.split(jax.random.key(5), count),
        )
        found = ode_solver.flow_log_density(
            flow.eps_hat, flow.z, flow.given, flow.ends, keys, 16, 1e-4, True, flow.curve
        )
        return built.log_weight(params, rng(count), batch), found["log_density"] + flow.nats

    for level in range(LEVELS):
        for log_w, want in zip(log_weights(jnp.int32(level)), (chain[level], flow[level])):
            log_w = np.asarray(log_w, np.float64)
            assert log_w.mean() == pytest.approx(want, abs=4.0 * log_w.std() / math.sqrt(count))
            assert log_w.std() / math.sqrt(count) < 0.05
    assert np.abs(chain - flow).max() > 0.05, "the chain and the ODE are different models"


def test_guidance_goes_on_from_no_label_beyond_the_label():
    """One step of DDIM is linear in ε̂, so guidance by (1 + w) ε̂(z, label) − w ε̂(z) mixes the two z_0
    likewise."""
    built, params = made(condition="label", drop_label=0.1, timesteps=1, sampler="ddim")
    label = jnp.arange(8) % CLASSES

    def z_0(guidance, label):
        vdm = dataclasses.replace(built.vdm, guidance=guidance)
        return jax.jit(lambda: vdm.sample_z_0(params, rng(8), {"label": label}))()

    labelled, unlabelled = z_0(0.0, label), z_0(0.0, jnp.full(8, -1))
    assert np.abs(labelled - unlabelled).max() > 0.1
    np.testing.assert_allclose(z_0(1.5, label), 2.5 * labelled - 1.5 * unlabelled, atol=1e-5)


@pytest.mark.slow
def test_labels_are_dropped_in_training_alone():
    built, params = made(condition="label", drop_label=0.3)
    some, count = jnp.arange(1000) % CLASSES, 1000

    def nats(label, train):
        batch = {"image": jnp.ones((count, 1, 1, 1), jnp.int32), "label": label}
        return built.draw(params, rng(count), batch, train).terms["diffusion"]

    nats = jax.jit(nats, static_argnums=1)
    labelled, unlabelled, train = nats(some, False), nats(jnp.full(count, -1), False), nats(some, True)
    dropped = np.isclose(train, unlabelled, rtol=1e-5)
    np.testing.assert_allclose(train[~dropped], labelled[~dropped], rtol=1e-5)
    assert abs(dropped.mean() - 0.3) < 4 * math.sqrt(0.21 / count)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"latent": 0}, "latent is 0; accepted: 1 or more"),
        (
            {"parameterisation": "categorical"},
            "parameterisation.name is 'categorical'; accepted for latents, .*: 'eps', 'x', 'v'",
        ),
        ({"drop_label": 1.0}, "drop_label is 1.0; accepted: at least 0 and below 1"),
        (
            {"drop_label": 0.1, "condition": "none"},
            "drop_label is 0.1; accepted: 0, unless condition = 'label'",
        ),
        ({"guidance": -1.0}, "guidance is -1.0; accepted: 0"),
        ({"guidance": 1.0, "drop_label": 0.0}, "guidance is 1.0; accepted: 0, unless drop_label > 0"),
    ],
)
def test_bad_values_are_refused(changes, text):
    config = make_config({f"model.{name}": value for name, value in changes.items()}, "configs/latent.py")
    with pytest.raises(UserError, match=text):
        run_lib.build_model(config, Spec((8, 8, 1), 17, 10))
