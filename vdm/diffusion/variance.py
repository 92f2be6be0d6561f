"""The gradient of the ELBO's variance, out of the same backward pass as that of the ELBO itself.

In continuous time the interior of γ(t) changes no mean of the diffusion term L, so the gradient of its
variance is that of E[L²] (VDM app. I.2): E[2 L ∇L]. A backward pass for the mean of L carries
∇L of each example through the schedule's γ(t) and γ'(t); there it is multiplied by that example's
2 L. `enter` stands where γ comes out of the schedule and `leave` where L is known: going backward,
`leave` comes first, and hands 2 L to `enter` as the gradient of a slot that does nothing else.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm.parameters import Role


def apart(
    at: Callable[[PyTree], tuple[Array, ...]], params: PyTree, roles: PyTree[Role], dims: int
) -> tuple[tuple[Array, ...], Float[Array, "batch"]]:
    """at(params), through which the gradient of the schedule's interior goes by `enter`, and that of all
    else as it is; and the slot for `leave`.

    Args:
      at: the schedule's parameters to γ(t) and γ'(t), [batch, …] each.
      dims: values of a picture.
    """
    of_ends, of_interior = (at(_without(params, roles, interior)) for interior in (True, False))
    entered, slot = enter(of_interior, dims)
    # The value of either, and the gradients of both.
    return tuple(a + b - jax.lax.stop_gradient(b) for a, b in zip(of_ends, entered)), slot


def _without(params, roles, interior):
    """`params` with no gradient to its interior, or to all but its interior."""
    return jax.tree.map(
        lambda role, value: jax.lax.stop_gradient(value) if role.interior == interior else value,
        roles,
        params,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def enter(values: tuple[Array, ...], dims: int) -> tuple[tuple[Array, ...], Float[Array, "batch"]]:
    """`values`, arrays [batch, ...], as they are, and the slot for `leave`.

    After `leave` their gradient is 2 L ∇L / dims²: that of (L/dims)², (nats per dimension)²."""
    return values, jnp.zeros(values[0].shape[:1])


def _enter_forward(values, dims):
    return enter(values, dims), None


def _enter_backward(dims, _, gradients):
    values, slot = gradients
    slot /= dims**2
    return (tuple(v * slot.reshape(-1, *(1,) * (v.ndim - 1)) for v in values),)


@jax.custom_vjp
def leave(loss: Float[Array, "batch"], slot: Float[Array, "batch"]) -> Float[Array, "batch"]:
    """`loss`, nats per example, as it is; the slot of what went through `enter` gets 2 loss."""
    return loss


def _leave_forward(loss, slot):
    return loss, loss


def _leave_backward(loss, gradient):
    return gradient, 2.0 * loss


enter.defvjp(_enter_forward, _enter_backward)
leave.defvjp(_leave_forward, _leave_backward)
