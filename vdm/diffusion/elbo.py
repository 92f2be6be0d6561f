"""The three terms of the ELBO, each in nats per example (VDM eq. 11; lecture (21)).

−log p(x) ≤ reconstruction + prior + diffusion. Pure functions of arrays; γ and weights broadcast
against x, ε and z.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vdm.diffusion import decoder
from vdm.diffusion.schedule import with_slope


def bits_per_dim(nats: Any, shape: tuple[int, ...]) -> Any:
    """Nats per example to bits per dimension, a dimension being one of the values of `shape`."""
    return nats / (math.prod(shape) * math.log(2.0))


def reconstruction(
    levels: Int[Array, "batch *shape"],
    eps_0: Float[Array, "batch *shape"],
    gamma_0: Float[Array, "*#any"],
    vocab_size: int,
) -> Float[Array, "batch"]:
    """E_q(z_0|x)[−log p(x|z_0)], by one draw of z_0: the lecture's reconstruction term."""
    offset = jnp.exp(0.5 * gamma_0) * eps_0
    return -_sum(decoder.log_prob_at(levels, offset, gamma_0, vocab_size))


def prior(x: Float[Array, "batch *shape"], gamma_1: Float[Array, "*#any"]) -> Float[Array, "batch"]:
    """KL(q(z_1|x) ‖ N(0, I)), exact: the lecture's prior matching term.

    ½ Σ (α² x² + σ² − 1 − log σ²), with σ² − 1 = −α².
    """
    alpha2 = jax.nn.sigmoid(-gamma_1)
    return 0.5 * _sum(alpha2 * jnp.square(x) - alpha2 + jax.nn.softplus(-gamma_1))


def diffusion(
    eps: Float[Array, "batch *shape"],
    eps_hat: Float[Array, "batch *shape"],
    weight: Float[Array, "batch *#shape"],
) -> Float[Array, "batch"]:
    """½ Σ w (ε − ε̂)²: the lecture's denoising matching term, by one draw of t and ε.

    Args:
      weight: of each picture, or of each value: γ'(t) in continuous time (VDM eq. 17), and
        T (e^{γ_t − γ_s} − 1) in a chain of T steps (VDM eq. 14), see `step_weight`.
    """
    return 0.5 * _sum(weight * jnp.square(eps - eps_hat))


def gamma_and_weight(
    gamma: Callable[[Array], Array], t: Float[Array, "batch"], timesteps: int
) -> tuple[Array, Array]:
    """γ and the weight of `diffusion` at the times t, or at the steps of a chain that these fall into.

    Args:
      timesteps: T, the depth of the chain; 0 for continuous time.
    """
    if timesteps == 0:
        return with_slope(gamma, t)
    step = jnp.minimum(jnp.floor(t * timesteps) + 1.0, timesteps)
    gamma_s, gamma_t = gamma((step - 1.0) / timesteps), gamma(step / timesteps)
    return gamma_t, step_weight(gamma_s, gamma_t, timesteps)


def step_weight(
    gamma_s: Float[Array, "*any"], gamma_t: Float[Array, "*any"], timesteps: int
) -> Float[Array, "*any"]:
    """T (e^{γ_t − γ_s} − 1): what one step of T, drawn uniformly, stands for (VDM eq. 14)."""
    return timesteps * jnp.expm1(gamma_t - gamma_s)


def _sum(values):
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
