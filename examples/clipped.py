"""A custom model: a VDM whose denoiser clips x̂ to the range of the data, as DDPM's sampler does.

python -m vdm.main --config=configs/digits.py --config.model.name=examples.clipped:Clipped \\
    --config.model.parameterisation=v --config.model.limit=0.95 --workdir=/tmp/clipped
"""

import dataclasses

import jax.numpy as jnp

from vdm.component import accept
from vdm.diffusion import denoiser, process
from vdm.diffusion.model import Diffusion


@dataclasses.dataclass(frozen=True)
class Clipped(Diffusion):
    """Attributes:
    limit: largest absolute value in x̂.
    """

    limit: float = 1.0

    def check(self) -> None:
        super().check()
        accept("limit", self.limit > 0, "more than 0")

    def eps_hat(self, params, z_t, gamma, condition, dropout_keys=None):
        eps_hat = super().eps_hat(params, z_t, gamma, condition, dropout_keys)
        gamma = process.over_pixels(gamma)
        x_hat = jnp.clip(denoiser.x_from_eps(eps_hat, z_t, gamma), -self.limit, self.limit)
        return denoiser.eps_from_x(x_hat, z_t, gamma)
