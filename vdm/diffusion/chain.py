"""The chain of latents z_1 … z_T whose encoder is linear Gaussian and not learned: that of a VDM.

The lecture counts z_1 … z_T, the VDM its times from 0 to 1: z_1 is at γ(0), and z_T at γ(1).
"""

from collections.abc import Callable
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import numpy as np

from vdm.contract import Batch, Latents, Params
from vdm.diffusion import decoder, denoiser, encoder, gaussian
from vdm.diffusion.gaussian import Gaussian
from vdm.nets.layers import layer_keys
from vdm.parameters import Role

if TYPE_CHECKING:  # it imports this module
    from vdm.diffusion.model import Diffusion

Levels = Int[Array, "batch height width channels"]
Latent = Float[Array, "batch *latent"]
Keys = Array | None


@dataclasses.dataclass(frozen=True)
class Linear:
    """Restriction II: q is linear Gaussian and not learned, and p is q with x̂(z_t) for x (lecture (20)).

    Attributes:
      vdm: has γ(t) and the denoiser.
      timesteps: T.
    """

    vdm: "Diffusion"
    timesteps: int

    @property
    def shape(self):
        """Of a latent: restriction I."""
        return self.vdm.shape

    def init(self, key, batch):
        """{"schedule": …, "net": …}: fresh parameters."""
        return self.vdm.init(key, batch)

    def roles(self, params: Params) -> PyTree[Role]:
        """What each parameter is to the optimiser."""
        return self.vdm.roles(params)

    def q_1(self, params: Params, levels: Levels, keys: Keys = None) -> Gaussian:
        """q(z_1|x)."""
        return self._q_1(params, self._x(levels))

    def q(self, params: Params, t: int | Array, z: Latent, keys: Keys = None) -> Gaussian:
        """q(z_t|z_{t−1}), t = 2 … T."""
        return _with_log(encoder.transition(z, self._gamma(params, t - 1), self._gamma(params, t)))

    def p(
        self, params: Params, t: int | Array, z: Latent, keys: Keys = None, condition: Array | None = None
    ) -> Gaussian:
        """p(z_{t−1}|z_t) = q(z_{t−1}|z_t, x = x̂(z_t)), t = 2 … T."""
        gamma = self._gamma(params, t)
        each = jnp.broadcast_to(gamma, z.shape if gamma.ndim else z.shape[:1])
        eps_hat = self.vdm.eps_hat(params, z, each, condition, layer_keys(keys, t))
        return self._posterior(params, t, z, denoiser.x_from_eps(eps_hat, z, gamma))

    def decode(self, params: Params, z: Latent, keys: Keys = None) -> tuple[Latent, Latent]:
        """p(x|z_1), for decoder.py."""
        return z, jnp.broadcast_to(self._gamma(params, 1), z.shape)

    def matching(
        self, params: Params, levels: Levels, z: Float[Array, "T batch *latent"], q: Gaussian, p: Gaussian
    ) -> tuple[Float[Array, "T_minus_one batch"], Gaussian]:
        """KL(q(z_t|z_{t+1}, x) ‖ p(z_t|z_{t+1})), and q(z_T|x)."""
        x = self._x(levels)
        posterior = jax.vmap(lambda t, z: self._posterior(params, t, z, x))
        kl = jax.vmap(gaussian.kl)(posterior(jnp.arange(2, self.timesteps + 1), z[1:]), p)
        return kl, _with_log(encoder.marginal(x, self._gamma(params, self.timesteps)))

    def latents(
        self,
        mean: Callable[[Params, Batch], Latent] | None = None,
        decode: Callable[[Params, Latent], tuple[Array, Array]] | None = None,
    ) -> Latents:
        """The Latents of a VDM; or of a model that takes an image to `mean` in place of x, and has its own
        p(x|z_1)."""
        of_image = mean or (lambda params, batch: self._x(batch["image"]))
        decode = decode or self.decode
        return Latents(
            self.timesteps,
            self.shape,
            q_1=lambda params, batch: self._q_1(params, of_image(params, batch)),
            q=self.q,
            p=lambda params, t, z, batch: self.p(params, t, z, condition=self.vdm.condition_of(batch)),
            prior=lambda params: gaussian.STANDARD,
            logits=lambda params, z: decoder.logits(*decode(params, z), self.vdm.vocab_size),
            deviations=self.deviations,
        )

    def deviations(self, params: Params) -> Float[np.ndarray, "T *#latent"]:
        """The smallest standard deviation of each z_t under q and p.

        It is that of p(z_t|z_{t+1}), σ_t (1 − e^{γ_t − γ_{t+1}})^½, or that of q(z_t|z_{t−1}), which is
        σ_t (1 − e^{γ_{t−1} − γ_t})^½.
        """
        gamma = self._gamma(params, jnp.arange(1, self.timesteps + 1))
        share = jnp.sqrt(-jnp.expm1(gamma[:-1] - gamma[1:]))
        sigma = encoder.sigma(gamma)
        below, above = (sigma[part] * share for part in (slice(1, None), slice(None, -1)))
        found = sigma.at[1:].min(below).at[:-1].min(above)
        return np.asarray(found, np.float64)

    def _q_1(self, params: Params, x: Latent) -> Gaussian:
        return _with_log(encoder.marginal(x, self._gamma(params, 1)))

    def _posterior(self, params: Params, t: Any, z: Latent, x: Latent) -> Gaussian:
        """q(z_{t−1}|z_t, x)."""
        return _with_log(encoder.posterior(z, x, self._gamma(params, t - 1), self._gamma(params, t)))

    def _gamma(self, params: Params, t: Any) -> Array:
        return self.vdm.gamma(params, jnp.asarray((t - 1) / (self.timesteps - 1)))

    def _x(self, levels: Levels) -> Latent:
        return encoder.scale(levels, self.vdm.vocab_size)


def _with_log(moments):
    mean, variance = moments
    return Gaussian(mean, jnp.log(variance))
