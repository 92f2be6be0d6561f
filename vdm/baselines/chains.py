"""The chain of an MHVAE without restriction II: all of its distributions are networks.

Like the linear chain of diffusion/chain.py, it has q(z_1|x), q(z_t|z_{t−1}), p(z_{t−1}|z_t) and p(x|z_1), and
the terms that its levels add to the ELBO.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
import numpy as np

from vdm.baselines import vae as vae_lib
from vdm.contract import Params
from vdm.diffusion import gaussian
from vdm.diffusion.chain import Keys, Latent, Levels
from vdm.diffusion.gaussian import Gaussian
from vdm.nets.layers import layer_keys
from vdm.parameters import Role


@dataclasses.dataclass(frozen=True)
class Networks:
    """q and p are networks: z_1 is the latent of a VAE, and each z_t that of the z_{t−1} below it.

    Attributes:
      vae: q(z_1|x) and p(x|z_1).
      up, down: of q(z_t|z_{t−1}) and p(z_{t−1}|z_t), one network for all t: [batch, latent + T], the latter
        to tell t, to mean and log variance, [batch, 2 · latent].
      timesteps: T.
    """

    vae: vae_lib.VAE
    up: nn.Module
    down: nn.Module
    timesteps: int

    @property
    def shape(self):
        """Of a latent."""
        return (self.vae.latent,)

    def init(self, key, batch):
        """{"encoder": …, "decoder": …, "up": …, "down": …}: fresh parameters."""
        up, down = jax.random.split(jax.random.fold_in(key, 0))
        z = jnp.zeros((1, self.vae.latent + self.timesteps))
        return self.vae.init(key, batch) | {"up": self.up.init(up, z), "down": self.down.init(down, z)}

    def roles(self, params: Params) -> PyTree[Role]:
        """What each parameter is to the optimiser."""
        return self.vae.roles({name: params[name] for name in params if name != "prior"})

    def q_1(self, params: Params, levels: Levels, keys: Keys = None) -> Gaussian:
        """q(z_1|x)."""
        return self.vae.encode(params, levels, keys)

    def q(self, params: Params, t: int | Array, z: Latent, keys: Keys = None) -> Gaussian:
        """q(z_t|z_{t−1}), t = 2 … T."""
        return self._gaussian(self.up, params["up"], t, z, layer_keys(keys, 2 * t))

    def p(self, params: Params, t: int | Array, z: Latent, keys: Keys = None) -> Gaussian:
        """p(z_{t−1}|z_t), t = 2 … T."""
        return self._gaussian(self.down, params["down"], t, z, layer_keys(keys, 2 * t + 1))

    def decode(self, params: Params, z: Latent, keys: Keys = None) -> vae_lib.Levels:
        """p(x|z_1), for decoder.py."""
        return self.vae.decode(params, z, keys)

    def matching(
        self, params: Params, levels: Levels, z: Float[Array, "T batch *latent"], q: Gaussian, p: Gaussian
    ) -> tuple[Float[Array, "T_minus_one batch"], Gaussian]:
        """log q(z_t|z_{t−1}) − log p(z_t|z_{t+1}), and q(z_T|z_{T−1})."""
        below, last = jax.tree.map(lambda v: v[:-1], q), jax.tree.map(lambda v: v[-1], q)
        log_prob = jax.vmap(gaussian.log_prob)
        return log_prob(below, z[:-1]) - log_prob(p, z[:-1]), last

    def deviations(self, params: Params) -> Float[np.ndarray, "T"]:
        """Of each z_t, what stands for its smallest standard deviation (contract.Latents)."""
        return np.full(self.timesteps, vae_lib.DEVIATION)

    def _gaussian(self, net, params, t, z, keys):
        number = jnp.broadcast_to(jax.nn.one_hot(t - 1, self.timesteps), (z.shape[0], self.timesteps))
        output = net.apply(params, jnp.concatenate([z, number], axis=-1), keys)
        return Gaussian(*jnp.split(output, 2, axis=-1))
