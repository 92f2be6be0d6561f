"""From noise to z_0: by the chain itself, or by its probability-flow ODE in fewer steps."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.contract import Batch, Params, Random
from vdm.diffusion import denoiser, encoder
from vdm.runtime import randomness

if TYPE_CHECKING:  # it imports this module
    from vdm.diffusion.model import Diffusion

Picture = Float[Array, "batch height width channels"]
Gammas = Float[Array, "steps_and_one *any"]
PredictX = Callable[[Picture, Array], Picture]

SAMPLERS = ("ancestral", "ddim", "dpm2m")


def of_model(vdm: "Diffusion", params: Params, rng: Random, batch: Batch) -> Picture:
    """z_0 of a Diffusion, by its own sampler."""
    condition = vdm.condition_of(batch)
    context = None if vdm.context is None else rng.normal(randomness.CONTEXT, (vdm.context.size,))
    gammas = vdm.gammas(params, vdm.timesteps or vdm.sample_steps, context)

    def predict_x(z_t, gamma):
        of_each = jnp.broadcast_to(gamma, z_t.shape[:1] if gamma.ndim == 0 else z_t.shape)
        eps_hat = lambda condition: vdm.eps_hat(params, z_t, of_each, condition, context=context)
        eps = denoiser.guided(eps_hat, condition, vdm.guidance)
        if vdm.sampler != "ancestral":
            eps = vdm.encoder.of_flow(eps, z_t, gamma)
        return denoiser.x_from_eps(eps, z_t, gamma)

    z_1 = rng.normal(randomness.LATENT, vdm.shape)
    return sample(vdm.sampler, predict_x, gammas, z_1, rng.keys(randomness.NOISE))


def sample(
    kind: str, predict_x: PredictX, gammas: Gammas, z_1: Picture, keys: Key[Array, "batch"]
) -> Picture:
    """z_0 by the sampler of that name, of SAMPLERS; arguments and result are those of `ancestral`."""
    if kind == "ancestral":
        return ancestral(predict_x, gammas, z_1, keys)
    return solve(predict_x, gammas, z_1, order=2 if kind == "dpm2m" else 1)


def ancestral(predict_x: PredictX, gammas: Gammas, z_1: Picture, keys: Key[Array, "batch"]) -> Picture:
    """Runs the chain from noise down to z_0: p(z_s|z_t) = q(z_s|z_t, x = x̂(z_t)), step by step
    (VDM eq. 9; lecture (20)).

    Args:
      predict_x: (z_t, one of `gammas`) → x̂.
      gammas: γ at times 0, 1/T, …, 1, of all values or of each.
      z_1: drawn from N(0, I).
      keys: one for each example.

    Returns:
      z_0.
    """
    steps = gammas.shape[0] - 1

    def step(z_t, i):
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        mean, variance = encoder.posterior(z_t, predict_x(z_t, gamma_t), gamma_s, gamma_t)
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), z_t.shape[1:]))(keys)
        return mean + jnp.sqrt(variance) * noise, None

    z_0, _ = jax.lax.scan(step, z_1, jnp.arange(steps), reverse=True)
    return z_0


def solve(predict_x: PredictX, gammas: Gammas, z_1: Picture, order: int) -> Picture:
    """Solves the probability-flow ODE from noise down to z_0, one prediction a step.

    In log SNR its linear part is solved exactly, and x̂ is taken for constant over a step
    (order 1: DDIM, Song et al. 2021) or for linear, from this prediction and the last (order 2:
    DPM-Solver++ 2M, Lu et al. 2022, alg. 2):

      z_s = σ_s/σ_t z_t + α_s (1 − e^{−h}) x̂, h = (γ_t − γ_s)/2.

    Arguments and result are those of `ancestral`; it draws nothing but z_1.
    """
    steps = gammas.shape[0] - 1

    def step(carry, i):
        z_t, last, last_h = carry
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        h = 0.5 * (gamma_t - gamma_s)
        x = predict_x(z_t, gamma_t)
        first = i == steps - 1
        # The mean over the step of the line through both, which the first step has not.
        slope = jnp.where(first, 0.0, 0.5 * h / last_h) if order == 2 else 0.0
        ratio = encoder.sigma(gamma_s) / encoder.sigma(gamma_t)
        drift = -encoder.alpha(gamma_s) * jnp.expm1(-h)
        return (ratio * z_t + drift * (x + slope * (x - last)), x, h), None

    start = (z_1, jnp.zeros_like(z_1), jnp.ones(gammas.shape[1:]))
    (z_0, _, _), _ = jax.lax.scan(step, start, jnp.arange(steps), reverse=True)
    return z_0
