"""A custom objective with parameters: the learned log-variance u(γ) of EDM2 (Karras et al. 2024, eq. 14).
L/e^u + u has its minimum where e^u is the mean of the loss L at that noise level, so that all levels get the
same weight.

python -m vdm.main --config=configs/digits.py --config.objective.name=examples.log_variance:LogVariance \\
    --config.model.schedule.name=fixed_linear --workdir=/tmp/log_variance
"""

import dataclasses

import jax
import jax.numpy as jnp

from vdm.contract import Ability
from vdm.objective import Objective


@dataclasses.dataclass(frozen=True)
class LogVariance(Objective):
    features: int = 64

    needs = frozenset({Ability.TIME, Ability.ONE_GAMMA, Ability.FIXED_ENDS})

    def init(self, key, batch):
        return {"slope": jnp.zeros(self.features), "phase": jax.random.uniform(key, (self.features,))}

    def __call__(self, params, draw):
        d, frequency = draw.denoising, 0.3 * jnp.linspace(0.0, 1.0, self.features)  # cycles per unit of γ
        angles = 2.0 * jnp.pi * (d.gamma[:, None] * frequency + params["phase"])
        u = jnp.cos(angles) @ params["slope"] / jnp.sqrt(self.features)
        nats = draw.terms["diffusion"] / d.x[0].size  # per value
        return draw.terms | {"diffusion": nats / jnp.exp(u) + u * d.time_weight}
