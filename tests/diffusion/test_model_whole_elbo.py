"""The ELBO of a network with random weights against float64 NumPy that shares nothing with `vdm/`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config
from vdm import run as run_lib
from vdm.data.dataset import Spec
from vdm.runtime import randomness

SHAPE, LEVELS, WIDTH = (2, 3, 1), 7, 16
FIELDS = {
    "model.net.name": "mlp",
    "model.net.depth": 2,
    "model.net.width": WIDTH,
    "model.net.dropout": 0.0,
    "model.net.fourier": 2,
    "model.schedule.name": "learned_linear",
    "model.schedule.gamma_min": -6.0,
    "model.schedule.gamma_max": 4.0,
    "model.parameterisation": "eps",
}


def dense(p, h):
    return h @ p["kernel"] + p["bias"]


def silu(h):
    return h / (1.0 + np.exp(-h))


def norm(p, h):
    apart = h - h.mean(axis=-1, keepdims=True)
    return apart / np.sqrt((apart**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def network(p, z, time):
    """The MLP, written out."""
    angles = 1000.0 * time[:, None] * np.exp(-math.log(10000.0) * np.arange(WIDTH // 2) / (WIDTH // 2 - 1))
    told = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    told = silu(dense(p["Embedding_0"]["Dense_1"], silu(dense(p["Embedding_0"]["Dense_0"], told))))
    turns = [2.0 * math.pi * f * z for f in (LEVELS / 2.0, LEVELS / 4.0)]
    features = np.concatenate([z, *map(np.sin, turns), *map(np.cos, turns)], axis=-1)
    h = dense(p["in"], features.reshape(len(z), -1))
    for layer in range(2):
        own = jax.tree.map(lambda value: value[layer], p["layers"])
        out = silu(norm(own["LayerNorm_0"], h) + dense(own["embed"], told))
        h = h + dense(own["second"], silu(dense(own["first"], out)))
    return dense(p["out"], norm(p["LayerNorm_0"], h)).reshape(z.shape)


def terms(params, images, t, eps, eps_0, timesteps):
    """VDM eq. 11: reconstruction, prior and diffusion, nats."""
    net = params["net"]["params"]
    start, width = (float(params["schedule"]["params"][name]) for name in ("start", "width"))
    gamma = lambda t: start + abs(width) * t
    alpha = lambda g: np.sqrt(1.0 / (1.0 + np.exp(g)))
    sigma = lambda g: np.sqrt(1.0 / (1.0 + np.exp(-g)))
    levels = (2.0 * np.arange(LEVELS) + 1.0) / LEVELS - 1.0
    x = levels[images]

    z_0 = alpha(gamma(0.0)) * x + sigma(gamma(0.0)) * eps_0
    logits = -((z_0[..., None] - alpha(gamma(0.0)) * levels) ** 2) / (2.0 * sigma(gamma(0.0)) ** 2)
    logits -= logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    reconstruction = -np.take_along_axis(log_p, images[..., None], axis=-1).sum(axis=(1, 2, 3, 4))

    mean, variance = alpha(gamma(1.0)) * x, sigma(gamma(1.0)) ** 2
    prior = 0.5 * (mean**2 + variance - 1.0 - np.log(variance)).sum(axis=(1, 2, 3))

    weight = np.full(len(t), abs(width))
    if timesteps:
        step = np.minimum(np.floor(t * timesteps) + 1.0, timesteps)
        before, t = (step - 1.0) / timesteps, step / timesteps
        # T (SNR(s) − SNR(t)) / SNR(t)
        weight = timesteps * (np.exp(-gamma(before)) / np.exp(-gamma(t)) - 1.0)
    g = gamma(t)[:, None, None, None]
    z = alpha(g) * x + sigma(g) * eps
    told = (gamma(t) + 6.0) / 10.0
    missed = eps - (z + network(net, z, told))
    return {
        "reconstruction": reconstruction,
        "prior": prior,
        "diffusion": 0.5 * weight * (missed**2).sum(axis=(1, 2, 3)),
    }


@pytest.mark.parametrize("timesteps", [0, 13])
def test_each_term_is_that_of_the_equations(timesteps):
    made = run_lib.build_model(make_config(FIELDS | {"model.timesteps": timesteps}), Spec(SHAPE, LEVELS, 0))
    random = np.random.default_rng(0)
    images = random.integers(0, LEVELS, (32, *SHAPE)).astype(np.uint8)
    batch = {"image": images, "label": np.zeros(32, np.int32), "augmented": np.zeros(32, np.float32)}
    params = jax.jit(made.init)(jax.random.key(0), batch)
    params = jax.tree.map(lambda v: v + 0.1 * random.normal(size=v.shape).astype(np.float32), params)
    rng = randomness.Rng(jax.random.key(1), jnp.arange(32), 32)

    @jax.jit
    def drawn(params):
        draw = made.draw(params, rng, batch)
        return draw.terms, draw.denoising.t

    found, t = drawn(params)

    in_float64 = jax.tree.map(lambda value: np.asarray(value, np.float64), params)
    noise = [rng.normal(use, SHAPE) for use in (randomness.NOISE, randomness.RECONSTRUCTION)]
    eps, eps_0 = (np.asarray(value, np.float64) for value in noise)
    want = terms(in_float64, images.astype(int), np.asarray(t, np.float64), eps, eps_0, timesteps)
    assert found.keys() == want.keys()
    for name, nats in want.items():
        np.testing.assert_allclose(found[name], nats, rtol=2e-5, atol=2e-5, err_msg=name)
