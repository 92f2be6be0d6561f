"""A custom distribution of times: stratified, with the density of a Beta distribution, averaged over each
hundredth of [0, 1]. With a < 1, more times are near the data, where a photograph costs most of its bits.

python -m vdm.main --config=configs/digits.py --config.model.times=examples.beta_times:Beta \\
    --config.model.times.a=0.7 --workdir=/tmp/beta
"""

import dataclasses

import jax
import jax.numpy as jnp

from vdm.component import accept
from vdm.diffusion.times import Stratified, warp


@dataclasses.dataclass(frozen=True)
class Beta(Stratified):
    a: float = 0.8
    b: float = 1.0

    def check(self) -> None:
        for name in ("a", "b"):
            accept(name, getattr(self, name) > 0, "more than 0")

    def draw(self, rng, state):
        u, _ = super().draw(rng, state)  # uniform
        cdf = jax.scipy.special.betainc(self.a, self.b, jnp.linspace(0.0, 1.0, 101))
        return warp(u, cdf)  # t = cdf⁻¹(u), and 1/q(t)
