"""The error of a denoiser's derivative: the second-order term of i-DODE (Zheng et al. 2023; Lu et al. 2022).

The likelihood of the probability-flow ODE depends on the divergence of ε̂, which the ELBO does not constrain.
For the optimal ε̂(z) = E[ε|z] the errors e = ε̂ − ε determine the derivative:

  σ ∇ε̂(z) = I − E[e eᵀ|z],

as ε̂ = −σ ∇ log q(z_t) and ∇² log q(z_t) = (E[e eᵀ|z] − I)/σ². So M = σ ∇ε̂ − I + e eᵀ has the mean 0, given
z.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm.component import accept
from vdm.contract import Ability
from vdm.diffusion import process
from vdm.gaussian import total
from vdm.objective import Objective
from vdm.runtime import randomness

Image = Float[Array, "batch *shape"]


@dataclasses.dataclass(frozen=True)
class SecondOrder(Objective):
    """The negative ELBO, and the error of the denoiser's derivative, to fine-tune for the likelihood of the
    probability-flow ODE (i-DODE: Zheng et al. 2023, sec. 4).

    The ELBO is their first-order flow matching under the weight of maximum likelihood:
    γ' ‖ε̂ − ε‖² = γ' α² ‖v̂ − v‖², where v is dz/dγ divided by its size, α σ/2.

    Attributes:
      coefficient: λ of the second-order term λ ½ γ'(t) (tr M)²/(d q(t)); 0.1 in the authors' code.
    """

    coefficient: float = 0.1

    needs: ClassVar[frozenset[Ability]] = frozenset(
        {Ability.TIME, Ability.PREDICTS_NOISE, Ability.FIXED_ENDS}
    )

    def check(self) -> None:
        accept("coefficient", 0 < self.coefficient < math.inf, "a number above 0")

    def __call__(self, params, draw):
        d = draw.denoising
        off = error(d.denoiser, d.z_t, d.eps, process.over_pixels(d.gamma), d.rng.keys(randomness.PROBE))
        return draw.terms | {"second_order": self.coefficient * (off * (0.5 * d.weight * d.time_weight))}


def error(
    eps_hat: Callable[[Image], Image],
    z_t: Image,
    eps: Image,
    gamma: Float[Array, "*#any"],
    keys: Key[Array, "batch"],
) -> Float[Array, "batch"]:
    """(uᵀ (σ ∇ε̂ − I) u + ‖e‖²)²/d for a random probe u of ±1, the estimator of the authors' code.

    Before the square, the mean over u is tr M. The trace of e eᵀ is computed exactly, without the probe,
    whose noise would dominate the square. No gradient flows through e: ε̂ itself is trained by the ELBO.
    """
    probe = jax.vmap(lambda key: jax.random.rademacher(key, z_t.shape[1:], z_t.dtype))(keys)
    predicted, pull = jax.vjp(eps_hat, z_t)
    (along,) = pull(probe)
    off = jax.lax.stop_gradient(predicted) - eps
    quadratic = total(probe * (process.sigma(gamma) * along - probe)) + total(jnp.square(off))
    return jnp.square(quadratic) / z_t[0].size
