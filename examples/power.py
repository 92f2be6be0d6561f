"""A custom schedule with a learned parameter: σ^(1/power) is linear in t, where σ = e^{γ/2} is the noise
relative to an image of scale 1 (EDM: Karras et al. 2022, eq. 5; their ρ = 7 is `power`). The end points are
fixed, so `power` does not change the mean of the ELBO and can be learned to minimise its variance.

python -m vdm.main --config=configs/digits.py --config.model.schedule.name=examples.power:Power \\
    --config.objective.name=least_variance --workdir=/tmp/power
"""

from flax import linen as nn
import jax.numpy as jnp

from vdm.component import accept
from vdm.diffusion.schedule import Schedule


class Power(Schedule):
    power: float = 7.0  # its initial value

    learned_interior = True

    def check(self) -> None:
        super().check()
        accept("power", self.power > 0, "more than 0")

    def is_interior(self, names):
        return True

    @nn.compact
    def __call__(self, t):
        power = self.power * jnp.exp(self.param("log_power", nn.initializers.zeros, ()))
        low, high = (jnp.exp(gamma / (2.0 * power)) for gamma in (self.gamma_min, self.gamma_max))
        return 2.0 * power * jnp.log(low + (high - low) * t)
