"""Variational dequantisation of a trained VDM (Ho et al. 2019): a conditional flow q(u|x) on the cell of each
level, trained while the VDM is fixed.

The density p(z_s) of the VDM at the γ_s where its noise is as large as a cell (dequantisation.start) bounds
P(x): log P(x) ≥ E_q(u|x)[log p(z_s) − log q(z_s|x)], z_s = α_s (x + u/V). Training replaces log p(z_s) by a
lower bound (Song et al. 2021, theorem 3), with z_γ = (mean given z_s) + σ (1 − r)^½ ε from q(z_γ|z_s), r =
e^{γ_s − γ}:

  −log p(z_s) ≤ E[−log N(z_1; 0, I)] + ∫ E[½ ‖ε̂‖² − σ ∇·ε̂ + ½ σ² d] dγ.

As E[σ ∇·ε̂] = E[ε̂·ε]/(1 − r)^½, the share 1 − r of it is replaced by the right-hand side, where noise
cancels:

  r (½ ‖ε̂‖² − σ ∇·ε̂) + ½ ‖(1 − r)^½ ε̂ − ε‖² − ½ (1 − σ²) d  has the same mean.

Evaluation uses the probability-flow ODE as well.
"""

import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm import component
from vdm.arrays import Image
from vdm.component import accept
from vdm.contract import Ability, Batch, Draw, Flow, Model, Params, Random
from vdm.data.dataset import Spec
from vdm.diffusion import dequantisation, process
from vdm.diffusion.model import Diffusion
from vdm.diffusion.times import Stratified
from vdm.errors import require
from vdm.gaussian import total
from vdm.nets.conv import Conv
from vdm.parameters import Role, alike
from vdm.runtime import randomness


class Cells(nn.Module):
    """q(u|x) on (−1, 1) for each value: splines of `bins` parts map uniform numbers to u.

    The first map of a value depends on the values of x around it. Each further map changes the values of one
    colour of a checkerboard, given those of the other (Dinh et al. 2017). The initial q(u|x) is the uniform
    distribution.
    """

    layers: int
    bins: int
    width: int

    @nn.compact
    def __call__(self, x: Image, uniform: Image) -> tuple[Image, Float[Array, "batch"]]:
        """u, and log q(u|x) in nats."""
        v, log_q = uniform, jnp.zeros(len(x))
        rows, columns = x.shape[1:3]
        even = (jnp.arange(rows)[:, None] + jnp.arange(columns)) % 2 == 0
        for layer in range(self.layers):
            moved = jnp.broadcast_to(even == layer % 2, even.shape) if layer else jnp.ones_like(even)
            moved = moved[..., None]
            h = jnp.concatenate([x, jnp.where(moved, 0.0, 2.0 * v - 1.0)], axis=-1)
            for _ in range(2):
                h = nn.gelu(Conv(self.width)(h))
            heights = Conv((self.bins + 1) * x.shape[-1], kernel_init=nn.initializers.zeros)(h)
            new, log_slope = spline(v, jnp.exp(heights.reshape(*x.shape, self.bins + 1)))
            v = jnp.where(moved, new, v)
            log_q -= total(jnp.where(moved, log_slope, 0.0))
        return 2.0 * v - 1.0, log_q - math.log(2.0) * x[0].size


def spline(
    v: Float[Array, "*any"], heights: Float[Array, "*any knots"]
) -> tuple[Float[Array, "*any"], Float[Array, "*any"]]:
    """A map of (0, 1) to itself whose slope is proportional to `heights` at evenly spaced knots and linear
    between them; and the logarithm of the slope.

    The slope is continuous, as a piecewise constant slope has a discontinuous gradient where v crosses a
    knot.
    """
    bins = heights.shape[-1] - 1
    area = 0.5 * (heights[..., 1:] + heights[..., :-1]) / bins
    below = jnp.cumsum(area, axis=-1)
    whole = below[..., -1]
    part = jnp.clip(jnp.floor(v * bins).astype(jnp.int32), 0, bins - 1)[..., None]
    of = lambda values: jnp.take_along_axis(values, part, axis=-1)[..., 0]
    left, right, inside = of(heights[..., :-1]), of(heights[..., 1:]), v * bins - part[..., 0]
    out = of(below - area) + (left * inside + 0.5 * (right - left) * jnp.square(inside)) / bins
    return out / whole, jnp.log(left + (right - left) * inside) - jnp.log(whole)


@dataclasses.dataclass(frozen=True)
class Dequantised(Model):
    """A fixed VDM and a trained flow q(u|x), which draws a point in the cell of an image's levels (Ho et al.
    2019).

    Its config fields are those of Diffusion, which describe the fixed VDM, and `layers`, `bins` and `width`.
    Times are stratified, and there is no dropout, whatever the fields of the VDM say.

    Attributes:
      vdm: the fixed model.
      layers: number of maps of q(u|x).
      bins: number of parts of the splines of q(u|x).
      width: number of channels of the networks of q(u|x).
    """

    vdm: Diffusion
    layers: int = 3
    bins: int = 16
    width: int = 32

    sections = Diffusion.sections

    @classmethod
    def config_fields(cls) -> dict[str, Any]:
        return component.fields(cls) | Diffusion.config_fields()

    def check(self) -> None:
        for name in ("layers", "bins", "width"):
            accept(name, getattr(self, name) >= 1, "1 or more")

    def verify(self, params: Params) -> None:
        self.vdm.verify(params)

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({Ability.FLOW})

    @property
    def given_label(self) -> bool:
        return self.vdm.given_label

    @property
    def heavy(self) -> bool:
        return self.vdm.heavy

    @property
    def cells(self) -> Cells:
        """q(u|x)."""
        return Cells(self.layers, self.bins, self.width)

    def init(self, key, batch):
        """The parameters of the VDM, and "cells"."""
        x = jnp.zeros((1, *self.vdm.shape))
        return self.vdm.init(key, batch) | {"cells": self.cells.init(jax.random.fold_in(key, 4), x, x)}

    def fit(self, split):
        return self.vdm.fit(split)

    def roles(self, params: Params) -> PyTree[Role]:
        fixed = {name: alike(value, Role(fixed=True)) for name, value in params.items() if name != "cells"}
        return fixed | {"cells": alike(params["cells"], Role())}

    def draw_z(self, params: Params, rng: Random, batch: Batch) -> tuple[Image, Float[Array, ""], Array]:
        """z_s for a draw u of q(u|x), γ_s, and −log q(z_s|x)."""
        x = process.scale(batch["image"], self.vdm.vocab_size)
        gamma_s = self.gamma_s(params)
        keys = rng.keys(randomness.DECODE)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, self.vdm.shape))(keys)
        u, log_q = self.cells.apply(params["cells"], x, uniform)
        scale = process.alpha(gamma_s) / self.vdm.vocab_size
        z = process.alpha(gamma_s) * x + scale * u
        return z, gamma_s, math.prod(self.vdm.shape) * jnp.log(scale) - log_q

    def gamma_s(self, params: Params) -> Float[Array, ""]:
        """γ_s, at which the flow starts."""
        return dequantisation.start("variational", self.gamma(params, jnp.zeros(())), self.vdm.vocab_size)

    def draw(self, params, rng, batch, train=False, times=None) -> Draw:
        """The terms dequantisation, E[log q(z_s|x)]; prior, E[−log N(z_1)]; and diffusion, the integral,
        estimated at a drawn γ."""
        frozen = {name: jax.lax.stop_gradient(value) for name, value in params.items() if name != "cells"}
        z_s, gamma_s, nats = self.draw_z(frozen | {"cells": params["cells"]}, rng, batch)
        gamma_1 = self.gamma(frozen, jnp.ones(()))
        t, _ = Stratified().draw(rng, None)
        gamma = gamma_s + (gamma_1 - gamma_s) * t
        eps, condition = rng.normal(randomness.NOISE, self.vdm.shape), self.vdm.condition_of(batch)
        mean, variance = process.transition(z_s, gamma_s, process.over_pixels(gamma))
        predict = lambda z: self.vdm.eps_hat(frozen, z, gamma, condition)
        predicted, pull = jax.vjp(predict, mean + jnp.sqrt(variance) * eps)
        keys = rng.keys(randomness.PROBE)
        probe = jax.vmap(lambda key: jax.random.rademacher(key, self.vdm.shape, eps.dtype))(keys)
        sigma2 = process.over_pixels(jax.nn.sigmoid(gamma))
        early = process.over_pixels(jnp.exp(gamma_s - gamma))  # r
        divergence = jnp.sqrt(sigma2) * probe * pull(probe)[0]
        integrand = early * (0.5 * jnp.square(predicted) - divergence) - 0.5 * (1.0 - sigma2)
        integrand += 0.5 * jnp.square(jnp.sqrt(1.0 - early) * predicted - eps)
        mean_1, variance_1 = process.transition(z_s, gamma_s, gamma_1)
        return Draw(
            {
                "dequantisation": -nats,
                "prior": total(0.5 * (jnp.square(mean_1) + variance_1 + math.log(2.0 * math.pi))),
                "diffusion": (gamma_1 - gamma_s) * total(integrand),
            }
        )

    def gamma(self, params: Params, t: Array, condition: Array | None = None) -> Array:
        return self.vdm.gamma(params, t)

    @property
    def flow_kinds(self):
        return (*dequantisation.KINDS, "variational")

    def flow(self, params, rng, batch, kind) -> Flow:
        if kind != "variational":
            return self.vdm.flow(params, rng, batch, kind)
        z, gamma_s, nats = self.draw_z(params, rng, batch)
        of_normal = self.vdm.flow(params, rng, batch, "normal")
        return of_normal._replace(z=z, ends=(gamma_s, of_normal.ends[1]), nats=nats)

    def sample(self, params, rng, batch):
        return self.vdm.sample(params, rng, batch)

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "Dequantised":
        """The Dequantised that config.model describes.

        Raises:
          UserError: a field has a value that is not accepted.
        """
        vdm = Diffusion.build(section, spec)
        require(
            "uniform" in vdm.flow_kinds,
            "config.model.name is 'dequantised', which needs the same γ for all values of an image.",
        )
        made = cls(vdm, **{field: section[field] for field in component.fields(cls)})
        component.check(made, section, "config.model")
        return made
