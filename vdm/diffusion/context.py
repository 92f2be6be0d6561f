"""A learned context c of a picture: a small Gaussian latent that schedule and denoiser are conditioned on
(MuLAN: Sahoo et al. 2024, sec. 3.3, with a Gaussian for its discrete c)."""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.contract import Params, Random
from vdm.diffusion import gaussian
from vdm.diffusion.gaussian import Gaussian
from vdm.runtime import randomness


class Encoder(nn.Module):
    """q(c|x): x [batch, height, width, channels] to a Gaussian of [batch, size]."""

    size: int
    hidden: int = 128

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Gaussian:
        h = nn.gelu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return Gaussian(*jnp.split(nn.Dense(2 * self.size)(h), 2, axis=-1))


def draw(
    encoder: Encoder | None, params: Params, rng: Random, x: Float[Array, "batch height width channels"]
) -> tuple[Float[Array, "batch size"] | None, Float[Array, "*#batch"]]:
    """A draw of q(c|x) and its KL from the prior N(0, I), nats; None and 0 where there is no encoder."""
    if encoder is None:
        return None, jnp.zeros(())
    q = encoder.apply(params["context"], x)
    noise = rng.normal(randomness.CONTEXT, (encoder.size,))
    return gaussian.draw(q, noise), gaussian.kl(q, gaussian.STANDARD)


def draw_weighted(
    encoder: Encoder | None, params: Params, rng: Random, x: Float[Array, "batch height width channels"]
) -> tuple[Float[Array, "batch size"] | None, Float[Array, "*#batch"]]:
    """A draw c of q(c|x), independent of all others, and log p(c)/q(c|x), nats, for an importance weight;
    None and 0 where there is no encoder."""
    if encoder is None:
        return None, jnp.zeros(())
    q = encoder.apply(params["context"], x)
    c = gaussian.draw(q, gaussian.noise(rng.keys(randomness.CONTEXT), (encoder.size,)))
    return c, gaussian.log_prob(gaussian.STANDARD, c) - gaussian.log_prob(q, c)
