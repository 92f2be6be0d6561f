"""The schedule of least variance (VDM app. I.2): its gradient comes from the same backward pass as the
ELBO's.

In continuous time the interior of γ(t) does not change the mean of the diffusion term L, so the gradient of
its variance is that of E[L²]: E[2 L ∇L]. A backward pass for the mean of L over a batch carries ∇L of each
example through γ(t) and w = γ'(t), the outputs of the schedule; there it is multiplied by 2 L. As L is linear
in w, L = w ∂L/∂w, so that L is known there, too.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
from jaxtyping import Array

from vdm.contract import Ability
from vdm.diffusion.schedule import Schedule
from vdm.gaussian import total
from vdm.objective import Objective


@dataclasses.dataclass(frozen=True)
class LeastVariance(Objective):
    """The negative ELBO for all parameters except the schedule's interior, which does not change the ELBO's
    mean and is trained to minimise the variance of the diffusion term (VDM app. I.2)."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.TIME, Ability.INTERIOR})
    is_elbo: ClassVar[bool] = True

    def draw(self, model, params, rng, batch, times):
        return super().draw(model.with_schedule(Squared), params, rng, batch, times)

    def __call__(self, params, draw):
        return draw.terms


@dataclasses.dataclass(frozen=True)
class Squared:
    """A schedule whose interior gets the gradient of the mean of (L/d)², in (nats per dimension)², where d is
    the number of values of an image; its end points get the gradient of the mean of L.

    The loss must be the mean of L over a batch, and only L may depend on γ(t) and w.
    """

    of: Schedule

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def at(self, params, t, timesteps, *given):
        roles, dims = self.of.roles(params), math.prod(self.of.shape)
        ends, interior = (
            self.of.at(_stopped(params, roles, of_interior), t, timesteps, *given)[1:]
            for of_interior in (True, False)
        )
        interior = squared(*interior, dims)
        # Both have the same values; the result has the gradients of both.
        return None, *(a + b - jax.lax.stop_gradient(b) for a, b in zip(ends, interior))


def _stopped(params, roles, interior):
    """`params` without gradients for the interior, or for all but the interior."""
    return jax.tree.map(
        lambda role, value: jax.lax.stop_gradient(value) if role.interior == interior else value,
        roles,
        params,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def squared(gamma: Array, weight: Array, dims: int) -> tuple[Array, Array]:
    """Returns γ and w, [batch] or [batch, *shape] each, unchanged; turns their gradients of the mean of L
    over the batch into those of the mean of (L/dims)²."""
    return gamma, weight


def _forward(gamma, weight, dims):
    return (gamma, weight), weight


def _backward(dims, weight, gradients):
    of_gamma, of_weight = gradients
    nats = len(weight) * total(weight * of_weight)  # L = w ∂L/∂w; the mean has divided by the batch size
    factor = (2.0 * nats / dims**2).reshape(-1, *(1,) * (weight.ndim - 1))
    return of_gamma * factor, of_weight * factor


squared.defvjp(_forward, _backward)
