"""The denoiser: one network, read as a prediction of the noise ε, of the data x, or of v.

z = α x + σ ε and v = α ε − σ x (Salimans & Ho 2022), so each reading fixes the others.
The ELBO uses ε̂; the sampler uses x̂.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion import decoder, encoder, levels
from vdm.diffusion.stationary import Posterior

Picture = Float[Array, "batch height width channels"]
Gamma = Float[Array, "*#any"]  # broadcasts against a picture

PARAMETERISATIONS = ("eps", "x", "v", "levels", "gaussian")

LOG_RATIO = (-8.0, 4.0)  # of variances, beyond which exp would run away


def accepted(gaussian: bool) -> tuple[str, ...]:
    """The parameterisations; "gaussian" where there are pictures to fit it to, and one γ for each."""
    return tuple(name for name in PARAMETERISATIONS if gaussian or name != "gaussian")


def outputs(parameterisation: str, channels: int, vocab_size: int) -> int:
    """How many channels the network must give for a picture of `channels` channels."""
    return channels * {"levels": vocab_size, "gaussian": 2}.get(parameterisation, 1)


def eps_hat(
    output: Float[Array, "batch height width outputs"],
    z_t: Picture,
    gamma: Gamma,
    parameterisation: str,
    vocab_size: int,
    known: Posterior | None = None,
) -> Picture:
    """ε̂(z_t, γ) from the network's output.

    eps: ε̂ = z_t + output, so that an output of zero is right where all is noise.
    x: x̂ = output. v: v̂ = output.
    levels: the output is, for each value, the log-probability of each of its levels given the rest of the
      picture. Times the likelihood N(z_t; α x_v, σ²) of the value's own z_t this is its posterior, and x̂ is
      the posterior's mean.
    gaussian: the output changes the posterior N(m, v) of each value that a Gaussian of the data has to
      N(m + √v a, v e^b), and x̂ is the mean of that, restricted to the levels. So an output of zero is
      right where the data are Gaussian.

    Args:
      gamma: one for each picture, or one for each value.
      known: N(m, v), of "gaussian" alone.
    """
    if parameterisation == "eps":
        return z_t + output
    if parameterisation == "x":
        return eps_from_x(output, z_t, gamma)
    if parameterisation == "v":
        return eps_from_v(output, z_t, gamma)
    if parameterisation == "levels":
        return eps_from_x(_posterior_mean(output, z_t, gamma, vocab_size), z_t, gamma)
    if parameterisation == "gaussian" and known is not None:
        shift, log_ratio = jnp.split(output, 2, axis=-1)
        mean = known.mean + jnp.sqrt(known.variance) * shift
        variance = known.variance * jnp.exp(jnp.clip(log_ratio, *LOG_RATIO))
        return eps_from_x(levels.restricted_mean(mean, variance, vocab_size), z_t, gamma)
    raise ValueError(f"parameterisation is {parameterisation!r}; accepted: {PARAMETERISATIONS}")


def guided(eps_hat: Callable[[Any], Picture], condition: Any, guidance: float) -> Picture:
    """(1 + w) ε̂(condition) − w ε̂(none) (Ho & Salimans 2022, eq. 6), none being zeros."""
    eps = eps_hat(condition)
    return eps + guidance * (eps - eps_hat(jnp.zeros_like(condition))) if guidance else eps


def x_from_eps(eps: Picture, z_t: Picture, gamma: Gamma) -> Picture:
    """x̂ = (z_t − σ ε̂) / α."""
    return (z_t - encoder.sigma(gamma) * eps) / encoder.alpha(gamma)


def eps_from_x(x: Picture, z_t: Picture, gamma: Gamma) -> Picture:
    """ε̂ = (z_t − α x̂) / σ."""
    return (z_t - encoder.alpha(gamma) * x) / encoder.sigma(gamma)


def v_from_eps(eps: Picture, z_t: Picture, gamma: Gamma) -> Picture:
    """v̂ = (ε̂ − σ z_t) / α, from v = α ε − σ x."""
    return (eps - encoder.sigma(gamma) * z_t) / encoder.alpha(gamma)


def eps_from_v(v: Picture, z_t: Picture, gamma: Gamma) -> Picture:
    """ε̂ = σ z_t + α v̂."""
    return encoder.sigma(gamma) * z_t + encoder.alpha(gamma) * v


def _posterior_mean(output, z_t, gamma, vocab_size):
    context = output.reshape(*z_t.shape, vocab_size)
    posterior = jax.nn.softmax(decoder.logits(z_t, gamma, vocab_size) + context, axis=-1)
    return posterior @ encoder.scale(jnp.arange(vocab_size), vocab_size)
