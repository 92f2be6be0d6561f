"""One draw of the terms that match p to q: prior and diffusion (VDM eq. 11), by one time and one noise."""

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.contract import Batch, Draw, Params, Random
from vdm.diffusion import (
    condition as condition_lib,
    context as context_lib,
    elbo,
    encoder,
    second_order,
    times,
    variance,
)
from vdm.runtime import randomness

if TYPE_CHECKING:  # it imports this module
    from vdm.diffusion.model import Diffusion

Picture = Float[Array, "batch height width channels"]


def draw(
    vdm: "Diffusion",
    params: Params,
    rng: Random,
    x: Picture,
    batch: Batch,
    train: bool,
    cdf: Float[Array, "parts_and_one"] | None,
    apart: bool,
    second: bool,
) -> Draw:
    """The Draw of all terms but the reconstruction, for any x; of `batch` only the condition counts."""
    context, context_nats = context_lib.draw(vdm.context, params, rng, x)
    t, time_weight = times.draw(rng, vdm.times, cdf)

    def at(schedule):
        gamma = lambda t: vdm.gamma(params | {"schedule": schedule}, t, context)
        return elbo.gamma_and_weight(gamma, t, vdm.timesteps)

    slot = None
    if apart:
        roles = vdm.schedule.roles(params["schedule"])
        (gamma_t, weight), slot = variance.apart(at, params["schedule"], roles, math.prod(vdm.shape))
    else:
        gamma_t, weight = at(params["schedule"])

    eps = rng.normal(randomness.NOISE, vdm.shape)
    gamma_s = gamma_t - jnp.log1p(weight / vdm.timesteps) if vdm.timesteps else None
    x_t, wanted = vdm.target(params, x, eps, gamma_t, gamma_s)
    z_t = encoder.diffuse(x_t, encoder.over_pixels(gamma_t), eps)
    dropout_keys = rng.keys(randomness.DROPOUT) if train else None
    condition = vdm.condition_of(batch)
    if train and vdm.drop_label:
        condition = condition_lib.withhold(condition, rng.keys(randomness.LABEL), vdm.drop_label)
    predict = lambda z: vdm.eps_hat(params, z, gamma_t, condition, dropout_keys, context)
    off = None
    if second:
        keys = rng.keys(randomness.PROBE)
        eps_hat, off = second_order.error(predict, z_t, eps, encoder.over_pixels(gamma_t), keys)
        off *= 0.5 * weight * time_weight
    else:
        eps_hat = predict(z_t)
    gamma_1 = vdm.gamma(params, jnp.ones(()))
    terms = {
        "prior": elbo.prior(vdm.target(params, x, eps, gamma_1)[0], gamma_1),
        "diffusion": elbo.diffusion(wanted, eps_hat, encoder.over_pixels(weight)) * time_weight,
    }
    terms |= {} if vdm.context is None else {"context": context_nats}
    # x − x̂ = (ε̂ − ε) σ/α, and elbo.diffusion with weight 2 is a sum of squares.
    error = elbo.diffusion(wanted, eps_hat, encoder.over_pixels(2.0 * jnp.exp(gamma_t)))
    gamma, time_weight = encoder.of_picture(gamma_t), jnp.broadcast_to(time_weight, t.shape)
    return Draw(terms, t, gamma, time_weight, error, slot, off)
