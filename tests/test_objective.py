"""Objectives: their weights and gradients, and that every objective reports the ELBO."""

import functools
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from conftest import TINY_FIELDS, make_config, perturbed, slow
from vdm import component, objective as objective_lib, run as run_lib, step as step_lib, train
from vdm.config import flat
from vdm.contract import Draw
from vdm.data.batches import eval_batches
from vdm.errors import UserError, one_line
from vdm.methods import weighted
from vdm.methods.band import Band
from vdm.methods.least_variance import LeastVariance
from vdm.methods.weighted import Weighted
from vdm.objective import ELBO
from vdm.runtime import randomness
from vdm.runtime.devices import AXIS

LOG_SNR = np.linspace(-15.0, 15.0, 301)


def edm(log_snr):
    """Kingma & Gao 2023, table 1, in float64, up to a constant factor."""
    return np.exp(-((log_snr - 2.4) ** 2) / (2 * 2.4**2)) * (np.exp(-log_snr) + 0.5**2)


GRID = np.linspace(-15.0, 15.0, 3_000_001)
PEAK = GRID[np.argmax(edm(GRID))]

FORMULAS = {
    "sigmoid": lambda log_snr: 1.0 / (1.0 + np.exp(log_snr - 2.0)),
    "flow_matching": lambda log_snr: np.exp(-log_snr / 2.0),
    "edm_monotone": lambda log_snr: np.where(log_snr < PEAK, 1.0, edm(log_snr) / edm(PEAK)),
    "soft_truncation": lambda log_snr: np.searchsorted(TRUNCATED, np.log1p(np.exp(-log_snr))) / len(TIMES),
}
# The times τ at which the ELBO is truncated, with a density proportional to 1/τ; and −log(1 − σ²) at τ in the
# variance-preserving process of Song et al. 2021, which is the integral of β from 0 to τ.
TIMES = 10.0 ** np.linspace(-5.0, 0.0, 1_000_001)
TRUNCATED = 0.1 * TIMES + 0.5 * (20.0 - 0.1) * TIMES**2


# ---- weights -------------------------------------------------------------------------


def test_every_weighting_has_a_formula():
    assert set(FORMULAS) == set(weighted.WEIGHTINGS)


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_are_the_formula(name):
    found = Weighted(name).weight(jnp.asarray(-LOG_SNR, jnp.float32))
    counted = name == "soft_truncation"  # a fraction of a million times
    np.testing.assert_allclose(found, FORMULAS[name](LOG_SNR), rtol=2e-5, atol=1e-6 if counted else 1e-30)


def test_soft_truncation_at_three_variances():
    variance = np.array([1e-5, 1e-4, 1e-3])
    found = Weighted("soft_truncation").weight(jnp.float32(np.log(variance) - np.log1p(-variance)))
    np.testing.assert_allclose(found, [0.199, 0.392, 0.558], atol=5e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_are_monotone(name):
    """They do not fall as noise grows."""
    found = np.asarray(Weighted(name).weight(jnp.asarray(-LOG_SNR[::-1], jnp.float32)), np.float64)
    steps = np.diff(found)
    assert np.all(steps >= -1e-6 * found[1:])
    if name == "edm_monotone":
        assert found.max() == pytest.approx(1.0, abs=1e-5)


def test_the_peak_of_edm():
    assert weighted._edm_peak() == pytest.approx(PEAK, abs=2e-5)
    assert -15.0 < PEAK < 15.0


def test_the_shift_of_sigmoid():
    gamma = jnp.asarray([-3.0, 0.0, 2.0])
    np.testing.assert_allclose(
        Weighted("sigmoid", shift=-1.0).weight(gamma),
        1.0 / (1.0 + np.exp(1.0 - np.asarray(gamma))),
        rtol=1e-6,
    )


def test_the_weights_of_a_band():
    gamma = np.linspace(-15.0, 15.0, 301)
    formula = (1.0 - 0.7 / (1.0 + np.exp(2.0 - gamma))) / (1.0 + np.exp(-11.0 - gamma))
    band = Band(low=-11.0, high=2.0, share=0.3)
    np.testing.assert_allclose(band.weight(jnp.asarray(gamma, jnp.float32)), formula, rtol=2e-6)
    ends = band.weight(jnp.asarray([-40.0, -11.0, -4.5, 2.0, 40.0]))
    np.testing.assert_allclose(ends, [0.0, 0.5, 1.0, 0.65, 0.3], atol=3e-3)


@pytest.mark.parametrize(
    "objective, weights",
    [
        (Weighted("flow_matching"), [math.exp(-1.0), math.exp(2.0)]),
        (Band(low=-22.0, high=4.0, share=0.0), [1.0 - 1.0 / (1.0 + math.exp(6.0)), 0.5]),
    ],
)
def test_only_the_diffusion_term_is_weighted(objective, weights):
    two = jnp.asarray([1.0, 2.0])
    denoising = SimpleNamespace(gamma=jnp.asarray([-2.0, 4.0]))
    draw = Draw({"reconstruction": two, "prior": 3 * two, "diffusion": 5 * two}, denoising)
    found = objective(None, draw)
    np.testing.assert_allclose(found["diffusion"], np.multiply([5.0, 10.0], weights), rtol=1e-6)
    assert found["prior"] is draw.terms["prior"] and found["reconstruction"] is draw.terms["reconstruction"]
    assert ELBO()(None, draw) is draw.terms


# ---- training ------------------------------------------------------------------------


def fields(**changes):
    """The fields of a tiny run without dropout, on a schedule with fixed end points."""
    fixed = {"model.schedule.name": "cosine", "model.net.dropout": 0.0, "model.parameterisation": "eps"}
    return TINY_FIELDS | fixed | {name.replace("__", "."): value for name, value in changes.items()}


def build(**changes):
    config = make_config(fields(**changes), "configs/digits.py")
    return config, run_lib.build(config)


pytestmark = pytest.mark.usefixtures("single")


def test_the_gradient_is_that_of_a_loss_written_by_hand():
    """½ w(−γ) γ' ‖ε − ε̂‖² at the times and noise of the draw."""
    _, parts = build(objective__name="weighted", model__schedule__name="fixed_linear")
    assert parts.objective == Weighted("sigmoid", 2.0)
    params = perturbed(parts.init().params)
    batch = next(eval_batches(parts.data.train, 8))
    rng = randomness.Rng(jax.random.key(3), jnp.arange(8), 8)

    def minimised(net):
        draw = parts.model.draw(params | {"net": net}, rng, batch)
        return jnp.mean(sum(parts.objective(None, draw).values()))

    t = np.asarray(parts.model.draw(params, rng, batch).denoising.t, np.float64)
    gamma = -9.0 + 14.0 * t
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * gamma)))[:, None, None, None] for s in (1, -1))
    x = 2 * (np.asarray(batch["image"], np.float64) + 0.5) / 17 - 1
    eps = np.asarray(rng.normal(randomness.NOISE, (8, 8, 1)))
    weight = 14.0 / (1.0 + np.exp(-2.0 - gamma))

    def by_hand(net):
        z_t = jnp.asarray(alpha * x + sigma * eps, jnp.float32)
        eps_hat = parts.model.eps_hat(params | {"net": net}, z_t, jnp.asarray(gamma, jnp.float32), None)
        return jnp.mean(0.5 * jnp.asarray(weight) * jnp.sum((eps - eps_hat) ** 2, axis=(1, 2, 3)))

    found, expected = (jax.jit(jax.grad(f))(params["net"]) for f in (minimised, by_hand))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3 * float(jnp.abs(other).max()))
    assert max(float(jnp.abs(v).max()) for v in jax.tree.leaves(found)) > 1.0


def one_step(config, parts, params, batch):
    """The state and the metrics after one step on one device."""
    state = parts.init()._replace(params=params)
    step = step_lib.make_step(parts.model, parts.objective, parts.optimizer, config, parts.data.spec.shape)
    mapped = jax.jit(jax.vmap(step, in_axes=(None, None, 0), axis_name=AXIS))
    after, metrics = mapped(
        state, {"root": randomness.root(config.seed)}, jax.tree.map(lambda v: v[None, None], batch)
    )
    return after, {name: float(value[0, 0]) for name, value in metrics.items()}


@pytest.mark.parametrize("name", ["elbo", slow("weighted"), slow("least_variance")])
def test_a_step_reports_the_elbo_and_beside_it_what_is_minimised(name):
    schedule = "learned_net" if name == "least_variance" else "cosine"
    config, parts = build(objective__name=name, model__schedule__name=schedule)
    params = perturbed(parts.init().params)
    batch = {name: jnp.asarray(parts.data.train.read(np.arange(16))[name]) for name in ("image", "label")}
    _, metrics = one_step(config, parts, params, batch)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), 0)
    rng = randomness.Rng(key, jnp.arange(16), 16)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def by_hand(params):
        draw = parts.model.draw(params, rng, batch)
        weight = 1.0 / (1.0 + jnp.exp(-2.0 - draw.denoising.gamma)) if name == "weighted" else 1.0
        others = draw.terms["prior"] + draw.terms["reconstruction"]
        minimised = jnp.mean(weight * draw.terms["diffusion"] + others)
        return minimised, (draw.terms, minimised)

    grads, (terms, minimised) = by_hand(params)
    elbo = sum(np.asarray(nats, np.float64) for nats in terms.values())
    assert metrics["loss"] == pytest.approx(elbo.mean(), rel=1e-5)
    assert metrics["draw_sd"] == pytest.approx(elbo.std(), rel=1e-3)
    for term, nats in terms.items():
        assert metrics[term] == pytest.approx(float(jnp.mean(nats)), rel=1e-5)
    # The gradient by hand does not include that of the variance: see test_least_variance.py.
    same = metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-3)
    assert same == (name != "least_variance")
    assert ("objective" in metrics) == (name == "weighted")
    if name == "weighted":
        assert metrics["objective"] == pytest.approx(float(minimised), rel=1e-5)
        assert metrics["objective"] < 0.9 * metrics["loss"]


@pytest.mark.slow
def test_a_weighted_run_reports_the_elbo_of_its_parameters(tmp_path):
    """Its test bits/dim equal the sum of the ELBO's terms for its parameters under the same noise."""
    # With one pass, the times are uniform.
    few = {"train__steps": 6, "train__eval_every": 0, "eval__passes": 1}
    config = make_config(fields(objective__name="weighted", **few), "configs/digits.py")
    train.run(config, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    restored = run_lib.restore(config, tmp_path)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), 0)
    images = restored.data.test.size

    @jax.jit
    def nats(batch, index):
        rng = randomness.QuasiRng(key, index, jnp.int32(0), jnp.int32(images), jnp.int32(1))
        return sum(restored.model.draw(restored.state.ema, rng, batch).terms.values())

    found = []
    for start in range(0, images, 120):
        index = np.arange(start, start + 120)
        found.append(nats(restored.data.test.read(index), index.astype(np.int32)))
    elbo = np.mean(found, dtype=np.float64) / (64 * math.log(2.0))
    for split in ("test", "final"):
        (row,) = (row for row in rows if row["split"] == split)
        assert row["bpd"] == pytest.approx(elbo, rel=1e-5) and "objective" not in row
    assert json.loads((tmp_path / "eval.json").read_text())["bpd"] == pytest.approx(elbo, rel=1e-5)
    trained = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in trained] == [3, 6]
    for row in trained:
        assert row["bpd"] == pytest.approx(row["diffusion"] + row["prior"] + row["reconstruction"], rel=1e-5)
        assert row["objective"] < 0.9 * row["bpd"]


# ---- refused -------------------------------------------------------------------------

REFUSED = {
    "least variance of a chain": (
        {"objective.name": "least_variance", "model.schedule.name": "learned_net", "model.timesteps": 10},
        "'least_variance', which needs continuous time and a schedule that is learned between its end points",
    ),
    "least variance of a fixed schedule": (
        {"objective.name": "least_variance", "model.schedule.name": "cosine"},
        "which needs continuous time and a schedule that is learned between its end points",
    ),
    "weighted with learned ends": (
        {"objective.name": "weighted", "model.schedule.name": "learned_linear"},
        "'weighted', which needs a schedule whose end points are not learned.",
    ),
    "weighted with learned ends of a network": (
        {
            "objective.name": "weighted",
            "model.schedule.name": "learned_net",
            "model.schedule.learn_ends": True,
        },
        "which needs a schedule whose end points are not learned.",
    ),
    "weighted with a schedule for each value": (
        {"objective.name": "weighted", "model.schedule.name": "multivariate"},
        "which needs one γ for all values of an image.",
    ),
    "weighted VAE": (
        {"objective.name": "weighted", "model.name": "vae"},
        "which needs a model that draws a diffusion time and a denoiser of the images themselves and one γ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    changes, text = REFUSED[case]
    digits = fields()
    given = {name: digits[name] for name in digits if name.startswith(("model.net", "model.name"))}
    config = make_config({name: v for name, v in given.items()} | changes, "configs/digits.py")
    data = run_lib.source.load(config.data)
    with pytest.raises(UserError) as error:
        objective_lib.build(config.objective, run_lib.build_model(config, data.spec))
    line = one_line(error.value)
    assert line.startswith(f"config.objective.name is '{changes['objective.name']}'") and text in line, line
    assert "'elbo'" in line


def test_values_that_are_not_accepted():
    for changes, text in [({"weighting": "snr"}, "'sigmoid'"), ({"shift": math.inf}, "a number")]:
        section = make_config({"objective.name": "weighted"}).objective
        section.update(changes)
        with pytest.raises(UserError, match=text):
            component.build("objective", section, "config.objective")


def test_accepted_where_the_model_is_able():
    for name, schedule, cls in [
        ("weighted", "learned_net", Weighted),
        ("least_variance", "piecewise", LeastVariance),
        ("elbo", "multivariate", ELBO),
    ]:
        config, parts = build(objective__name=name, model__schedule__name=schedule)
        assert isinstance(parts.objective, cls) and flat(config)["objective.name"] == name
