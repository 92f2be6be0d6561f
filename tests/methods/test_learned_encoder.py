"""The learned encoder against brute-force integration on one value of three levels, and against the VDM."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config, perturbed, slow
from diffusion_helpers import SPEC, brute_force, rng, small
import exact
from vdm import run as run_lib
from vdm.diffusion import process
from vdm.diffusion.denoiser import X as PredictX
from vdm.diffusion.model import Diffusion
from vdm.diffusion.sampler import DDIM, DPM2M, Ancestral
from vdm.errors import UserError
from vdm.evaluation import ode_solver
from vdm.methods import learned_encoder
from vdm.methods.learned_encoder import DiffEnc, Encoder, Learned, Scaled
from vdm.nets import conv
from vdm.runtime.randomness import Rng
from weight_helpers import assert_weights_of_samples

P = np.array([0.6, 0.1, 0.3])
X = np.array([-2 / 3, 0.0, 2 / 3])
LOW, HIGH = -6.0, 6.0
COUNT = 30_000
LEARNED = {"model.name": "diffenc", "model.parameterisation": "v"} | {
    f"model.encoder.net.{name}": value
    for name, value in {"name": "mlp", "depth": 1, "width": 16, "fourier": 0, "dropout": 0.0}.items()
}


@dataclasses.dataclass(frozen=True)
class Bent(Encoder):
    """A different x_t for each level, nonlinear in γ; `size` scales its distance from x."""

    size: float = 1.0

    def x_t(self, params, x, gamma, gamma_0):
        fresh = process.over_pixels(jax.nn.sigmoid(gamma) - jax.nn.sigmoid(gamma_0))
        return x + self.size * fresh * (jnp.cos(3.0 * x + process.over_pixels(gamma) / 4.0) - x)


def bent(x, gamma, size):
    """The same x_t and its analytic slope, in float64."""
    sigma2, at = 1 / (1 + np.exp(-gamma)), 3.0 * x + gamma / 4.0
    fresh = sigma2 - 1 / (1 + np.exp(-LOW))
    slope = sigma2 * (1 - sigma2) * (np.cos(at) - x) - fresh * np.sin(at) / 4.0
    return x + size * fresh * (np.cos(at) - x), size * slope


class Optimal:
    """A network that returns E[y|z_t] by enumeration, with y = x_t − dx_t/dγ."""

    def __init__(self, made):
        self.made = made

    def init(self, *args):
        return {}

    def predict(self, params, z, time, *args):
        gamma = time * (HIGH - LOW) + LOW
        x = jnp.asarray(X, jnp.float32).reshape(3, 1, 1, 1)

        def of(gamma):
            each = jnp.full(3, gamma)
            return learned_encoder.with_slope_in_reverse(
                lambda g: self.made.x_t({}, x, g, jnp.float32(LOW)), each
            )

        x_t, slope = (value.reshape(-1, 3) for value in jax.vmap(of)(gamma))
        gamma = gamma[:, None]
        far = jnp.square(z.reshape(-1, 1) - process.alpha(gamma) * x_t) / jax.nn.sigmoid(gamma)
        posterior = jax.nn.softmax(jnp.log(P) - 0.5 * far)
        return (posterior * (x_t - slope)).sum(axis=1).reshape(z.shape)


def optimal(made, **fields):
    """A DiffEnc of one value with this encoder and its optimal denoiser."""
    model = exact.model(np.log(P).reshape(1, 1, 1, 3), LOW, HIGH)
    return encoded(model, made, net=Optimal(made), parameterisation=PredictX(), **fields)


def encoded(model, encoder, **fields):
    """A DiffEnc with this encoder and the fields of a Diffusion."""
    parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(Diffusion)}
    return DiffEnc(**parts | fields, encoder=encoder)


def drawn(model, level, seed=0):
    """{term: (mean, standard error)} for one level."""
    batch = {"image": jnp.full((COUNT, 1, 1, 1), level)}
    terms = jax.jit(lambda: model.draw({"schedule": {}, "net": {}}, rng(seed, COUNT), batch).terms)()
    values = {name: np.asarray(nats, np.float64) for name, nats in terms.items()}
    return {name: (v.mean(), v.std() / math.sqrt(len(v))) for name, v in values.items()}


def integrated(size):
    """The diffusion and prior terms of each level, by sums over a grid of γ and z in float64, independent of
    vdm. The reconstruction term is that of a VDM."""
    gammas, z = np.linspace(LOW, HIGH, 601), np.linspace(-8, 8, 1201)
    squares = []
    for gamma in gammas:
        x_t, slope = bent(X, gamma, size)
        alpha, sigma = math.sqrt(1 / (1 + math.exp(gamma))), math.sqrt(1 / (1 + math.exp(-gamma)))
        y = x_t - slope
        q = np.exp(-0.5 * ((z[:, None] - alpha * x_t) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        y_hat = (q * P) @ y / np.maximum(q @ P, 1e-300)
        squares.append(math.exp(-gamma) * (q * (y - y_hat[:, None]) ** 2).sum(axis=0) * (z[1] - z[0]))
    diffusion = 0.5 * np.trapezoid(np.array(squares), gammas, axis=0)
    x_1, sigma2 = bent(X, HIGH, size)[0], 1 / (1 + math.exp(-HIGH))
    prior = 0.5 * ((1 - sigma2) * x_1**2 + sigma2 - 1 - math.log(sigma2))
    return diffusion, prior


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_bound_is_the_integral_and_above_the_entropy_and_tight_where_nothing_moves(size, single):
    diffusion, prior = integrated(size)
    model, bound, error = optimal(Bent(size)), 0.0, 0.0
    for level in range(3):
        found = drawn(model, level)
        for name, truth in (("diffusion", diffusion[level]), ("prior", prior[level])):
            assert abs(found[name][0] - truth) < 4.0 * found[name][1] + 2e-4, name
        bound += P[level] * (diffusion[level] + prior[level] + found["reconstruction"][0])
        error += P[level] * found["reconstruction"][1]
    entropy = -P @ np.log(P)
    if size == 0.0:
        assert abs(bound - entropy) < 2e-3 + 4.0 * error
    else:
        assert bound > entropy + 4.0 * error + 2e-3


@pytest.mark.slow
def test_chain_of_many_steps_is_continuous_time(single):
    model = optimal(Bent())
    for level in range(3):
        many, limit = (drawn(dataclasses.replace(model, timesteps=t), level) for t in (3_000, 0))
        assert (
            abs(many["diffusion"][0] - limit["diffusion"][0])
            < 4.0 * math.hypot(many["diffusion"][1], limit["diffusion"][1]) + 0.01
        )


@pytest.mark.slow
@pytest.mark.parametrize("made", [Bent(), Scaled()])
def test_weight_of_a_path_has_the_mean_of_the_enumerated_likelihood(made, single):
    """With a wrong denoiser: E[w] = p(x) for every encoder, and E[log w] is the ELBO of the same chain."""
    log_q = np.log(np.array([0.7, 0.1, 0.2]))
    model = exact.model(log_q.reshape(1, 1, 1, 3), -2.0, 4.0, timesteps=3)
    truth = brute_force(log_q, np.array([-2.0, 0.0, 2.0, 4.0]))
    # `Moved` drops the encoder's `read`, so that p does not depend on the encoder.
    plain = encoded(model, Moved(made))
    batch = {"image": jnp.tile(jnp.arange(3), 40_000).reshape(-1, 1, 1, 1)}  # each level gets all times

    @jax.jit
    def both(number):
        draws = Rng(jax.random.key(number), jnp.arange(120_000), 120_000)
        params = {"schedule": {}, "net": {}}
        terms = plain.draw(params, draws, batch).terms
        return plain.log_weight(params, draws, batch), sum(terms.values())

    log_w, nats = (np.asarray(value, np.float64).reshape(-1, 3).T for value in both(0))
    w = np.exp(log_w - truth[:, None])
    assert np.all(np.abs(w.mean(axis=1) - 1.0) < 4.0 * w.std(axis=1) / 200.0)
    error = np.hypot(log_w.std(axis=1), nats.std(axis=1)) / 200.0
    assert np.all(np.abs(log_w.mean(axis=1) + nats.mean(axis=1)) < 4.0 * error)
    assert np.all(log_w.mean(axis=1) < truth)

    assert_weights_of_samples(plain, {"schedule": {}, "net": {}}, np.arange(3).reshape(3, 1, 1, 1), 60_000)


@dataclasses.dataclass(frozen=True)
class Moved(Encoder):
    """The x_t of another encoder, under a denoiser that predicts the noise of y directly."""

    other: Encoder = Bent()

    def x_t(self, params, x, gamma, gamma_0):
        return self.other.x_t(params, x, gamma, gamma_0)


class OptimalScaled:
    """A network that returns E[x_t|z_t] by enumeration, as it should under Scaled."""

    def init(self, *args):
        return {}

    def predict(self, params, z, time, *args):
        gamma = (time * (HIGH - LOW) + LOW)[:, None]
        x_t = jax.nn.sigmoid(-gamma) / jax.nn.sigmoid(-LOW) * X
        far = jnp.square(z.reshape(-1, 1) - process.alpha(gamma) * x_t) / jax.nn.sigmoid(gamma)
        return (jax.nn.softmax(jnp.log(P) - 0.5 * far) * x_t).sum(axis=1).reshape(z.shape)


def scaled(**fields):
    return dataclasses.replace(optimal(Scaled(), **fields), net=OptimalScaled())


@pytest.mark.slow
def test_flow_of_the_scaled_encoder_has_the_probability_of_each_level(single):
    """With the optimal denoiser and a flow that starts at q(z_0), exp of the log weights has the mean P."""
    batch = {"image": jnp.repeat(jnp.arange(3), 400).reshape(-1, 1, 1, 1)}

    @jax.jit
    def log_weights():
        draws = Rng(jax.random.key(0), jnp.arange(1_200), 1_200)
        flow = scaled().flow({"schedule": {}, "net": {}}, draws, batch, "normal")
        keys = draws.keys(1)
        found = ode_solver.flow_log_density(
            flow.eps_hat, flow.z, flow.given, flow.ends, keys, 256, 1e-6, True
        )
        return found["log_density"] + flow.nats

    w = np.exp(np.asarray(log_weights(), np.float64)).reshape(3, -1)
    error = w.std(axis=1) / 20.0
    assert np.all(np.abs(w.mean(axis=1) - P) < 4.0 * error + 0.004 * P), w.mean(axis=1)


@pytest.mark.parametrize("sampler", [slow(Ancestral()), DDIM(), DPM2M()])
def test_samples_of_the_scaled_encoder_have_the_frequency_of_each_level(sampler, single):
    frequencies(scaled(sampler=sampler, sample_steps=400))


def test_samples_of_a_learned_encoder_have_the_frequency_of_each_level(single):
    frequencies(optimal(Bent(0.4), sample_steps=400))


def frequencies(model):
    count = 10_000
    batch = {"image": jnp.zeros((count, 1, 1, 1), jnp.uint8)}
    found = jax.jit(lambda: model.sample({"schedule": {}, "net": {}}, rng(3, count), batch))()
    share = np.bincount(np.asarray(found).ravel(), minlength=3) / count
    assert np.all(np.abs(share - P) < 4.0 * np.sqrt(P * (1 - P) / count) + 0.004), share


@pytest.mark.slow
@pytest.mark.parametrize("timesteps", [0, 3])
def test_where_x_does_not_move_it_is_a_vdm_bit_for_bit(timesteps, single):
    """Without jit, because XLA rounds differently when it fuses other operations."""
    fields = {"model.parameterisation": "v", "model.timesteps": timesteps, "model.sample_steps": 2}
    plain, plain_params, batch = small(**fields)
    learned, params, _ = small(**(fields | LEARNED))
    assert type(plain) is Diffusion
    assert isinstance(learned.encoder, Learned)
    params |= {"net": perturbed(plain_params["net"]), "schedule": plain_params["schedule"]}
    plain_params = {name: params[name] for name in plain_params}

    def numbers(model, params):
        draws = rng()
        draw = model.draw(params, draws, batch)
        weight = () if not timesteps else (model.log_weight(params, draws, batch),)
        of_noise = draw.denoising._replace(denoiser=None, rng=None)
        return draw.terms, of_noise, weight, model.sample(params, draws, batch)

    moved = params | {"x_t": perturbed(params["x_t"])}
    with jax.disable_jit():
        both = [numbers(*one) for one in ((plain, plain_params), (learned, params))]
        third = numbers(learned, moved)
    for one, *others in zip(*map(jax.tree.leaves, both)):
        for other in others:
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(third[0]["diffusion"], both[0][0]["diffusion"])
    np.testing.assert_array_equal(third[0]["reconstruction"], both[0][0]["reconstruction"])


def test_x_at_the_start_is_x_and_the_slope_is_that_of_differences(single):
    made, params, batch = small(**LEARNED)
    params = perturbed(params["x_t"])
    x, gamma_0 = process.scale(batch["image"], 17), jnp.float32(-7.0)
    at = lambda gamma: made.encoder.x_t(params, x, gamma, gamma_0)
    np.testing.assert_array_equal(at(jnp.full(64, -7.0)), x)
    gamma = jnp.linspace(-5.0, 5.0, 64)
    value, slope = jax.jit(lambda g: learned_encoder.with_slope_in_reverse(at, g))(gamma)
    np.testing.assert_allclose(value, jax.jit(at)(gamma), atol=1e-6)
    np.testing.assert_allclose(slope, (at(gamma + 0.02) - at(gamma - 0.02)) / 0.04, atol=2e-3)
    assert np.abs(slope).max() > 0.1


def test_convolutions_have_a_slope_too():
    """Their gradient is custom and has no forward mode. The slope of conv(γ² x) is 2 γ conv(x)."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(4, 5, 5, 2)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, 2, 3)), jnp.float32)
    gamma = jnp.array([-1.0, 0.5, 2.0, 3.0])
    at = lambda kernel, g: conv.convolve_on_cpu(process.over_pixels(g**2) * x, kernel)
    slope = lambda kernel: learned_encoder.with_slope_in_reverse(lambda g: at(kernel, g), gamma)[1]
    np.testing.assert_allclose(
        slope(kernel), 2 * gamma[:, None, None, None] * conv.convolve_3x3(x, kernel), atol=1e-4
    )
    found = jax.grad(lambda kernel: jnp.square(slope(kernel)).sum())(kernel)
    plain = lambda k: jnp.square(2 * gamma[:, None, None, None] * conv.convolve_3x3(x, k)).sum()
    np.testing.assert_allclose(found, jax.grad(plain)(kernel), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "fields, said",
    [
        (
            {"model.parameterisation": "categorical"},
            "parameterisation.name is 'categorical'; accepted: 'eps', 'x', 'v'",
        ),
        ({"model.sampler": "dpm2m"}, "sampler.name is 'dpm2m'; accepted: 'ancestral'"),
        ({"model.schedule.name": "multivariate"}, "a separate γ, which needs config.model.name"),
        ({"model.encoder.net.width": 7}, "config.model.encoder.net.width is 7"),
        ({"model.encoder.name": "learnt", "model.encoder.net.name": None}, "Did you mean 'learned'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, said):
    given = {name: value for name, value in (LEARNED | fields).items() if value is not None}
    if fields.get("model.encoder.name"):
        given = {name: value for name, value in given.items() if ".encoder.net." not in name}
    with pytest.raises(UserError, match=said):
        run_lib.build_model(make_config(given), SPEC)
