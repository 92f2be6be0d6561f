"""A custom optimiser: Lion, whose steps have a fixed size and the sign of the momentum (Chen et al. 2023). It
needs a learning rate three to ten times smaller than AdamW, and a weight decay larger by the same factor.

python -m vdm.main --config=configs/digits.py --config.optimizer.name=examples.lion:Lion \\
    --config.optimizer.learning_rate=5e-4 --config.optimizer.weight_decay=0.1 --workdir=/tmp/lion
"""

import dataclasses

from jaxtyping import PyTree
import optax

from vdm.optimizer import Optimizer, Rate, decayed
from vdm.parameters import Role


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    b1: float = 0.9
    b2: float = 0.99

    def updates(self, rate: Rate, roles: PyTree[Role]) -> optax.GradientTransformation:
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=decayed(roles))
