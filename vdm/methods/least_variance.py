"""The schedule of least variance (VDM app. I.2): its gradient out of the same backward pass as the ELBO's.

In continuous time the interior of γ(t) changes no mean of the diffusion term L, so the gradient of its
variance is that of E[L²]: E[2 L ∇L]. A backward pass for the mean of L over a batch carries ∇L of each
example through γ(t) and w = γ'(t), where these come out of the schedule; there it is multiplied by 2 L. As L
is linear in w, L = w ∂L/∂w, so that L is known there too.
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
    """The negative ELBO; but the schedule's interior, which changes no mean of it, minimises the variance of
    the diffusion term (VDM app. I.2)."""

    needs: ClassVar[frozenset[Ability]] = frozenset({Ability.TIME, Ability.INTERIOR})
    is_elbo: ClassVar[bool] = True

    def draw(self, model, params, rng, batch, times):
        return super().draw(model.with_schedule(Squared), params, rng, batch, times)

    def __call__(self, params, draw):
        return draw.terms


@dataclasses.dataclass(frozen=True)
class Squared:
    """A schedule whose interior has the gradient of the mean of (L/d)² in place of that of L, d the number of
    values of an image, nats per dimension squared; its end points have that of L.

    It is for a loss that is the mean of L over a batch, and L the only thing that γ(t) and w are used for.
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
        # The value of either, and the gradients of both.
        return None, *(a + b - jax.lax.stop_gradient(b) for a, b in zip(ends, interior))


def _stopped(params, roles, interior):
    """`params` with no gradient to its interior, or to all but its interior."""
    return jax.tree.map(
        lambda role, value: jax.lax.stop_gradient(value) if role.interior == interior else value,
        roles,
        params,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def squared(gamma: Array, weight: Array, dims: int) -> tuple[Array, Array]:
    """γ and w, [batch] or [batch, *shape] each, as they are; but where the gradient of the mean over the
    batch of L comes back, that of the mean of (L/dims)² goes on."""
    return gamma, weight


def _forward(gamma, weight, dims):
    return (gamma, weight), weight


def _backward(dims, weight, gradients):
    of_gamma, of_weight = gradients
    nats = len(weight) * total(weight * of_weight)  # L = w ∂L/∂w, and a mean has divided by the batch
    factor = (2.0 * nats / dims**2).reshape(-1, *(1,) * (weight.ndim - 1))
    return of_gamma * factor, of_weight * factor


squared.defvjp(_forward, _backward)
