"""Ancestral sampling: p(z_s|z_t) = q(z_s|z_t, x = x̂(z_t)), chained (VDM eq. 9; lecture (20))."""

import jax
import jax.numpy as jnp

from vdm import encoder


def ancestral(predict_x, gammas, z_1, keys):
    """Runs the chain from noise down to z_0.

    Args:
      predict_x: (z_t, gamma, a scalar) → x̂, [batch, height, width, channels].
      gammas: [T + 1], γ at times 0, 1/T, …, 1.
      z_1: [batch, height, width, channels], drawn from N(0, I).
      keys: [batch], one key for each example.

    Returns:
      z_0, like z_1.
    """
    steps = gammas.shape[0] - 1

    def step(z_t, i):
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        mean, variance = encoder.posterior(z_t, predict_x(z_t, gamma_t), gamma_s, gamma_t)
        noise = jax.vmap(
            lambda key: jax.random.normal(jax.random.fold_in(key, i), z_t.shape[1:])
        )(keys)
        return mean + jnp.sqrt(variance) * noise, None

    z_0, _ = jax.lax.scan(step, z_1, jnp.arange(steps), reverse=True)
    return z_0
