"""A separate γ for each value (MuLAN), against enumeration of tiny discrete data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from conftest import slow
from optimizer_helpers import model_of, section
from vdm import optimizer
from vdm.diffusion import process
from vdm.diffusion.denoiser import X
from vdm.diffusion.model import Diffusion
from vdm.diffusion.sampler import DPM2M, Ancestral
from vdm.methods.multivariate import MuLAN, Multivariate, Posterior
from vdm.runtime.randomness import Rng
from weight_helpers import assert_weights_of_samples

LEVELS, LOW, HIGH = 3, -9.0, 7.0
SHAPE = (1, 2, 1)
COUNT = 60_000


class Enumerated:
    """A network that returns the optimal x̂ of two values with the joint probabilities p [V, V], under the
    schedule `gamma` of t and context. It computes t from its input `time`, which encodes the mean γ."""

    def __init__(self, p, gamma):
        self.p, self.gamma = p, gamma

    def init(self, *args):
        return {}

    def predict(self, params, z, time, context=None, keys=None):
        mean = time * (HIGH - LOW) + LOW
        if context is None:
            grid = jnp.linspace(0.0, 1.0, 4_001)
            gamma = self.gamma(jnp.interp(mean, self.gamma(grid, None).mean(axis=(1, 2, 3)), grid), None)
        else:  # a separate γ for each image
            grid = jnp.linspace(0.0, 1.0, 401)[:, None].repeat(len(z), axis=1)
            means = self.gamma(grid, context).mean(axis=(2, 3, 4))
            gamma = self.gamma(jax.vmap(jnp.interp, (0, 1, 1))(mean, means, grid), context)
        gamma = gamma.reshape(-1, 1, 2)
        x = process.scale(jnp.stack(jnp.indices((LEVELS, LEVELS)), -1).reshape(1, -1, 2), LEVELS)
        far = jnp.square(z.reshape(-1, 1, 2) - process.alpha(gamma) * x) / jax.nn.sigmoid(gamma)
        posterior = jax.nn.softmax(jnp.log(self.p.reshape(-1)) - 0.5 * far.sum(axis=-1))
        return (posterior @ x[0]).reshape(-1, *SHAPE)


def pair(context=0):
    """(model of two dependent values with the optimal denoiser and a differently bent schedule for each, its
    parameters, p). A context of this size also bends the schedule of each image."""
    p = np.random.default_rng(0).gamma(0.7, size=(LEVELS, LEVELS)) + 0.02
    p /= p.sum()
    schedule = Multivariate(shape=SHAPE, gamma_min=LOW, gamma_max=HIGH)
    params = {
        name: jnp.asarray(values, jnp.float32).reshape(SHAPE)
        for name, values in dict(a=[30.0, -10.0], b=[-20.0, 5.0], d=[-4.0, 6.0]).items()
    }
    if context:
        shift = 4.0 * np.random.default_rng(3).normal(size=(context, 3 * 2)).astype(np.float32)
        params["shift"] = {"kernel": jnp.asarray(shift)}
    params = {"params": params}
    fields = dict(
        schedule=schedule,
        net=Enumerated(p, lambda t, c: schedule.apply(params, t, c)),
        shape=SHAPE,
        vocab_size=LEVELS,
        classes=0,
        parameterisation=X(),
        sample_steps=200,
    )
    model = MuLAN(**fields, context=context) if context else Diffusion(**fields)
    return model, {"schedule": params, "net": {}}, p


def test_the_two_values_have_noise_of_their_own():
    model, params, _ = pair()
    gamma = model.gamma(params, jnp.float32(0.3))
    assert abs(float(gamma[0, 0, 0] - gamma[0, 1, 0])) > 2.0


@pytest.mark.parametrize("timesteps", [0, 2_000])
def test_elbo_of_the_optimal_denoiser_is_the_enumerated_likelihood(timesteps):
    """For each of the nine images. It holds for every path between the end points, because the bound is tight
    for the optimal denoiser."""
    model, params, p = pair()
    model = dataclasses.replace(model, timesteps=timesteps)

    @jax.jit
    def nats(image, number):
        image = jnp.broadcast_to(image, (COUNT, *SHAPE))
        draws = Rng(jax.random.key(number), jnp.arange(COUNT), COUNT)
        return sum(model.draw(params, draws, {"image": image}).terms.values())

    for number, image in enumerate(np.ndindex(LEVELS, LEVELS)):
        values = np.asarray(nats(np.reshape(image, SHAPE), number), np.float64)
        want = -np.log(p[image])
        # Stratified times have a smaller error than independent ones: the bar is too wide, not too narrow.
        # A chain is above its limit by about 16 nats · ½ / T.
        bar = 4 * values.std() / np.sqrt(COUNT) + (0.02 if timesteps else 0.002)
        assert abs(values.mean() - want) < bar


def test_the_likelihood_needs_the_noise_of_each_value():
    """Shows that the previous test can fail: with the γ of the first value for both, the result differs."""
    model, params, p = pair()
    wrong = jax.tree.map(lambda v: v[:, :1].repeat(2, axis=1), params["schedule"])
    draws = Rng(jax.random.key(0), jnp.arange(COUNT), COUNT)
    image = jnp.broadcast_to(jnp.array([0, 1]).reshape(SHAPE), (COUNT, *SHAPE))
    terms = jax.jit(lambda: model.draw({"schedule": wrong, "net": {}}, draws, {"image": image}).terms)()
    assert abs(float(sum(t.mean() for t in terms.values())) + np.log(p[0, 1])) > 0.05


def with_context():
    """`pair` with a context that bends the schedule of each image differently, and parameters of q(c|x)."""
    model, params, p = pair(context=3)
    params["context"] = model.posterior.init(jax.random.key(1), jnp.zeros((1, *SHAPE)))
    return model, params, p


def test_an_image_without_its_label_keeps_its_context(monkeypatch):
    """So that training and guidance evaluate the network under the same condition."""
    model, params, _ = with_context()
    model, seen = dataclasses.replace(model, classes=2, condition="label", drop_label=0.5), []
    monkeypatch.setattr(
        Diffusion, "eps_hat", lambda self, params, z, gamma, condition, keys: seen.append(condition) or z
    )
    batch = {"image": jnp.zeros((64, *SHAPE), jnp.int32), "label": jnp.ones(64, jnp.int32)}
    model.draw(params, Rng(jax.random.key(0), jnp.arange(64), 64), batch, train=True)
    label, context = np.split(np.asarray(seen[0]), [2], axis=1)
    assert {tuple(row) for row in label} == {(0.0, 0.0), (0.0, 1.0)}
    assert np.all(np.abs(context) > 0.0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_moves_the_context_little(name):
    """By about √64 times the learning rate for 64 values, rather than 64 times. With the 3,072 values of a
    photograph, a run would diverge."""
    model, shapes = model_of(
        model__name="mulan", model__schedule__name="multivariate", model__parameterisation="eps"
    )
    fields = section(name, learning_rate=1.0, weight_decay=0.0)
    updates = optimizer.build(fields, 10, model.roles(shapes))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    update, _ = updates.update(jax.tree.map(jnp.ones_like, params), updates.init(params), params)
    ones = jnp.ones((1, *model.shape))
    _, state = model.posterior.apply(update["context"], ones, capture_intermediates=True)
    moved = jnp.abs(state["intermediates"]["pixels"]["__call__"][0])
    assert ones.size == 64 and 0.1 < moved.min() and moved.max() < 20.0


def test_the_context_of_a_rare_image_is_not_far_from_all_others():
    """Neither its mean nor its variance; a context of 5 standard deviations made a run on photographs
    diverge."""
    posterior = Posterior(4)
    images = jax.random.normal(jax.random.key(0), (200, 8, 8, 1))
    params = posterior.init(jax.random.key(1), images)
    params = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    usual, rare = posterior.apply(params, images), posterior.apply(params, 100.0 * images)
    assert jnp.abs(rare.mean).max() < 3.0 * jnp.abs(usual.mean).max()
    assert rare.log_variance.max() <= 0.0 and usual.log_variance.max() <= 0.0
    assert usual.log_variance.min() < -5.0 and usual.log_variance.max() > -0.1


def test_a_context_costs_its_kl():
    """The denoiser is optimal for each c, so the bound is looser by exactly KL(q(c|x) ‖ p(c))."""
    model, params, p = with_context()
    count = 20_000
    image = jnp.array([2, 0]).reshape(SHAPE)
    draws = Rng(jax.random.key(0), jnp.arange(count), count)
    batch = {"image": jnp.broadcast_to(image, (count, *SHAPE))}
    terms = jax.jit(lambda: model.draw(params, draws, batch).terms)()
    total = np.asarray(sum(terms.values()), np.float64)
    mean, log_variance = model.q(params, process.scale(image[None], LEVELS))
    c = np.random.default_rng(0).normal(size=(400_000, 3)) * np.exp(0.5 * log_variance) + mean
    ratio = stats.norm.logpdf(c, mean, np.exp(0.5 * log_variance)) - stats.norm.logpdf(c)
    cost, bar = ratio.sum(axis=1).mean(), ratio.sum(axis=1).std() / np.sqrt(len(c))
    assert cost > 0.02
    assert float(terms["context"][0]) == pytest.approx(cost, abs=4 * bar)
    noise = total.std() / np.sqrt(count)
    assert total.mean() == pytest.approx(-np.log(p[2, 0]) + cost, abs=4 * noise + 4 * bar + 0.005)
    assert noise < 0.06
    two = model.gamma(params, jnp.full(2, 0.5), jnp.array([[1.0, 0, 0], [-1.0, 0, 0]]))
    assert np.abs(two[0] - two[1]).max() > 0.3


@pytest.mark.parametrize("sampler, made", [slow(Ancestral(), pair), (DPM2M(), with_context)])
def test_samples_have_the_enumerated_probabilities(sampler, made):
    model, params, p = made()
    count, steps = (20_000, 200) if made is pair else (4_000, 40)
    model = dataclasses.replace(model, sampler=sampler, sample_steps=steps)
    draws = Rng(jax.random.key(0), jnp.arange(count), count)
    drawn = np.asarray(jax.jit(lambda: model.sample(params, draws, {}))()).reshape(count, 2)
    share = np.histogramdd(drawn, bins=[np.arange(LEVELS + 1) - 0.5] * 2)[0] / count
    assert np.abs(share - p).max() < 4 * np.sqrt(p.max() / count) + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("made", [pair, with_context])
def test_weights_of_samples_are_those_of_paths(made):
    model, params, p = made()
    most = np.stack(np.unravel_index(np.argsort(-p, axis=None)[:3], p.shape), axis=1).reshape(-1, *SHAPE)
    assert_weights_of_samples(dataclasses.replace(model, timesteps=60), params, most, 8_000)
