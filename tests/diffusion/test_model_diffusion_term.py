"""The diffusion term of Gaussian data, whose expectation is known."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from vdm.diffusion import process
from vdm.diffusion.denoiser import X
from vdm.runtime.randomness import Rng


class Wiener:
    """A network whose output is the optimal x̂ for Gaussian data N(MU, S²), which is linear in z."""

    MU, S = 0.1, 0.4

    @classmethod
    def gain(cls, gamma, xp):
        alpha2 = 1.0 / (1.0 + xp.exp(gamma))
        return cls.S**2 * xp.sqrt(alpha2) / (alpha2 * cls.S**2 + 1.0 - alpha2)

    def predict(self, params, z, time, *args):
        gamma = (-8.0 + 16.0 * time)[:, None, None, None]
        return self.MU + self.gain(gamma, jnp) * (z - process.alpha(gamma) * self.MU)


@pytest.mark.parametrize("timesteps", [0, 1, 4, 32])
def test_model_diffusion_term_of_gaussian_data(timesteps):
    """The term's expectation for each x is the sum over steps of ½ (SNR_s − SNR_t) E‖x − x̂‖², in float64
    NumPy. In continuous time its mean over the data is the information that z_0 holds beyond z_1,
    ½ log (1 + s² SNR_0)/(1 + s² SNR_1)."""
    count, vocab_size = 65_536, 256
    draw = np.random.default_rng(0).normal(Wiener.MU, Wiener.S, count)
    image = np.clip(np.floor((draw + 1.0) / 2.0 * vocab_size), 0, vocab_size - 1).astype(np.uint8)
    x = (2.0 * image + 1.0) / vocab_size - 1.0
    model = exact.model(np.zeros((1, 1, 1, vocab_size)), -8.0, 8.0, timesteps)
    model = dataclasses.replace(model, net=Wiener(), parameterisation=X())
    rng = Rng(jax.random.key(0), jnp.arange(count), count)
    batch = {"image": image.reshape(-1, 1, 1, 1)}
    found = jax.jit(lambda: model.draw({"schedule": {}, "net": {}}, rng, batch).terms["diffusion"])()

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
    truth = expected(np.mean((x - Wiener.MU) ** 2))  # `expected` is linear in the square
    se = np.std(np.asarray(found, np.float64)) / math.sqrt(count)
    assert abs(np.mean(np.asarray(found, np.float64)) - truth) < 3.5 * se and se < 0.02 * truth
