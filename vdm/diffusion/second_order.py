"""The error of a denoiser's derivative: the second-order term of i-DODE (Zheng et al. 2023; Lu et al. 2022).

The likelihood of the probability-flow ODE depends on the divergence of ε̂, which the ELBO does not see. For
the optimal ε̂(z) = E[ε|z] the derivative is known from its errors e = ε̂ − ε:

  σ ∇ε̂(z) = I − E[e eᵀ|z],

as ε̂ = −σ ∇ log q(z_t) and ∇² log q(z_t) = (E[e eᵀ|z] − I)/σ². So M = σ ∇ε̂ − I + e eᵀ has the mean 0, given z.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.diffusion import encoder

Picture = Float[Array, "batch *shape"]


def error(
    eps_hat: Callable[[Picture], Picture],
    z_t: Picture,
    eps: Picture,
    gamma: Float[Array, "*#any"],
    keys: Key[Array, "batch"],
) -> tuple[Picture, Float[Array, "batch"]]:
    """ε̂(z_t), and (uᵀ M u)²/d of a random probe u of ±1.

    uᵀ M u has the mean tr M over u; its square is least, over all functions ε̂' of z, where the symmetric part
    of σ ∇ε̂' is that of the optimum. e counts as a number and has no gradient: ε̂ itself learns from the ELBO.
    """
    probe = jax.vmap(lambda key: jax.random.rademacher(key, z_t.shape[1:], z_t.dtype))(keys)
    predicted, pull = jax.vjp(eps_hat, z_t)
    (along,) = pull(probe)
    off = jax.lax.stop_gradient(predicted) - eps
    quadratic = _sum(probe * (encoder.sigma(gamma) * along - probe)) + jnp.square(_sum(probe * off))
    return predicted, jnp.square(quadratic) / z_t[0].size


def _sum(values):
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
