"""All estimators against a known likelihood, and the choice of those that a model supports."""

import math
import types

import numpy as np
import pytest

import exact
from vdm.contract import Ability
from vdm.errors import UserError
from vdm.evaluation import depth, elbo, estimator, importance_weighted, ode, table
from vdm.run import Run

pytestmark = pytest.mark.usefixtures("single")

STATE = types.SimpleNamespace(step=0, ema={"schedule": {}, "net": {}})
LOG_P, ENDS = exact.log_probabilities((2, 2, 1), 4), (-9.0, 8.0)
VALUES = (2.0 * np.arange(4) + 1.0) / 4.0 - 1.0
IMAGES, TRUTH = exact.images(LOG_P, 256)  # TRUTH: the bits/dim of each image


@pytest.fixture(scope="module")
def known():
    """Every row of the table for an optimal denoiser, the profile, and the quadrature's error."""
    config = exact.config(
        passes=120, depths="1,4,32", chain__timesteps=16, chain__samples=16, ode__samples=4,
        ode__images=256, ode__nodes=64,
    )  # fmt: skip
    model = exact.model(LOG_P, *ENDS)
    run = Run(exact.split(IMAGES, 4), model, STATE)
    continuous, profile = elbo.elbo_row(config, run, model)
    weighted = importance_weighted.Chain().measure(config, run, [continuous])
    flow_weighted, quadrature = ode.weighted_flow_rows(config, run)
    rows = {
        "continuous": continuous,
        "depths": depth.Depth().measure(config, run, [continuous]).series,
        "chain": weighted.rows[0],
        "weighted": weighted.series,
        "flows": [ode.flow_row(config, run, kind) for kind in ("uniform", "normal")],
        "flow_weighted": flow_weighted,
    }
    return rows, profile, quadrature


def in_bits(nats):
    """bits/dim of each image, where `nats` [*shape, levels] is the cost of each value at each level."""
    chosen = np.take_along_axis(nats[None], IMAGES[..., None].astype(int), axis=-1)
    return chosen.reshape(len(IMAGES), -1).mean(axis=1) / math.log(2.0)


def log_joint(log_p, z, gamma):
    """log p(v) N(z; α x_v, σ²) for all levels v: [*shape, level, point, v] for z [level, point]."""
    alpha, sigma = alpha_sigma(gamma)
    far = (z[..., None] - alpha * VALUES) / sigma
    return log_p[..., None, None, :] - 0.5 * far**2 - math.log(sigma * math.sqrt(2.0 * math.pi))


def alpha_sigma(gamma):
    return 1.0 / math.sqrt(1.0 + math.exp(gamma)), 1.0 / math.sqrt(1.0 + math.exp(-gamma))


def chain_bound(timesteps):
    """The ELBO of each level by sums over a grid of ε: Σ ½ (SNR(s) − SNR(t)) E(x − x̂)² with the optimal x̂
    (VDM eq. 13), the prior, and the reconstruction."""
    eps = np.linspace(-8.0, 8.0, 1601)
    weights = np.exp(-0.5 * eps**2) / np.exp(-0.5 * eps**2).sum()

    def posterior(log_p, gamma):
        alpha, sigma = alpha_sigma(gamma)
        log = log_joint(log_p, alpha * VALUES[:, None] + sigma * eps, gamma)
        return np.exp(log - np.logaddexp.reduce(log, axis=-1, keepdims=True))

    gammas = np.linspace(*ENDS, timesteps + 1)
    right = np.einsum("...vev->...ve", posterior(np.zeros_like(LOG_P), gammas[0]))
    alpha, sigma = alpha_sigma(gammas[-1])
    nats = 0.5 * ((alpha * VALUES) ** 2 + sigma**2 - 1.0 - 2.0 * math.log(sigma)) - np.log(right) @ weights
    for before, gamma in zip(gammas, gammas[1:]):
        missed = VALUES[:, None] - posterior(LOG_P, gamma) @ VALUES
        nats = nats + 0.5 * (math.exp(-before) - math.exp(-gamma)) * (missed**2 @ weights)
    return nats


def uniform_bound(gamma):
    """E[−log p(z) − log(2α/V)] of each level, with z uniform in its cell."""
    alpha, _ = alpha_sigma(gamma)
    u = (2.0 * np.arange(2_000) + 1.0) / 2_000 - 1.0
    log = log_joint(LOG_P, alpha * (VALUES[:, None] + u / 4.0), gamma)
    return -np.logaddexp.reduce(log, axis=-1).mean(axis=-1) - math.log(2.0 * alpha / 4.0)


def gap(row, truth=TRUTH):
    """Mean excess of an estimate over the truth, with its standard error over images."""
    above = row.estimate.values["bpd"] - truth[: row.estimate.images]
    return above.mean(), above.std(ddof=1) / math.sqrt(len(above))


def test_continuous_elbo_is_the_likelihood_where_the_denoiser_is_optimal(known):
    """The reverse process is then exact, so ELBO(x) = log p(x) for each x."""
    rows, *_ = known
    mean, se = gap(rows["continuous"])
    assert se < 0.02 and abs(mean) < 3.5 * se
    assert se < 2.0 * rows["continuous"].estimate.noise["bpd"]


@pytest.mark.parametrize("which, most", [(0, 0.02), (1, 1e-3)])
def test_flow_is_the_likelihood_where_the_denoiser_is_optimal(known, which, most):
    """The flow's density is then the data's own, one Gaussian bump per level. With normal noise, the bound
    has no gap at γ_0 except for the bumps' tails. With uniform noise it is loose and equals
    `uniform_bound`."""
    rows, _, quadrature = known
    mean, se = gap(rows["flows"][which])
    if which == 0:
        assert mean > 3.0 * se
        mean, se = gap(rows["flows"][0], in_bits(uniform_bound(-2.0 * math.log(4.0 * math.sqrt(3.0)))))
    assert se < most and abs(mean) < 3.5 * se
    assert 1e-4 < quadrature < 0.03  # the error of half the nodes, far above that of all


def test_chains_are_above_the_likelihood_and_fall_towards_it(known):
    """For each depth, the mean is the one that `chain_bound` gives."""
    rows, *_ = known
    for row, timesteps in zip([*rows["depths"], rows["chain"]], (1, 4, 32, None, 16)):
        if timesteps:
            mean, se = gap(row)
            assert mean > 3.0 * se
            bound = in_bits(chain_bound(timesteps))
            off, se = gap(row, bound)
            assert abs(off) < 3.5 * se and se < 0.02 * bound.mean(), timesteps
    *finite, infinite = [gap(row)[0] for row in rows["depths"]]
    assert finite == sorted(finite, reverse=True)
    assert finite[-1] < 0.1 * finite[-2] and abs(infinite) < 0.1 * finite[-1]


def test_importance_weights_close_the_gap_from_above(known):
    """The bound falls from the ELBO as K grows. The truth is the likelihood of the best possible model, so on
    average no other model's bound is below it; the flow's bound reaches it."""
    rows, *_ = known
    for mean, se in (gap(row) for row in rows["weighted"]):
        assert mean > 3.0 * se
    mean, se = gap(rows["flow_weighted"][-1])
    assert se < 1e-3 and abs(mean) < 3.5 * se
    single, elbo = gap(rows["weighted"][0]), gap(rows["chain"])
    assert abs(single[0] - elbo[0]) < 3.5 * math.hypot(single[1], elbo[1])
    assert gap(rows["weighted"][-1])[0] < 0.3 * elbo[0]
    assert "yes" in table.agreement_line("", rows["weighted"][0], rows["chain"])
    assert "NO" in table.agreement_line("", rows["weighted"][-1], rows["chain"])
    assert "yes" in table.order_line("", rows["chain"], rows["continuous"])
    assert "NO" in table.order_line("", rows["continuous"], rows["chain"])


def test_profile_integrates_to_the_diffusion_term(known):
    """Over t and over γ, from the same draws. The rate at t is the integral above t plus the prior."""
    rows, profile, _ = known
    mean = rows["continuous"].estimate.mean
    columns = profile.summary(np.linspace(-9.0, 8.0, 41), mean["prior"], (2, 2, 1), 4)
    assert columns["per_t"].mean() == pytest.approx(mean["diffusion"], rel=1e-9)
    area = np.sum(columns["per_gamma"] * np.diff(columns["gamma_edges"]))
    assert area == pytest.approx(mean["diffusion"], rel=1e-9)
    for part in (0, 10, 20):  # the rate is taken at its middle
        above = (0.5 * columns["per_t"][part] + columns["per_t"][part + 1 :].sum()) / 40
        assert columns["rate"][part] == pytest.approx(above + mean["prior"], rel=1e-9)


def test_error_of_the_prediction_where_it_is_known(known):
    """As t → 1 z is noise and x̂ the mean of the data; as t → 0 x̂ is x. RMSE in levels."""
    _, profile, _ = known
    columns = profile.summary(np.linspace(-9.0, 8.0, 41), 0.0, (2, 2, 1), 4)
    mean = np.exp(LOG_P) @ np.arange(4)
    blind = math.sqrt(np.mean((IMAGES - mean) ** 2))
    assert columns["rmse"][-1] == pytest.approx(blind, rel=0.1)
    assert columns["rmse"][0] < 1e-3


# ---- the table --------------------------------------------------------------------------


@pytest.mark.slow
def test_table_of_a_finite_model_on_one_image():
    """The table needs no second image, no second path and no model in continuous time."""
    log_p = exact.log_probabilities((2, 2, 1), 4)
    images, _ = exact.images(log_p, 4)
    config = exact.config(
        passes=1, images=1, depths="5,3", chain__timesteps=3, chain__samples=1, ode__samples=1,
        ode__images=3, ode__nodes=8, ode__tolerance=1e-2,
    )  # fmt: skip
    config.codec.timesteps = 3
    model = exact.model(log_p, -5.0, 3.0, timesteps=3)
    run = Run(exact.split(images, 4), model, STATE)
    rows, series, checks, profile = estimator.measure(config, run, list(estimator.find(config)))
    assert [row.name for row in rows[:2]] == ["ELBO, T = 3", "ELBO, T → ∞"] and profile is not None
    names = [row.name for row in series["depth"]]
    assert names == ["ELBO, T = 3", "ELBO, T = 5", "ELBO, T → ∞"]
    assert series["depth"][0] is rows[0] and series["depth"][-1] is rows[1]
    assert len(rows) == len({row.name for row in rows}) == len({row.id for row in rows}) == 7
    assert [row.id for row in rows[:2]] == ["elbo_T3", "elbo_Tinf"]
    assert "nan" not in table.tables(rows, series, checks)
    assert sum("not known" in line for line in checks) == 3


def model_with(*abilities):
    return types.SimpleNamespace(abilities=frozenset(abilities))


ALL_ABILITIES = (Ability.DENOISER, Ability.LOG_WEIGHT, Ability.FLOW)


@pytest.mark.parametrize(
    "abilities, chosen",
    [
        (ALL_ABILITIES, ["elbo", "depth", "chain", "ode"]),
        ((Ability.CODE,), ["elbo", "codec"]),
        ((Ability.DENOISER,), ["elbo", "depth"]),
        ((Ability.FLOW,), ["elbo", "ode"]),
        ((Ability.LOG_WEIGHT,), ["elbo", "chain"]),
        ((), ["elbo"]),
    ],
)
def test_all_are_those_that_the_model_can_do(abilities, chosen):
    assert estimator.choose(exact.config(estimators="all"), model_with(*abilities)) == chosen


def test_those_that_are_named_come_in_their_order_and_with_the_elbo():
    config = exact.config(estimators="ode,depth")
    assert estimator.choose(config, model_with(*ALL_ABILITIES)) == ["elbo", "depth", "ode"]


@pytest.mark.parametrize(
    "abilities, names, text",
    [
        ((), "chain", "has 'chain', which needs latents with importance weights; accepted .*: 'elbo', 'all'"),
        ((Ability.LOG_WEIGHT,), "all,depth", "'depth', which needs a denoiser of the images themselves;"),
        ((Ability.LOG_WEIGHT,), "ode", "'ode', which needs a probability-flow ODE;"),
    ],
)
def test_an_estimator_that_needs_more_is_refused(abilities, names, text):
    with pytest.raises(UserError, match=text):
        estimator.choose(exact.config(estimators=names), model_with(*abilities))
