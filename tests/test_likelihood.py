"""Every road to log p(x) against data whose likelihood is known, or integrated by brute force."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from vdm import run, step
from vdm.diffusion import encoder
from vdm.evaluation import estimators, likelihood, table
from vdm.errors import UserError
from vdm.runtime.randomness import Rng


# ---- all estimators against a known likelihood ------------------------------------------


STATE = step.State(0, None, {"schedule": {}, "net": {}}, None)


def known_data():
    """256 pictures, the log-probabilities they were drawn by, and the true bits/dim of each."""
    log_p = exact.log_probabilities((2, 2, 1), 4)
    images, truth = exact.pictures(log_p, 256)
    return images, log_p, truth


@pytest.fixture(scope="module")
def known():
    """Every row of the table for an optimal denoiser, and the true bits/dim of each image."""
    images, log_p, truth = known_data()
    config = exact.config(
        passes=120, depths="1,4,32", chain__timesteps=16, chain__samples=16, ode__samples=4,
        ode__images=256, ode__nodes=64,
    )  # fmt: skip
    made = exact.model(log_p, -9.0, 8.0)
    this = run.Run(exact.split(images, 4), made, STATE)
    continuous, profile = estimators.elbo_row(config, this, made)
    chain, *weighted = estimators.chain_rows(config, this)
    flows = [estimators.flow_row(config, this, kind) for kind in ("uniform", "normal")]
    flow_weighted, quadrature = estimators.weighted_flow_rows(config, this)
    rows = dict(
        continuous=continuous, depths=estimators.depths(config, this, [continuous]), chain=chain,
        weighted=weighted, flows=flows, flow_weighted=flow_weighted,
    )  # fmt: skip
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
    """Its density at γ_0 is the data's own, one narrow bump a level; the bound by normal noise
    has no gap there but what the bumps' tails leave. Uniform noise is no bump: its bound is
    loose, and still above."""
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
    """With K samples the bound falls from the ELBO's. The truth is the likelihood of the best
    model there is, so that no bound of another is below it on average; the flow's is there."""
    rows, truth, *_ = known
    for mean, se in (gap(row, truth) for row in rows["weighted"]):
        assert mean > 3.0 * se
    mean, se = gap(rows["flow_weighted"][-1], truth)
    assert se < 1e-3 and abs(mean) < 3.5 * se
    single, elbo = gap(rows["weighted"][0], truth), gap(rows["chain"], truth)
    assert abs(single[0] - elbo[0]) < 3.5 * math.hypot(single[1], elbo[1])
    assert gap(rows["weighted"][-1], truth)[0] < 0.3 * elbo[0]
    assert "yes" in table.agreement("", rows["weighted"][0], rows["chain"])
    assert "NO" in table.agreement("", rows["weighted"][-1], rows["chain"])
    assert "yes" in table.order("", rows["chain"], rows["continuous"])
    assert "NO" in table.order("", rows["continuous"], rows["chain"])


def test_table_of_a_finite_model_on_one_image():
    """Nothing of it needs a second image, a second path or continuous time."""
    log_p = exact.log_probabilities((2, 2, 1), 4)
    images, _ = exact.pictures(log_p, 4)
    config = exact.config(
        passes=1, images=1, depths="5,3", chain__timesteps=3, chain__samples=1, ode__samples=1,
        ode__images=3, ode__nodes=8, ode__tolerance=1e-2,
    )  # fmt: skip
    made = exact.model(log_p, -5.0, 3.0, timesteps=3)
    this = run.Run(exact.split(images, 4), made, STATE)
    first, _ = estimators.elbo_row(config, this, made)
    rows, series, checks = estimators.measure(config, this, list(estimators.ESTIMATORS), [first])
    names = [row.name for row in series["depth"]]
    assert names == ["ELBO, T = 3", "ELBO, T = 5", "ELBO, T → ∞"] and series["depth"][0] is first
    assert len(rows) == len({row.name for row in rows}) == 5
    assert "nan" not in table.tables(rows, series, checks)
    assert sum("not known" in line for line in checks) == 2


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
    images, log_p = known_data()[:2]
    columns = profile.summary(np.linspace(-9.0, 8.0, 41), 0.0, (2, 2, 1), 4)
    mean = np.exp(log_p) @ np.arange(4)
    blind = math.sqrt(np.mean((images - mean) ** 2))
    assert columns["rmse"][-1] == pytest.approx(blind, rel=0.1)
    assert columns["rmse"][0] < 1e-3


# ---- a chain against brute-force integration --------------------------------------------


def brute_force(log_q, gammas, points=3001):
    """log p(x) of each level under a chain on one value, float64, by sums over a grid of z.

    Written apart from vdm: its own posterior, denoiser and decoder, from α and σ.
    """
    levels = np.array([(2 * v + 1) / len(log_q) - 1 for v in range(len(log_q))])
    z = np.linspace(-8.0, 8.0, points)
    alpha2 = 1.0 / (1.0 + np.exp(np.asarray(gammas, np.float64)))
    alpha, sigma2 = np.sqrt(alpha2), 1.0 - alpha2

    def softmax(logits):
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return p / p.sum(axis=-1, keepdims=True)

    def likelihoods(i):
        return -0.5 * (z[:, None] - alpha[i] * levels) ** 2 / sigma2[i]

    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    for t in range(len(gammas) - 1, 0, -1):
        s = t - 1
        x_hat = softmax(likelihoods(t) + log_q) @ levels
        ratio = alpha[t] / alpha[s]
        fresh = sigma2[t] - ratio**2 * sigma2[s]
        mean = ratio * sigma2[s] / sigma2[t] * z + alpha[s] * fresh / sigma2[t] * x_hat
        variance = fresh * sigma2[s] / sigma2[t]
        kernel = np.exp(-0.5 * (z[None, :] - mean[:, None]) ** 2 / variance)
        density = density @ (kernel / np.sqrt(2 * np.pi * variance)) * (z[1] - z[0])
    assert density.sum() * (z[1] - z[0]) == pytest.approx(1.0, abs=1e-6)
    return np.log(density @ softmax(likelihoods(0)) * (z[1] - z[0]))


def test_chain_against_brute_force():
    """E[w] = p(x); ELBO ≤ the K-sample bound ≤ log p(x), rising with K; all of it for each of
    three levels, under a denoiser that is wrong, so that every gap is real."""
    log_q = np.log(np.array([0.7, 0.1, 0.2]))
    gammas = np.array([-2.0, 0.0, 2.0, 4.0])
    truth = brute_force(log_q, gammas)
    assert np.exp(truth).sum() == pytest.approx(1.0, abs=1e-6)
    made = exact.model(log_q.reshape(1, 1, 1, 3), -2.0, 4.0, timesteps=3)
    levels = jnp.repeat(jnp.arange(3), 32_768).reshape(-1, 1, 1, 1)

    @jax.jit
    def log_weights(key):
        keys = jax.random.split(key, levels.shape[0])
        eps_hat = lambda *args: made.eps_hat({"net": {}}, *args)  # noqa: E731
        return likelihood.chain(eps_hat, levels, None, jnp.asarray(gammas, jnp.float32), keys, 3)

    log_w = np.asarray(log_weights(jax.random.key(0)), np.float64).reshape(3, -1).T
    w = np.exp(log_w - truth)
    assert np.all(np.abs(w.mean(axis=0) - 1.0) < 4.0 * w.std(axis=0) / math.sqrt(len(w)))

    bounds = [likelihood.importance_bound(log_w, k) for k in (1, 4, 32)]
    means = np.array([bound.mean(axis=0) for bound in bounds])
    errors = np.array([bound.std(axis=0) / math.sqrt(len(bound)) for bound in bounds])
    assert np.all(np.diff(means, axis=0) > 3.0 * errors[:-1])  # the gaps are large here
    assert np.all(means < truth + 3.0 * errors)
    assert np.all(truth - means[-1] < 0.2 * (truth - means[0]) + 3.0 * errors[-1])


# ---- the flow against closed forms ------------------------------------------------------


def mixture(means, scale, weights):
    """log density at noise level γ of a mixture of Gaussians in 2-D, and its optimal denoiser."""
    means, weights = jnp.asarray(means), jnp.asarray(weights)

    def log_density(z, gamma):
        variance = encoder.alpha(gamma) ** 2 * scale**2 + encoder.sigma(gamma) ** 2
        square = jnp.sum((z[None] - encoder.alpha(gamma) * means) ** 2, axis=-1)
        log_n = -0.5 * square / variance - jnp.log(2.0 * jnp.pi * variance)
        return jax.nn.logsumexp(log_n + jnp.log(weights))

    def eps_hat(z, gamma, told):
        score = jax.vmap(jax.grad(log_density))(z, gamma)
        return -encoder.sigma(gamma)[:, None] * score

    return log_density, eps_hat


@pytest.mark.parametrize("exact_divergence", [True, False])
def test_flow_gives_the_density_of_a_mixture(exact_divergence):
    log_density, eps_hat = mixture([[-0.6, 0.2], [0.5, 0.5], [0.1, -0.7]], 0.15, [0.5, 0.3, 0.2])
    ends = jnp.array([-6.0, 14.0])
    z = 0.7 * jax.random.normal(jax.random.key(0), (64, 2))
    keys = jax.random.split(jax.random.key(1), 64)
    solve = jax.jit(
        lambda z: likelihood.flow_log_density(
            eps_hat, z, None, ends, keys, 256, 1e-6, exact_divergence
        )
    )
    found = solve(z)
    truth = jax.vmap(log_density, (0, None))(z, ends[0])
    above = np.asarray(found["log_density"] - truth)
    if exact_divergence:
        assert np.abs(above).max() < 5e-3, above
    else:
        assert above.std() > 0.05  # the probes' noise is there
        assert abs(above.mean()) < 3.5 * above.std() / 8.0


def test_flow_of_a_gaussian_is_linear():
    """ε̂ = σ (z − α μ)/(α² s² + σ²): the flow scales z − α μ by the marginals' ratio of spread, so
    that its density is known to the last bit, the mismatch of N(0, I) at γ_1 included."""
    mu, s, ends = 0.3, 0.2, jnp.array([-5.0, 1.0])

    def variance(gamma):
        return encoder.alpha(gamma) ** 2 * s**2 + encoder.sigma(gamma) ** 2

    def eps_hat(z, gamma, told):
        gamma = gamma[:, None]
        return encoder.sigma(gamma) * (z - encoder.alpha(gamma) * mu) / variance(gamma)

    z_0 = jnp.linspace(-1.0, 1.5, 12).reshape(4, 3)
    found = likelihood.flow_log_density(
        eps_hat, z_0, None, ends, jax.random.split(jax.random.key(0), 4), 64, 1e-6, True
    )
    ratio = np.sqrt(float(variance(ends[1]) / variance(ends[0])))
    alpha = np.asarray(encoder.alpha(ends), np.float64)
    z_1 = alpha[1] * mu + ratio * (np.asarray(z_0, np.float64) - alpha[0] * mu)
    truth = (-0.5 * z_1**2 - 0.5 * np.log(2 * np.pi) + np.log(ratio)).sum(axis=1)
    np.testing.assert_allclose(found["log_density"], truth, atol=2e-4)


class Wiener:
    """A network that is the optimal x̂ for Gaussian data N(MU, S²): linear in z."""

    MU, S = 0.1, 0.4

    @classmethod
    def gain(cls, gamma, xp):
        alpha2 = 1.0 / (1.0 + xp.exp(gamma))
        return cls.S**2 * xp.sqrt(alpha2) / (alpha2 * cls.S**2 + 1.0 - alpha2)

    def apply(self, params, z, time, *args):
        gamma = (-8.0 + 16.0 * time)[:, None, None, None]
        return self.MU + self.gain(gamma, jnp) * (z - encoder.alpha(gamma) * self.MU)


@pytest.mark.parametrize("timesteps", [0, 1, 4, 32])
def test_diffusion_term_of_gaussian_data(timesteps):
    """Its expectation for each x is a sum over steps, in float64 NumPy, of ½ (SNR_s − SNR_t)
    E‖x − x̂‖²; in continuous time its mean over the data is the information that z_0 holds
    beyond z_1, ½ log (1 + s² SNR_0)/(1 + s² SNR_1)."""
    count, vocab_size = 65_536, 256
    draw = np.random.default_rng(0).normal(Wiener.MU, Wiener.S, count)
    image = np.clip(np.floor((draw + 1.0) / 2.0 * vocab_size), 0, vocab_size - 1).astype(np.uint8)
    x = (2.0 * image + 1.0) / vocab_size - 1.0
    made = dataclasses.replace(
        exact.model(np.zeros((1, 1, 1, vocab_size)), -8.0, 8.0, timesteps),
        net=Wiener(), parameterisation="x",
    )  # fmt: skip
    rng = Rng(jax.random.key(0), jnp.arange(count), count)
    batch = {"image": image.reshape(-1, 1, 1, 1)}
    found = jax.jit(lambda: made.loss({"schedule": {}, "net": {}}, rng, batch, False))()["diffusion"]

    gamma = np.linspace(-8.0, 8.0, (timesteps or 20_000) + 1)
    alpha2 = 1.0 / (1.0 + np.exp(gamma))
    gain = Wiener.gain(gamma, np)

    def expected(square):  # (x − μ)², any shape
        error = (1.0 - gain * np.sqrt(alpha2)) ** 2 * np.asarray(square)[..., None]
        error = error + gain**2 * (1.0 - alpha2)
        if not timesteps:  # midpoints, for the limit of many steps
            error = 0.5 * (error[..., 1:] + error[..., :-1])
        else:
            error = error[..., 1:]
        return 0.5 * np.sum(-np.diff(np.exp(-gamma)) * error, axis=-1)

    if not timesteps:
        ends = 1.0 + Wiener.S**2 * np.exp(-gamma[[0, -1]])
        assert expected(Wiener.S**2) == pytest.approx(0.5 * np.log(ends[0] / ends[1]), rel=1e-5)
    truth = expected(np.mean((x - Wiener.MU) ** 2))  # linear in the square
    se = np.std(np.asarray(found, np.float64)) / math.sqrt(count)
    assert abs(np.mean(np.asarray(found, np.float64)) - truth) < 3.5 * se and se < 0.02 * truth


def test_clenshaw_curtis_is_exact_for_polynomials():
    points, weights = likelihood.clenshaw_curtis(8)
    for power in range(9):
        assert weights @ points**power == pytest.approx(1.0 / (power + 1), abs=1e-12)
    np.testing.assert_allclose(points[::2], likelihood.clenshaw_curtis(4)[0], atol=1e-15)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_dequantisation_stays_in_the_cell_and_knows_its_density(kind):
    """z/α lies in the cell of its level, and −log q is that of a density on it: by histogram."""
    levels = jnp.full((20_000, 1), 2)
    keys = jax.random.split(jax.random.key(0), 20_000)
    z, gamma, nats = likelihood.dequantise(kind, keys, levels, jnp.float32(-3.0), 3)
    offset = np.asarray(z[:, 0] / encoder.alpha(gamma) - encoder.scale(levels[0], 3)) * 3.0
    assert np.all(np.abs(offset) <= 1.0 + 1e-5)
    edges = np.linspace(-1.0, 1.0, 11)
    width = 0.2 * float(encoder.alpha(gamma)) / 3.0
    total = 0.0
    counts, _ = np.histogram(offset, edges)
    for low, high, count in zip(edges, edges[1:], counts):
        inside = (offset >= low) & (offset < high)
        expected = 20_000 * width * np.mean(np.exp(-np.asarray(nats)[inside]))
        assert abs(count - expected) < 5.0 * math.sqrt(expected)
        total += expected
    assert total == pytest.approx(20_000, rel=5e-3)


def test_importance_bound_by_hand():
    log_w = np.log(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    np.testing.assert_allclose(likelihood.importance_bound(log_w, 1), log_w)
    np.testing.assert_allclose(likelihood.importance_bound(log_w, 2), np.log([[2.0, 3.0]]))
    far = likelihood.importance_bound(np.array([-5000.0, -5000.0]), 2)
    np.testing.assert_allclose(far, [-5000.0])


def test_unsolved_ode_is_told():
    with pytest.raises(UserError, match="1e-09: set a larger one"):
        likelihood.require_solved(np.array([20, likelihood.MAX_STEPS]), 1e-9)
