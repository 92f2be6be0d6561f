"""Where the probability-flow ODE of an image starts, and along which γ it goes."""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.contract import Batch, Flow, Params, Random
from vdm.diffusion import context as context_lib, dequantise, encoder, gaussian
from vdm.runtime import randomness

if TYPE_CHECKING:  # it imports this module
    from vdm.diffusion.model import Diffusion


def kinds(vdm: "Diffusion") -> tuple[str, ...]:
    """Of dequantisation. Where each value has its own γ, or x_t is not x, uniform noise starts beside the
    way of q(z_t|x)."""
    plain = not vdm.encoder.lacks and not vdm.schedule.per_value
    return dequantise.KINDS if plain else ("normal",)


def of_images(vdm: "Diffusion", params: Params, rng: Random, batch: Batch, kind: str) -> Flow:
    """From a point of the cell of each level; −log q of it, and the weight of the context, are the nats."""
    x = encoder.scale(batch["image"], vdm.vocab_size)
    context, log_ratio = context_lib.draw_weighted(vdm.context, params, rng, x)
    gammas = vdm.gammas(params, 1, context)
    keys = rng.keys(randomness.DECODE)
    z, gamma_0, nats = dequantise.dequantise(kind, keys, batch["image"], gammas[0], vdm.vocab_size)
    return _along(vdm, params, batch, z, (gamma_0, gammas[1]), context, nats + log_ratio)


def of_latents(
    vdm: "Diffusion",
    params: Params,
    rng: Random,
    batch: Batch,
    mean: Float[Array, "batch *latent"],
    log_likelihood: Float[Array, "batch"],
    eps: Float[Array, "batch *latent"],
) -> Flow:
    """From z_0 = α μ + σ ε of q(z_0|x) = N(α μ, σ²); log p(x|z_0) − log q(z_0|x), and the weight of the
    context, are the nats.

    Args:
      mean: μ.
      log_likelihood: log p(x|z_0), nats.
    """
    context, log_ratio = context_lib.draw_weighted(vdm.context, params, rng, mean)
    gammas = vdm.gammas(params, 1, context)
    log_sigma = jnp.broadcast_to(jnp.log(encoder.sigma(gammas[0])), eps.shape)
    log_q = gaussian.log_prob(gaussian.STANDARD, eps) - jnp.sum(log_sigma, tuple(range(1, eps.ndim)))
    z_0 = encoder.diffuse(mean, gammas[0], eps)
    nats = log_likelihood - log_q + log_ratio
    return _along(vdm, params, batch, z_0, (gammas[0], gammas[1]), context, nats)


def _along(vdm, params, batch, z, ends, context, nats):
    def eps_hat(z, gamma, given):
        eps = vdm.eps_hat(params, z, gamma, given[0], context=given[1])
        return vdm.encoder.of_flow(eps, z, encoder.over_pixels(gamma))

    given = (vdm.condition_of(batch), context)
    if not vdm.schedule.per_value:
        return Flow(z, ends, eps_hat, given, None, nats)
    times = (jnp.zeros(()), jnp.ones(()))
    return Flow(z, times, eps_hat, given, lambda t, given: vdm.gamma(params, t, given[1]), nats)
