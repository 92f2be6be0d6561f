"""The log weight of one path through the chain of T steps (VDM eq. 13, 14).

With w = p(x, z)/q(z|x) for a random path z ~ q(z|x), E[w] = p(x). So the mean of log w is at most log p(x):
it is the ELBO. A pure function of arrays.
"""

from collections.abc import Callable
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.contract import Batch, Params, Random
from vdm.diffusion import context as context_lib, encoder
from vdm.runtime import randomness

if TYPE_CHECKING:  # it imports this module
    from vdm.diffusion.model import Diffusion

# (z [batch, …], γ [batch] or of each value, condition) → ε̂ [batch, …].
EpsHat = Callable[[Array, Array, Any], Array]
# (ε, γ_s, γ_t) → x_t, and the noise that ε̂ is to predict (learned_encoder.Encoder.target).
Target = Callable[[Array, Array, Array], tuple[Array, Array]]


def of_model(
    vdm: "Diffusion",
    params: Params,
    rng: Random,
    batch: Batch,
    x: Float[Array, "batch *shape"],
    log_likelihood: Callable[[Array], Array],
) -> Float[Array, "batch"]:
    """`log_weight` of the chain of a Diffusion, and of its context."""
    context, log_ratio = context_lib.draw_weighted(vdm.context, params, rng, x)

    def target(eps, gamma_s, gamma_t):
        return vdm.target(params, x, eps, gamma_t, gamma_s)

    return log_ratio + log_weight(
        lambda z, gamma, condition: vdm.eps_hat(params, z, gamma, condition, context=context),
        x,
        log_likelihood,
        vdm.condition_of(batch),
        vdm.gammas(params, vdm.timesteps, context),
        rng.keys(randomness.NOISE),
        target,
    )


def log_weight(
    eps_hat: EpsHat,
    x: Float[Array, "batch *shape"],
    log_likelihood: Callable[[Array], Array],
    condition: Float[Array, "batch size"] | None,
    gammas: Float[Array, "steps_and_one *#batch_and_shape"],
    keys: Key[Array, "batch"],
    target: Target,
) -> Float[Array, "batch"]:
    """log p(x, z_0 … z_1)/q(z_0 … z_1|x) of one path drawn from q, nats.

    The path is drawn from z_1 down, by q(z_s|z_t, x). In terms of the noise ε_t in z_t this is
    ε_s = e^{(γ_s − γ_t)/2} ε_t + (1 − e^{γ_s − γ_t})^½ e. The means of p(z_s|z_t) and of q(z_s|z_t, x) lie
    d = (e^{γ_t − γ_s} − 1)^½ (ε̂ − ε_t) standard deviations apart, so each step adds −½‖d‖² − e·d
    (VDM eq. 13, 14, before the expectation). Where each value has its own γ, all this holds value by value.

    Args:
      x: the data, or where a latent stands for them its mean.
      log_likelihood: z_0 → log p(x|z_0), nats.
      gammas: γ at times 0, 1/T, …, 1; one for all, or one for each value, or for each value of each image.
      keys: one for each example.
      target: (x, ε), unless the encoder is learned.
    """
    shape = x.shape[1:]
    steps = gammas.shape[0] - 1

    def noise(i):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    def step(carry, i):
        eps, log_w = carry
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        x_t, wanted = target(eps, gamma_s, gamma_t)
        z_t = encoder.diffuse(x_t, gamma_t, eps)
        each = jnp.broadcast_to(gamma_t, z_t.shape if gamma_t.ndim else z_t.shape[:1])
        predicted = eps_hat(z_t, each, condition)
        d = jnp.sqrt(jnp.expm1(gamma_t - gamma_s)) * (predicted - wanted)
        e = noise(i)
        log_w -= _sum(0.5 * jnp.square(d) + e * d)
        kept = jnp.exp(0.5 * (gamma_s - gamma_t))
        return (kept * eps + jnp.sqrt(-jnp.expm1(gamma_s - gamma_t)) * e, log_w), None

    eps = noise(steps)
    z_1 = encoder.diffuse(target(eps, gammas[-2], gammas[-1])[0], gammas[-1], eps)
    log_sigma = jnp.broadcast_to(jnp.log(encoder.sigma(gammas[-1])), z_1.shape)
    log_w = log_normal(z_1) - log_normal(eps) + _sum(log_sigma)
    (eps, log_w), _ = jax.lax.scan(step, (eps, log_w), jnp.arange(steps), reverse=True)
    z_0 = encoder.diffuse(x, gammas[0], eps)
    return log_w + log_likelihood(z_0)


def log_normal(z: Float[Array, "batch *shape"]) -> Float[Array, "batch"]:
    """log N(z; 0, I), nats."""
    return -0.5 * _sum(jnp.square(z) + math.log(2.0 * math.pi))


def _sum(values):
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
