"""An objective of one's own: Min-SNR (Hang et al. 2023) as a weighting of the ELBO by the log SNR, λ = −γ:
w(λ) = sech(λ/2) min(1, largest · e^−λ) (Kingma & Gao 2023, table 1), whatever the noise schedule.

python -m vdm.main --config=configs/digits.py --config.objective.name=examples.min_snr:MinSNR \\
    --config.model.schedule.name=cosine --workdir=/tmp/min_snr
"""

import dataclasses

import jax.numpy as jnp

from vdm.contract import Ability, Draw, Terms
from vdm.diffusion.objective import Objective


@dataclasses.dataclass(frozen=True)
class MinSNR(Objective):
    largest: float = 5.0  # weight of ‖x − x̂‖², which is the SNR up to here

    needs = frozenset({Ability.TIME, Ability.ONE_GAMMA, Ability.FIXED_ENDS})

    def __call__(self, draw: Draw) -> Terms:
        assert draw.gamma is not None  # Ability.TIME
        weight = jnp.minimum(1.0, self.largest * jnp.exp(draw.gamma)) / jnp.cosh(0.5 * draw.gamma)
        return draw.terms | {"diffusion": weight * draw.terms["diffusion"]}
