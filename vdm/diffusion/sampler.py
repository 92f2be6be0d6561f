"""Samplers: from noise to z_0 by the chain, or by its probability-flow ODE in fewer steps."""

from collections.abc import Callable
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.arrays import Image
from vdm.component import Component
from vdm.diffusion import process

Gammas = Float[Array, "steps_and_one *any"]
PredictX = Callable[[Image, Array], Image]


@dataclasses.dataclass(frozen=True)
class Sampler(Component):
    """Draws samples. A custom sampler defines `sample` (see examples/euler.py).

    Attributes:
      ode: whether the sampler solves the probability-flow ODE, and needs the `predict_x` of the ODE.
    """

    ode: ClassVar[bool] = False

    def sample(self, predict_x: PredictX, gammas: Gammas, z_1: Image, keys: Key[Array, "batch"]) -> Image:
        """z_0, float32 like z_1.

        Args:
          predict_x: (z_t, γ for all values or for each) → x̂.
          gammas: γ at times 0, 1/T, …, 1, for all values or for each.
          z_1: drawn from N(0, I).
          keys: one for each example.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Ancestral(Sampler):
    """Runs the chain from noise down to z_0: p(z_s|z_t) = q(z_s|z_t, x = x̂(z_t)), step by step
    (VDM eq. 9; lecture (20))."""

    def sample(self, predict_x, gammas, z_1, keys):
        steps = gammas.shape[0] - 1

        def step(z_t, i):
            gamma_s, gamma_t = gammas[i], gammas[i + 1]
            mean, variance = process.posterior(z_t, predict_x(z_t, gamma_t), gamma_s, gamma_t)
            noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), z_t.shape[1:]))(keys)
            return mean + jnp.sqrt(variance) * noise, None

        z_0, _ = jax.lax.scan(step, z_1, jnp.arange(steps), reverse=True)
        return z_0


@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """The ODE with x̂ constant over a step (Song et al. 2021)."""

    ode: ClassVar[bool] = True

    def sample(self, predict_x, gammas, z_1, keys):
        return solve(predict_x, gammas, z_1, order=1)


@dataclasses.dataclass(frozen=True)
class DPM2M(Sampler):
    """The ODE with x̂ linear over a step (DPM-Solver++ 2M: Lu et al. 2022); 20 steps are enough."""

    ode: ClassVar[bool] = True

    def sample(self, predict_x, gammas, z_1, keys):
        return solve(predict_x, gammas, z_1, order=2)


def solve(predict_x: PredictX, gammas: Gammas, z_1: Image, order: int) -> Image:
    """Solves the probability-flow ODE from noise down to z_0, with one prediction per step.

    Its linear part is solved exactly as a function of log SNR, and x̂ is approximated over a step as constant
    (order 1: DDIM, Song et al. 2021) or as linear, from the present and the previous prediction (order 2:
    DPM-Solver++ 2M, Lu et al. 2022, alg. 2):

      z_s = σ_s/σ_t z_t + α_s (1 − e^{−h}) x̂, h = (γ_t − γ_s)/2.

    Arguments and result are those of Sampler.sample; the only randomness is z_1.
    """
    steps = gammas.shape[0] - 1

    def step(carry, i):
        z_t, last, last_h = carry
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        h = 0.5 * (gamma_t - gamma_s)
        x = predict_x(z_t, gamma_t)
        first = i == steps - 1
        # The mean over the step of the line through both predictions; the first step has no previous one.
        slope = jnp.where(first, 0.0, 0.5 * h / last_h) if order == 2 else 0.0
        ratio = process.sigma(gamma_s) / process.sigma(gamma_t)
        drift = -process.alpha(gamma_s) * jnp.expm1(-h)
        return (ratio * z_t + drift * (x + slope * (x - last)), x, h), None

    start = (z_1, jnp.zeros_like(z_1), jnp.ones(gammas.shape[1:]))
    (z_0, _, _), _ = jax.lax.scan(step, start, jnp.arange(steps), reverse=True)
    return z_0
