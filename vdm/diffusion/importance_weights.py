"""Importance weights log w = log p(x, z)/q(z|x) of paths z = z_0 … z_1 of a chain of T steps (VDM eq. 13,
14).

For z ~ q(z|x), E[w] = p(x), so that the mean of log w is at most log p(x): it is the ELBO. For z ~ p(z|x) the
mean of log w is at least log p(x) (Grosse et al. 2015). Pure functions of arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.diffusion import denoiser, process
from vdm.gaussian import STANDARD, log_prob, total

# (z [batch, …], γ [batch] or of each value) → ε̂ [batch, …].
EpsHat = Callable[[Array, Array], Array]
# (x, ε, γ_t, γ_s) → x_t, and the noise that ε̂ must predict (Diffusion.target).
Target = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def log_weight(
    eps_hat: EpsHat,
    x: Float[Array, "batch *shape"],
    log_likelihood: Callable[[Array], Array],
    gammas: Float[Array, "steps_and_one *#batch_and_shape"],
    keys: Key[Array, "batch"],
    target: Target,
) -> Float[Array, "batch"]:
    """log p(x, z_0 … z_1)/q(z_0 … z_1|x) of one path drawn from q, nats.

    The path is drawn from z_1 down, by q(z_s|z_t, x). In terms of the noise ε_t in z_t this is
    ε_s = e^{(γ_s − γ_t)/2} ε_t + (1 − e^{γ_s − γ_t})^½ e. The means of p(z_s|z_t) and of q(z_s|z_t, x) lie
    d = (e^{γ_t − γ_s} − 1)^½ (ε̂ − ε_t) standard deviations apart, so each step adds −½‖d‖² − e·d
    (VDM eq. 13, 14, before the expectation). If γ differs between values, all this holds for each value.

    Args:
      x: the data, or the mean of the latent that represents them.
      log_likelihood: z_0 → log p(x|z_0), nats.
      gammas: γ at times 0, 1/T, …, 1; for all values, for each value, or for each value of each image.
      keys: one for each example.
      target: returns (x, ε), unless the encoder is learned.
    """
    shape = x.shape[1:]
    steps = gammas.shape[0] - 1

    def noise(i):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    def step(carry, i):
        eps, log_w = carry
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        x_t, wanted = target(x, eps, gamma_t, gamma_s)
        z_t = process.diffuse(x_t, gamma_t, eps)
        predicted = eps_hat(z_t, of_each(gamma_t, z_t))
        d = jnp.sqrt(jnp.expm1(gamma_t - gamma_s)) * (predicted - wanted)
        e = noise(i)
        log_w -= total(0.5 * jnp.square(d) + e * d)
        kept = jnp.exp(0.5 * (gamma_s - gamma_t))
        return (kept * eps + jnp.sqrt(-jnp.expm1(gamma_s - gamma_t)) * e, log_w), None

    eps = noise(steps)
    z_1 = process.diffuse(target(x, eps, gammas[-1], gammas[-2])[0], gammas[-1], eps)
    log_sigma = jnp.broadcast_to(jnp.log(process.sigma(gammas[-1])), z_1.shape)
    log_w = log_prob(STANDARD, z_1) - log_prob(STANDARD, eps) + total(log_sigma)
    (eps, log_w), _ = jax.lax.scan(step, (eps, log_w), jnp.arange(steps), reverse=True)
    z_0 = process.diffuse(x, gammas[0], eps)
    return log_w + log_likelihood(z_0)


def of_sample(
    eps_hat: EpsHat,
    decode: Callable[[Array], tuple[Any, Array, Array]],
    gammas: Float[Array, "steps_and_one *#batch_and_shape"],
    z_1: Float[Array, "batch *shape"],
    keys: Key[Array, "batch"],
    target: Target,
) -> tuple[Any, Float[Array, "batch"]]:
    """Draws z_1 … z_0 and x from the model, and returns x and log p(x, z)/q(z|x), in nats.

    In the notation of `log_weight`: p(z_s|z_t) adds the noise e of each step to its own mean, so that each
    step adds ½‖d‖² − e·d.

    Args:
      decode: z_0 → a draw from p(x|z_0), the draw's x as in `log_weight`, and log p(x|z_0).
      z_1: drawn from N(0, I).
    """
    steps = gammas.shape[0] - 1

    def down(z_t, i):
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        predicted = eps_hat(z_t, of_each(gamma_t, z_t))
        x_hat = denoiser.x_from_eps(predicted, z_t, gamma_t)
        mean, variance = process.posterior(z_t, x_hat, gamma_s, gamma_t)
        e = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), z_t.shape[1:]))(keys)
        return mean + jnp.sqrt(variance) * e, (z_t, predicted, e)

    z_0, path = jax.lax.scan(down, z_1, jnp.arange(steps), reverse=True)
    drawn, x, log_likelihood = decode(z_0)

    def add(log_w, at):
        i, (z_t, predicted, e) = at
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        x_t, _ = target(x, z_t, gamma_t, gamma_s)
        eps = denoiser.eps_from_x(x_t, z_t, gamma_t)
        _, wanted = target(x, eps, gamma_t, gamma_s)
        d = jnp.sqrt(jnp.expm1(gamma_t - gamma_s)) * (predicted - wanted)
        return log_w + total(0.5 * jnp.square(d) - e * d), eps

    log_w, eps = jax.lax.scan(add, log_likelihood, (jnp.arange(steps), path))
    log_sigma = jnp.broadcast_to(jnp.log(process.sigma(gammas[-1])), z_1.shape)
    log_w += log_prob(STANDARD, z_1) - log_prob(STANDARD, eps[-1]) + total(log_sigma)
    return drawn, log_w


def of_each(gamma: Float[Array, "*any"], z: Float[Array, "batch *shape"]) -> Float[Array, "batch *any"]:
    """γ for each example of z: a single γ becomes one per example, and a γ for each value becomes one for
    each value of each example."""
    return jnp.broadcast_to(gamma, z.shape if gamma.ndim else z.shape[:1])
