"""The two kinds of chain of an MHVAE: q(z_1|x), q(z_t|z_{t−1}), p(z_{t−1}|z_t) and p(x|z_1), and the terms
that the latents add to the ELBO. Without restriction II all of these distributions are networks; with it they
are a VDM's.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import numpy as np

from vdm import gaussian
from vdm.baselines import vae as vae_lib
from vdm.contract import Latents, Params
from vdm.diffusion import process
from vdm.diffusion.model import Diffusion
from vdm.gaussian import Gaussian
from vdm.nets.layers import layer_keys
from vdm.parameters import Role

Values = Int[Array, "batch height width channels"]
Latent = Float[Array, "batch *latent"]
Keys = Array | None


@dataclasses.dataclass(frozen=True)
class LearnedChain:
    """q and p are networks: z_1 is the latent of a VAE, and each further z_t is encoded from z_{t−1}.

    Attributes:
      vae: computes q(z_1|x) and p(x|z_1).
      up, down: networks of q(z_t|z_{t−1}) and p(z_{t−1}|z_t), each shared by all t: from
        [batch, latent + T], where the last T inputs encode t, to mean and log variance,
        [batch, 2 · latent].
      timesteps: T, the number of latents.
    """

    vae: vae_lib.VAE
    up: nn.Module
    down: nn.Module
    timesteps: int

    @property
    def shape(self):
        """The shape of a latent."""
        return (self.vae.latent,)

    def init(self, key, batch):
        """{"encoder": …, "decoder": …, "up": …, "down": …}: initial parameters."""
        vae, up, down = jax.random.split(key, 3)
        z = jnp.zeros((1, self.vae.latent + self.timesteps))
        return self.vae.init(vae, batch) | {"up": self.up.init(up, z), "down": self.down.init(down, z)}

    def roles(self, params: Params) -> PyTree[Role]:
        """The role of each parameter for the optimiser."""
        return self.vae.roles({name: params[name] for name in params if name != "prior"})

    def q_1(self, params: Params, levels: Values, keys: Keys = None) -> Gaussian:
        """q(z_1|x)."""
        return self.vae.encode(params, levels, keys)

    def q(self, params: Params, t: int | Array, z: Latent, keys: Keys = None) -> Gaussian:
        """q(z_t|z_{t−1}), t = 2 … T."""
        return self._gaussian(self.up, params["up"], t, z, layer_keys(keys, 2 * t))

    def p(self, params: Params, t: int | Array, z: Latent, keys: Keys = None) -> Gaussian:
        """p(z_{t−1}|z_t), t = 2 … T."""
        return self._gaussian(self.down, params["down"], t, z, layer_keys(keys, 2 * t + 1))

    def decode(self, params: Params, z: Latent, keys: Keys = None) -> vae_lib.Discretised:
        """p(x|z_1), for decoder.py."""
        return self.vae.decode(params, z, keys)

    def matching(
        self, params: Params, levels: Values, z: Float[Array, "T batch *latent"], q: Gaussian, p: Gaussian
    ) -> tuple[Float[Array, "T_minus_one batch"], Gaussian]:
        """log q(z_t|z_{t−1}) − log p(z_t|z_{t+1}) for each t < T, and q(z_T|z_{T−1})."""
        below, last = jax.tree.map(lambda v: v[:-1], q), jax.tree.map(lambda v: v[-1], q)
        log_prob = jax.vmap(gaussian.log_prob)
        return log_prob(below, z[:-1]) - log_prob(p, z[:-1]), last

    def deviations(self, params: Params) -> Float[np.ndarray, "T"]:
        """An estimate of the smallest standard deviation of each z_t (contract.Latents)."""
        return np.full(self.timesteps, vae_lib.DEVIATION)

    def _gaussian(self, net, params, t, z, keys):
        number = jnp.broadcast_to(jax.nn.one_hot(t - 1, self.timesteps), (z.shape[0], self.timesteps))
        output = net.apply(params, jnp.concatenate([z, number], axis=-1), keys)
        return Gaussian(*jnp.split(output, 2, axis=-1))


@dataclasses.dataclass(frozen=True)
class DiffusionChain:
    """Restriction II: q is linear Gaussian and not learned, and p is q with x̂(z_t) in place of x (lecture
    (20)).

    Attributes:
      vdm: the VDM with the γ(t) and the denoiser of the chain.
      timesteps: T, the number of latents.
    """

    vdm: Diffusion
    timesteps: int

    @property
    def shape(self):
        """The shape of a latent: that of an image, by restriction I."""
        return self.vdm.shape

    @property
    def latents(self) -> Latents:
        """The Latents of the VDM's chain of T − 1 steps."""
        return self.vdm.latents(self.timesteps - 1)

    def init(self, key, batch):
        """{"schedule": …, "net": …}: initial parameters."""
        return self.vdm.init(key, batch)

    def roles(self, params: Params) -> PyTree[Role]:
        """The role of each parameter for the optimiser."""
        return self.vdm.roles(params)

    def q_1(self, params: Params, levels: Values, keys: Keys = None) -> Gaussian:
        """q(z_1|x)."""
        return self.latents.q_1(params, {"image": levels})

    def q(self, params: Params, t: int | Array, z: Latent, keys: Keys = None) -> Gaussian:
        """q(z_t|z_{t−1}), t = 2 … T."""
        return self.latents.q(params, t, z)

    def p(self, params: Params, t: int | Array, z: Latent, keys: Keys = None) -> Gaussian:
        """p(z_{t−1}|z_t) = q(z_{t−1}|z_t, x = x̂(z_t)), t = 2 … T."""
        return self.latents.p(params, t, z, {}, layer_keys(keys, t))

    def decode(self, params: Params, z: Latent, keys: Keys = None) -> tuple[Latent, Latent]:
        """p(x|z_1), for decoder.py."""
        return z, jnp.broadcast_to(self._gamma(params, 1), z.shape)

    def matching(
        self, params: Params, levels: Values, z: Float[Array, "T batch *latent"], q: Gaussian, p: Gaussian
    ) -> tuple[Float[Array, "T_minus_one batch"], Gaussian]:
        """KL(q(z_t|z_{t+1}, x) ‖ p(z_t|z_{t+1})) for each t < T, and q(z_T|x)."""
        x = process.scale(levels, self.vdm.vocab_size)

        def posterior(t, z):
            mean, variance = process.posterior(z, x, self._gamma(params, t - 1), self._gamma(params, t))
            return Gaussian(mean, jnp.log(variance))

        q = jax.vmap(posterior)(jnp.arange(2, self.timesteps + 1), z[1:])
        mean, variance = process.marginal(x, self._gamma(params, self.timesteps))
        return jax.vmap(gaussian.kl)(q, p), Gaussian(mean, jnp.log(variance))

    def deviations(self, params: Params) -> Float[np.ndarray, "T *latent"]:
        """The smallest standard deviation of each z_t under q and p."""
        return self.latents.deviations(params)

    def _gamma(self, params, t):
        return self.vdm.gamma(params, jnp.asarray((t - 1) / (self.timesteps - 1)))
