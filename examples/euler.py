"""A custom sampler: Euler's method on the probability-flow ODE, dz/dγ = ½ σ (ε̂ − σ z) (Song et al. 2021).

python -m vdm.main --workdir=/tmp/digits --mode=sample --config.model.sampler=examples.euler:Euler \\
    --config.model.sample_steps=100
"""

import dataclasses

import jax
import jax.numpy as jnp

from vdm.diffusion import process
from vdm.diffusion.denoiser import eps_from_x
from vdm.diffusion.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Euler(Sampler):
    ode = True

    def sample(self, predict_x, gammas, z_1, keys):
        def step(z, i):
            gamma, sigma = gammas[i + 1], process.sigma(gammas[i + 1])
            eps_hat = eps_from_x(predict_x(z, gamma), z, gamma)
            return z + 0.5 * (gammas[i] - gamma) * sigma * (eps_hat - sigma * z), None

        return jax.lax.scan(step, z_1, jnp.arange(len(gammas) - 1), reverse=True)[0]
