"""A custom parameterisation: the preconditioning of EDM (Karras et al. 2022, table 1). The network's inputs
and targets have variance 1 at every noise level s, and x̂ = c_skip y + c_out F(c_in y), y = x + s ε.

python -m vdm.main --config=configs/digits.py --config.model.parameterisation=examples.edm:EDM \\
    --config.model.parameterisation.data=0.7 --workdir=/tmp/edm
"""

import dataclasses

import jax.numpy as jnp

from vdm.component import accept
from vdm.diffusion import process
from vdm.diffusion.denoiser import Parameterisation


@dataclasses.dataclass(frozen=True)
class EDM(Parameterisation):
    data: float = 0.5  # standard deviation of x in [−1, 1]

    def check(self) -> None:
        accept("data", self.data > 0, "more than 0")

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        y, s = z_t / process.alpha(gamma), jnp.exp(0.5 * gamma)
        size = jnp.sqrt(s**2 + self.data**2)  # c_in = 1/size, c_skip = data²/size², c_out = s data/size
        return (y * s / size - self.data * net(y / size)) / size  # (y − x̂)/s, without the difference
