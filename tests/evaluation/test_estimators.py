"""All estimators against a known likelihood, and which of them a model can do."""

import math
import types

import numpy as np
import pytest

import exact
from vdm.contract import Ability
from vdm.errors import UserError
from vdm.evaluation import depth_rows, elbo_rows, estimators, ode_rows, table
from vdm.evaluation.chain_rows import CHAIN
from vdm.run import Run

pytestmark = pytest.mark.usefixtures("single")

STATE = types.SimpleNamespace(step=0, ema={"schedule": {}, "net": {}})


def known_data():
    """256 pictures, the log-probabilities they were drawn by, and the true bits/dim of each."""
    log_p = exact.log_probabilities((2, 2, 1), 4)
    images, truth = exact.pictures(log_p, 256)
    return images, log_p, truth


@pytest.fixture(scope="module")
def known():
    """Every row of the table for an optimal denoiser, the true bits/dim of each image, the profile, and the
    quadrature's error."""
    images, log_p, truth = known_data()
    config = exact.config(
        passes=120, depths="1,4,32", chain__timesteps=16, chain__samples=16, ode__samples=4,
        ode__images=256, ode__nodes=64,
    )  # fmt: skip
    model = exact.model(log_p, -9.0, 8.0)
    run = Run(exact.split(images, 4), model, STATE)
    continuous, profile = elbo_rows.elbo_row(config, run, model)
    chain = CHAIN.measure(config, run, [continuous])
    flow_weighted, quadrature = ode_rows.weighted_flow_rows(config, run)
    rows = {
        "continuous": continuous,
        "depths": depth_rows.DEPTH.measure(config, run, [continuous]).series,
        "chain": chain.rows[0],
        "weighted": chain.series,
        "flows": [ode_rows.flow_row(config, run, kind) for kind in ("uniform", "normal")],
        "flow_weighted": flow_weighted,
    }
    return rows, truth, profile, quadrature


def gap(row, truth):
    """Mean over images of an estimate above the truth, and its standard error."""
    above = row.estimate.values["bpd"] - truth[: row.estimate.images]
    return above.mean(), above.std(ddof=1) / math.sqrt(len(above))


def test_continuous_elbo_is_the_likelihood_where_the_denoiser_is_optimal(known):
    """The reverse process is then exact, so ELBO(x) = log p(x) of each x: no gap is left."""
    rows, truth, *_ = known
    mean, se = gap(rows["continuous"], truth)
    assert se < 0.02 and abs(mean) < 3.5 * se
    assert se < 2.0 * rows["continuous"].estimate.noise["bpd"]


@pytest.mark.parametrize("which", [0, 1])
def test_flow_is_the_likelihood_where_the_denoiser_is_optimal(known, which):
    """Its density at γ_0 is the data's own, one narrow bump a level. The bound by normal noise has no gap
    there but what the bumps' tails leave. Uniform noise is no bump: its bound is loose, and still above."""
    rows, truth, _, quadrature = known
    mean, se = gap(rows["flows"][which], truth)
    if which == 1:
        assert se < 1e-3 and abs(mean) < 3.5 * se
    else:
        assert 3.0 * se < mean < 0.5
    assert 1e-4 < quadrature < 0.03  # of half the nodes, far above its own


def test_chains_are_above_the_likelihood_and_fall_towards_it(known):
    rows, truth, *_ = known
    *finite, infinite = [gap(row, truth) for row in rows["depths"]]
    for mean, se in finite:
        assert mean > 3.0 * se
    assert [mean for mean, _ in finite] == sorted((mean for mean, _ in finite), reverse=True)
    assert finite[-1][0] < 0.1 * finite[-2][0] and infinite[0] < 0.1 * finite[-1][0]


def test_importance_weights_close_the_gap_from_above(known):
    """With K samples the bound falls from the ELBO's. The truth is the likelihood of the best model there is,
    so that no bound of another is below it on average; the flow's is there."""
    rows, truth, *_ = known
    for mean, se in (gap(row, truth) for row in rows["weighted"]):
        assert mean > 3.0 * se
    mean, se = gap(rows["flow_weighted"][-1], truth)
    assert se < 1e-3 and abs(mean) < 3.5 * se
    single, elbo = gap(rows["weighted"][0], truth), gap(rows["chain"], truth)
    assert abs(single[0] - elbo[0]) < 3.5 * math.hypot(single[1], elbo[1])
    assert gap(rows["weighted"][-1], truth)[0] < 0.3 * elbo[0]
    assert "yes" in table.agreement_line("", rows["weighted"][0], rows["chain"])
    assert "NO" in table.agreement_line("", rows["weighted"][-1], rows["chain"])
    assert "yes" in table.order_line("", rows["chain"], rows["continuous"])
    assert "NO" in table.order_line("", rows["continuous"], rows["chain"])


def test_profile_integrates_to_the_diffusion_term(known):
    """Over t and over γ, by the same draws; and the rate is what lies above a t, with the prior."""
    rows, _, profile, _ = known
    mean = rows["continuous"].estimate.mean
    columns = profile.summary(np.linspace(-9.0, 8.0, 41), mean["prior"], (2, 2, 1), 4)
    assert columns["per_t"].mean() == pytest.approx(mean["diffusion"], rel=1e-9)
    area = np.sum(columns["per_gamma"] * np.diff(columns["gamma_edges"]))
    assert area == pytest.approx(mean["diffusion"], rel=1e-9)
    for part in (0, 10, 20):  # whose middle the rate is of
        above = (0.5 * columns["per_t"][part] + columns["per_t"][part + 1 :].sum()) / 40
        assert columns["rate"][part] == pytest.approx(above + mean["prior"], rel=1e-9)


def test_error_of_the_prediction_where_it_is_known(known):
    """At t → 1 all is noise and x̂ is the mean of the data, at t → 0 it is x: RMSE in levels."""
    _, _, profile, _ = known
    images, log_p, _ = known_data()
    columns = profile.summary(np.linspace(-9.0, 8.0, 41), 0.0, (2, 2, 1), 4)
    mean = np.exp(log_p) @ np.arange(4)
    blind = math.sqrt(np.mean((images - mean) ** 2))
    assert columns["rmse"][-1] == pytest.approx(blind, rel=0.1)
    assert columns["rmse"][0] < 1e-3


# ---- the table --------------------------------------------------------------------------


def test_table_of_a_finite_model_on_one_image():
    """Nothing of it needs a second image, a second path or continuous time."""
    log_p = exact.log_probabilities((2, 2, 1), 4)
    images, _ = exact.pictures(log_p, 4)
    config = exact.config(
        passes=1, images=1, depths="5,3", chain__timesteps=3, chain__samples=1, ode__samples=1,
        ode__images=3, ode__nodes=8, ode__tolerance=1e-2,
    )  # fmt: skip
    config.codec.timesteps = 3
    model = exact.model(log_p, -5.0, 3.0, timesteps=3)
    run = Run(exact.split(images, 4), model, STATE)
    rows, series, checks, profile = estimators.measure(config, run, list(estimators.ESTIMATORS))
    assert [row.name for row in rows[:2]] == ["ELBO, T = 3", "ELBO, T → ∞"] and profile is not None
    names = [row.name for row in series["depth"]]
    assert names == ["ELBO, T = 3", "ELBO, T = 5", "ELBO, T → ∞"]
    assert series["depth"][0] is rows[0] and series["depth"][-1] is rows[1]
    assert len(rows) == len({row.name for row in rows}) == 7
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
    assert estimators.choose(exact.config(estimators="all"), model_with(*abilities)) == chosen


def test_those_that_are_named_come_in_their_order_and_with_the_elbo():
    config = exact.config(estimators="ode,depth")
    assert estimators.choose(config, model_with(*ALL_ABILITIES)) == ["elbo", "depth", "ode"]


@pytest.mark.parametrize(
    "abilities, names, text",
    [
        ((), "chain", "has 'chain', which needs latents with importance weights; accepted .*: 'elbo', 'all'"),
        ((Ability.LOG_WEIGHT,), "all,depth", "'depth', which needs a denoiser of the pictures themselves;"),
        ((Ability.LOG_WEIGHT,), "ode", "'ode', which needs a probability-flow ODE;"),
    ],
)
def test_an_estimator_that_needs_more_is_refused(abilities, names, text):
    with pytest.raises(UserError, match=text):
        estimators.choose(exact.config(estimators=names), model_with(*abilities))
