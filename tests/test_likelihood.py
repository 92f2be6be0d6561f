"""The estimators on an external denoiser: in other units, on the host, in discrete time, with mistakes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from vdm import likelihood
from vdm.diffusion import dequantisation
from vdm.errors import UserError
from vdm.evaluation import audit
from vdm.methods import external_denoiser

pytestmark = pytest.mark.usefixtures("single")

SHAPE, LEVELS = (2, 1, 1), 4
LOG_P = exact.log_probabilities(SHAPE, LEVELS)
IMAGES, TRUTH = exact.images(LOG_P, 96)
FEW = dict(passes=20, batch_size=96, depths="4,16", ode__nodes=32, ode__samples=1, ode__images=32)


def gamma(t):
    return -9.0 + 17.0 * t


def test_batches_suit_any_number_of_devices(monkeypatch):
    monkeypatch.setattr(likelihood.devices, "count", lambda: 7)
    assert likelihood._config("elbo", 50).eval.batch_size == 126


class Host:
    """The optimal denoiser of IMAGES for data in [low, high], in float64 NumPy: x̂ is the mean of the levels
    under p(v) N(z; α x_v, σ²), and dx̂/dz is α/σ² times their variance."""

    def __init__(self, low=-1.0 + 1.0 / LEVELS, high=1.0 - 1.0 / LEVELS, factor=1.0):
        self.values, self.factor = np.linspace(low, high, LEVELS), factor

    def moments(self, z, gamma):
        gamma = gamma.astype(np.float64)[:, None, None, None]
        alpha, variance = np.sqrt(1.0 / (1.0 + np.exp(gamma))), 1.0 / (1.0 + np.exp(-gamma))
        log = LOG_P - (z[..., None] - alpha[..., None] * self.values) ** 2 / (2.0 * variance[..., None])
        p = np.exp(log - log.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        mean = p @ self.values
        return (
            self.factor * mean,
            self.factor * (p @ self.values**2 - mean**2) * alpha / variance,
            alpha,
            variance,
        )

    def x(self, z, gamma, labels):
        return self.moments(z, gamma)[0]

    def x_vjp(self, z, gamma, labels, cotangent):
        return self.moments(z, gamma)[1] * cotangent

    def eps(self, z, gamma, labels):
        mean, _, alpha, variance = self.moments(z, gamma)
        return (z - alpha * mean) / np.sqrt(variance)

    def v(self, z, gamma, labels):
        mean, _, alpha, variance = self.moments(z, gamma)
        return alpha * self.eps(z, gamma, labels) - np.sqrt(variance) * mean


@functools.cache
def ours():
    """The report of the same denoiser in JAX, in this project's units."""
    model = exact.model(LOG_P, -9.0, 8.0)
    eps_hat = lambda z, gamma, _: model.eps_hat({"schedule": {}, "net": {}}, z, gamma, None)
    return likelihood.judge(eps_hat, gamma, IMAGES, levels=LEVELS, estimators="depth,ode", **FEW)


def values(report, name):
    return report.row(name).estimate.values["bpd"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "reading, low, high, estimators",
    [
        ("x", -1.0, 1.0, "ode"),
        ("eps", 0.0, 1.0, ""),
        ("v", 0.0, 3.0, ""),
    ],
)
def test_units_and_readings_change_nothing(reading, low, high, estimators):
    """A denoiser on the host, for data in other units, gives each image the same numbers as in JAX."""
    wrapped = likelihood.on_host(getattr(Host(low, high), reading))
    a = (high - low) / 2 * LEVELS / (LEVELS - 1)
    report = likelihood.judge(
        wrapped,
        lambda t: gamma(t) + 2.0 * math.log(a),
        IMAGES,
        predicts=reading,
        levels=LEVELS,
        data_range=(low, high),
        timesteps=16,
        estimators=estimators,
        **FEW,
    )
    for name in ("ELBO, T → ∞", "ELBO, T = 16"):
        np.testing.assert_allclose(values(report, name), values(ours(), name), rtol=2e-3, atol=2e-3)
    assert not estimators or "the denoiser runs on the host and has no vjp" in line(
        report, "No row of the ODE"
    )


@pytest.mark.slow
def test_the_host_s_derivative_gives_the_ode():
    host = Host()
    wrapped = likelihood.on_host(host.x, host.x_vjp)
    report = likelihood.judge(wrapped, gamma, IMAGES, predicts="x", levels=LEVELS, estimators="ode", **FEW)
    for name in ("ODE, uniform", "ODE, normal dequantisation, K", "ODE, normal dequantisation, exact"):
        np.testing.assert_allclose(values(report, name), values(ours(), name), rtol=1e-3, atol=2e-3)
    exact_rows = values(report, "ODE, normal dequantisation, exact")
    assert np.abs(exact_rows - TRUTH[:32]).mean() < 0.02
    assert ": yes;" in line(report, "The gradient of ε̂")


def test_the_decoder_has_all_levels_that_matter():
    """With 256 levels and γ(0) = −9.2, some 8 levels on either side of z_0 are likely. E[−log p(x|z_0)] of a
    value in the middle, by quadrature over ε_0, is the reconstruction term."""
    images = np.full((4, 4, 4, 1), 128, np.uint8)
    right = lambda z, gamma, _: jnp.full_like(z, 1.0 / 256.0)
    line = lambda t: -9.2 + 17.0 * t
    report = likelihood.judge(right, line, images, predicts="x", estimators="", passes=20)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    levels = (2.0 * np.arange(256) + 1.0) / 256.0 - 1.0
    apart = levels[128] + math.exp(-4.6) * nodes[:, None] - levels
    logits = -0.5 * math.exp(9.2) * apart**2
    log_p = logits[:, 128] - np.log(np.exp(logits).sum(axis=1))
    wanted = -(weights @ log_p) / weights.sum() / math.log(2.0)
    found = report.row("ELBO").estimate.values["reconstruction"]
    assert found.mean() == pytest.approx(wanted, abs=0.03)


def test_a_wrong_derivative_is_caught():
    host, batch = Host(), {"image": IMAGES, "label": np.zeros(96, np.int32)}
    wrong = likelihood.on_host(host.x, lambda *args: 1.2 * host.x_vjp(*args))
    lines = [
        audit.derivative_line(model_of(denoiser), {"schedule": {}}, batch, LEVELS)
        for denoiser in (likelihood.on_host(host.x, host.x_vjp), wrong)
    ]
    assert ": yes;" in lines[0] and ": NO;" in lines[1]


def model_of(denoise):
    schedule = external_denoiser.Curve.of(SHAPE, gamma)
    return external_denoiser.External(schedule, None, SHAPE, LEVELS, 0, denoise=denoise, predicts="x")


@pytest.mark.slow
def test_labels_reach_the_denoiser():
    """Each label has its own distribution of images, whose likelihood the report must find."""
    other = exact.log_probabilities(SHAPE, LEVELS, seed=5)
    images, truth = exact.images(other, 96, seed=6)
    models = [exact.model(log_p, -9.0, 8.0) for log_p in (LOG_P, other)]

    def eps_hat(z, gamma, labels):
        both = [model.eps_hat({"schedule": {}, "net": {}}, z, gamma, None) for model in models]
        return jnp.where(labels[:, None, None, None] == 1, both[1], both[0])

    report = likelihood.judge(
        eps_hat,
        gamma,
        np.concatenate([IMAGES, images]),
        levels=LEVELS,
        labels=np.repeat([0, 1], 96),
        estimators="chain,ode",
        **FEW | {"passes": 60},
        chain__timesteps=8,
        chain__samples=2,
    )
    for row, most in (("ELBO, T → ∞", 0.2), ("ODE, normal dequantisation, K", 0.02)):
        each = values(report, row) - np.concatenate([TRUTH, truth])
        assert abs(each.mean()) < 3.5 * each.std(ddof=1) / math.sqrt(len(each)) + 1e-3 < most, row
    assert "yes" in line(report, "The mean over paths is the ELBO")
    assert report.rows[0].estimate.given_label


def test_a_denoiser_in_pytorch_is_the_same_weights_in_jax():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    first, second = (random.normal(size=size).astype(np.float32) / 3.0 for size in ((3, 16), (16, 2)))

    def in_jax(z, gamma, labels):
        told = jnp.concatenate([z.reshape(len(z), -1), gamma[:, None] / 10.0], axis=1)
        return z + 0.1 * (jnp.tanh(told @ first) @ second).reshape(z.shape)

    def in_torch(z, gamma):
        told = torch.cat([z.flatten(1), gamma[:, None] / 10.0], dim=1)
        return z + 0.1 * (torch.tanh(told @ torch.tensor(first)) @ torch.tensor(second)).reshape(z.shape)

    def vjp(z, gamma, labels, cotangent):
        z = torch.tensor(z, requires_grad=True)
        return torch.autograd.grad(in_torch(z, torch.tensor(gamma)), z, torch.tensor(cotangent))[0].numpy()

    wrapped = likelihood.on_host(
        lambda z, gamma, _: in_torch(torch.tensor(z), torch.tensor(gamma)).numpy(), vjp
    )
    one, other = (
        likelihood.judge(denoiser, gamma, IMAGES, levels=LEVELS, estimators="ode", **FEW)
        for denoiser in (wrapped, in_jax)
    )
    for row, same in zip(one.rows, other.rows, strict=True):
        np.testing.assert_allclose(
            row.estimate.values["bpd"], same.estimate.values["bpd"], rtol=1e-3, err_msg=row.name
        )


BETAS = np.linspace(0.03, 0.35, 24)


def test_a_table_is_the_chain_of_ddpm():
    """The diffusion term is that of Ho et al. 2020, eq. 5 to 7, by float64 quadrature over the noise in
    DDPM's units. z_0 is at the chain's first time."""
    table = likelihood.table_of_betas(BETAS)
    alphas = np.cumprod(1.0 - BETAS)
    np.testing.assert_allclose(table.values, np.log((1.0 - alphas) / alphas), rtol=1e-6)
    np.testing.assert_allclose(table.index(jnp.asarray(table.values)), np.arange(24), atol=1e-3)
    assert table.timesteps == 23
    # A thousand steps of DDPM, converted to our units and back, as a network receives γ.
    ddpm = likelihood.table_of_betas(np.linspace(1e-4, 0.02, 1_000))
    scaling = external_denoiser.Scaling.of_range(-1.0, 1.0, 256)
    steps = np.asarray(ddpm(jnp.arange(1_000) / 999.0))
    _, told = scaling.theirs(jnp.zeros(1_000), scaling.ours(jnp.asarray(steps)))
    assert np.array_equal(np.floor(ddpm.index(told)), np.arange(1_000))
    between = 0.5 * (ddpm.values[499] + ddpm.values[500])
    assert float(ddpm.index(jnp.float32(between))) == pytest.approx(499.5, abs=0.01)

    host, x = Host(-1.0, 1.0), np.linspace(-1.0, 1.0, LEVELS)[IMAGES.astype(int)]
    wrapped = likelihood.on_host(host.eps)
    report = likelihood.judge(
        wrapped, table, IMAGES, levels=LEVELS, data_range=(-1.0, 1.0), estimators="", **FEW | {"passes": 500}
    )
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    nats = 0.0
    for t in range(1, 24):
        before, now, beta = alphas[t - 1], alphas[t], BETAS[t]
        for node, weight in zip(nodes, weights / weights.sum()):
            z = np.sqrt(now) * x + np.sqrt(1.0 - now) * node
            level = np.full(len(z), np.log((1.0 - now) / now))
            x_hat = host.moments(z, level)[0]
            variance = (1.0 - before) / (1.0 - now) * beta
            shift = np.sqrt(before) * beta / (1.0 - now) * (x - x_hat)
            nats += weight * (shift**2).sum(axis=(1, 2, 3)) / (2.0 * variance)
    want = nats / (2 * math.log(2.0))
    row = report.row("ELBO, T = 23")
    each = row.estimate.values["diffusion"] - want
    assert abs(each.mean()) < 3.5 * each.std(ddof=1) / math.sqrt(96) < 0.03 * want.mean()


@dataclasses.dataclass
class Mistake:
    """A schedule whose slope is 10% too steep, as after a mistake in a hand-written γ'."""

    def __call__(self, t):
        @jax.custom_jvp
        def wrong(t):
            return gamma(t)

        wrong.defjvp(lambda primals, tangents: (wrong(*primals), 18.7 * tangents[0]))
        return wrong(t)


def line(report, start):
    (found,) = [line for line in report.checks if line.startswith(start)]
    return found


def test_a_right_model_passes_its_audit():
    for start in ("The slope of γ", "x̂ has the scale", "The ELBO falls with T", "The mean of Hutchinson"):
        assert ": yes" in line(ours(), start), start
    claim = ours().claim("the truth", TRUTH)
    resolution = float(claim.split(" to ")[1].split()[0])
    each = TRUTH - values(ours(), "ELBO")
    assert ": yes;" in claim
    assert resolution == pytest.approx(3.0 * each.std(ddof=1) / math.sqrt(96), abs=1e-4)
    assert ": NO" in ours().claim("another", TRUTH + 1.5 * resolution)


def test_a_wrong_slope_is_caught():
    report = likelihood.judge(
        likelihood.on_host(Host().eps), Mistake(), IMAGES, levels=LEVELS, estimators="", **FEW
    )
    assert "NO; γ rises by 17.000, and the slope integrates to 18.700" in line(report, "The slope of γ")


def test_an_x_hat_of_half_the_size_is_caught():
    report = likelihood.judge(
        likelihood.on_host(Host(factor=0.5).x),
        gamma,
        IMAGES,
        predicts="x",
        levels=LEVELS,
        estimators="",
        **FEW,
    )
    found = line(report, "x̂ has the scale")
    assert "NO;" in found and float(found.split("are ")[1].split(" ±")[0]) == pytest.approx(2.0, abs=0.1)


def test_images_that_are_there_twice_are_caught():
    apart = np.unique(np.random.default_rng(0).integers(0, LEVELS, (40, 3, 2, 1)).astype(np.uint8), axis=0)
    assert "The images are distinct: yes; no image is a duplicate." == audit.twice_line(apart, None)
    assert "NO; 3 of the" in audit.twice_line(np.concatenate([apart, apart[:3]]), None)
    assert (
        "NO; no image is a duplicate; images that are also training images: 2 (2 searched)"
        in audit.twice_line(apart, apart[5:7])
    )
    assert ": NO;" in line(ours(), "The images"), "of two values of four levels each"


def test_claims_are_told_from_the_likelihood_and_their_mistake_is_named():
    report, shape_bits = ours(), math.log2(2.0 / LEVELS)
    row = "ODE, normal dequantisation, K"
    truth = values(report, row)
    # The entropy of ε truncated at the border of the cell, by a fine sum over the cell.
    sigma, alpha = (1.0 / math.sqrt(1.0 + math.exp(g)) for g in (9.0, -9.0))
    border = alpha / LEVELS / sigma
    eps = (np.arange(200_000) + 0.5) / 100_000 * border - border
    q = np.exp(-0.5 * eps**2)
    q /= q.sum() * (border / 100_000) * sigma
    entropy = -(q * np.log2(q)).sum() * (border / 100_000) * sigma
    assert report.entropy == pytest.approx(entropy, abs=1e-5)
    assert dequantisation.normal_entropy(-2.0, 4) < dequantisation.normal_entropy(-2.0, 2), "it is cut off"
    for wrong, text in (
        (truth + entropy, "entropy of the dequantisation's noise was forgotten"),
        (truth + entropy - shape_bits, "noise, in levels, was forgotten"),
        (truth * math.log(2.0), "nats were taken for bits"),
        (truth + shape_bits, "a density of x in [−1, 1] was taken"),
    ):
        found = report.claim("theirs", wrong, row)
        assert ": NO;" in found and text in found, found
    # For a denoiser with data a x + b, the entropy of the noise is that of a density of its own z.
    low, high = 0.0, 1.0
    theirs = likelihood.judge(
        likelihood.on_host(Host(low, high).eps),
        lambda t: gamma(t) + 2.0 * math.log(0.5 * (high - low) * LEVELS / (LEVELS - 1)),
        IMAGES,
        levels=LEVELS,
        data_range=(low, high),
        estimators="",
        **FEW,
    )
    a2 = (0.5 * (high - low) * LEVELS / (LEVELS - 1)) ** 2
    sigma_theirs = math.sqrt(a2 * math.exp(-9.0) / (1.0 + a2 * math.exp(-9.0)))
    assert theirs.entropy == pytest.approx(entropy + math.log2(sigma_theirs / sigma), abs=1e-4)
    elbo = report.rows[0].estimate.values
    forgotten = report.claim("theirs", elbo["bpd"] - elbo["diffusion"])
    assert "the term 'diffusion' was forgotten" in forgotten
    assert ": NO;" in report.claim("theirs", truth - 0.3, row) and "looks" not in report.claim(
        "t", truth - 0.3
    )
    with pytest.raises(UserError, match=r"shape \(3,\); accepted: \(96,\)"):
        report.claim("theirs", truth[:3])
    with pytest.raises(UserError, match="no row 'IWAE'; accepted: .*'ELBO, T → ∞'"):
        report.claim("theirs", truth, "IWAE")


def test_a_coarse_scale_that_is_counted_a_quarter_is_caught():
    """A cascade of exact models: two values of the mean image, then eight values independent of them."""
    wide = exact.log_probabilities((2, 2, 2), LEVELS, seed=3)
    images, fine_truth = exact.images(wide, 96, seed=4)
    model = exact.model(wide, -9.0, 8.0)
    eps_hat = lambda z, gamma, _: model.eps_hat({"schedule": {}, "net": {}}, z, gamma, None)
    few = FEW | {"passes": 30}
    fine = likelihood.judge(eps_hat, gamma, images, levels=LEVELS, estimators="", **few)
    coarse = likelihood.judge(
        likelihood.on_host(Host().eps), gamma, IMAGES, levels=LEVELS, estimators="", stage=1, **few
    )
    with pytest.raises(UserError, match=r"numbered \[0, 0\], and those of the same number share their noise"):
        likelihood.cascade({"coarse": dataclasses.replace(coarse, stage=0), "fine": fine})
    whole = likelihood.cascade({"coarse": coarse, "fine": fine})
    truth = fine_truth + TRUTH * 2 / 8
    assert ": yes;" in whole.claim("the truth", truth)
    terms = whole.rows[0].estimate.values
    found = whole.claim("theirs", terms["fine"] + terms["coarse"] / 4)
    assert ": NO;" in found and "the term 'coarse' was weighted by a quarter" in found
    with pytest.raises(UserError, match=r"stages have \[40, 96\] images"):
        one = dataclasses.replace(fine.rows[0].estimate, values={"bpd": np.zeros(40)})
        likelihood.cascade(
            {
                "a": dataclasses.replace(fine, rows=[dataclasses.replace(fine.rows[0], estimate=one)]),
                "b": coarse,
            }
        )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"images": IMAGES.astype(np.float32)}, "the images are float32 .*; accepted: uint8"),
        ({"levels": 3}, "levels is 3, and an image has 3; accepted: 2 to 256"),
        ({"predicts": "score"}, "predicts is 'score'; accepted: 'eps', 'x', 'v'"),
        ({"labels": np.zeros(3)}, r"labels have shape \(3,\); accepted: \(96,\)"),
        ({"estimators": "ood"}, "'ood'.*Did you mean 'ode'"),
        ({"pases": 3}, "pases is not a field of config.eval; accepted: .*passes"),
    ],
)
def test_what_is_not_accepted_is_one_line(changes, text):
    arguments = {"images": IMAGES, "levels": LEVELS} | changes
    with pytest.raises(UserError, match=text):
        likelihood.judge(lambda z, gamma, labels: z, gamma, **arguments)


@pytest.mark.parametrize("alphas", [[0.5], [0.9, 0.95], [1.0, 0.5], [0.9, 0.0]])
def test_a_table_must_fall(alphas):
    with pytest.raises(UserError, match="decreasing list of numbers between 0 and 1"):
        likelihood.table_of_alphas(np.array(alphas))
