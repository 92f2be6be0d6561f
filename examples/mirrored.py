"""A model of your own, derived from the VDM: its ε̂ is the mean of that of an image and of its mirror image,
so that both are equally likely, as among photographs. It costs two network evaluations for one.

python -m vdm.main --config=configs/cifar10_laptop.py --config.model.name=examples.mirrored:Mirrored \\
    --config.data.data_dir=PATH --workdir=/tmp/mirrored
"""

import dataclasses

import jax.numpy as jnp

from vdm.component import choose
from vdm.diffusion.model import Diffusion


@dataclasses.dataclass(frozen=True)
class Mirrored(Diffusion):
    axis: str = "columns"  # that is turned round

    def check(self) -> None:
        super().check()
        choose("axis", self.axis, ("rows", "columns"))

    def eps_hat(self, params, z_t, gamma, condition, dropout_keys=None):
        turn = lambda z: jnp.flip(z, 1 if self.axis == "rows" else 2)
        gamma_of_mirror = turn(gamma) if gamma.ndim > 1 else gamma
        own = super().eps_hat(params, z_t, gamma, condition, dropout_keys)
        mirror = super().eps_hat(params, turn(z_t), gamma_of_mirror, condition, dropout_keys)
        return 0.5 * (own + turn(mirror))
