"""A custom objective: a Huber loss of each value's error instead of its square, so that the few unpredictable
values count less. For errors below `delta` it is the ELBO.

python -m vdm.main --config=configs/digits.py --config.objective.name=examples.huber:Huber \\
    --config.model.schedule.name=fixed_linear --workdir=/tmp/huber
"""

import dataclasses

import optax

from vdm.component import accept
from vdm.contract import Ability
from vdm.diffusion import process
from vdm.gaussian import total
from vdm.objective import Objective


@dataclasses.dataclass(frozen=True)
class Huber(Objective):
    delta: float = 1.0  # in standard deviations of the noise

    needs = frozenset({Ability.TIME, Ability.FIXED_ENDS})

    def check(self) -> None:
        accept("delta", self.delta > 0, "more than 0")

    def __call__(self, params, draw):
        d = draw.denoising
        loss = optax.huber_loss(d.eps_hat, d.target, delta=self.delta)  # ½ (ε̂ − ε)² for small errors
        return draw.terms | {"diffusion": total(process.over_pixels(d.weight) * loss) * d.time_weight}
