"""A learned context c of a picture: a small Gaussian latent that the noise and the denoiser are told
(MuLAN: Sahoo et al. 2024, sec. 3.3, with a Gaussian for its discrete c)."""

from flax import linen as nn
import jax.numpy as jnp


class Encoder(nn.Module):
    """q(c|x): x [batch, height, width, channels] to mean and log variance, each [batch, size]."""

    size: int
    hidden: int = 128

    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return jnp.split(nn.Dense(2 * self.size)(h), 2, axis=-1)


def kl(mean, log_variance):
    """KL(N(mean, e^log_variance) ‖ N(0, I)): [batch, size] to nats [batch]."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.expm1(log_variance) - log_variance, axis=-1)
