"""A schedule of one's own: σ^(1/power) is linear in t, σ the noise beside a picture of size 1, e^{γ/2}
(EDM: Karras et al. 2022, eq. 5, where `power` is ρ). Between its end points it changes no mean of the ELBO.

python -m vdm.main --config=configs/digits.py --config.model.schedule.name=examples.power:Power \\
    --config.model.schedule.power=7 --workdir=/tmp/power
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.component import accept
from vdm.diffusion.schedule import Schedule


class Power(Schedule):
    power: float = 7.0

    def check(self) -> None:
        super().check()
        accept("power", self.power > 0, "more than 0")

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        low, high = (jnp.exp(gamma / (2.0 * self.power)) for gamma in (self.gamma_min, self.gamma_max))
        return 2.0 * self.power * jnp.log(low + (high - low) * t)
