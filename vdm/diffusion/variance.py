"""The gradient of the ELBO's variance, out of the same backward pass as that of the ELBO itself.

In continuous time the interior of γ(t) changes no mean of the diffusion term L, so the gradient of its
variance is that of E[L²] (VDM app. I.2): E[2 L ∇L]. A backward pass for the mean of L carries
∇L of each example through the schedule's γ(t) and γ'(t); there it is multiplied by that example's
2 L. `enter` stands where γ comes out of the schedule and `leave` where L is known: going backward,
`leave` comes first, and hands 2 L to `enter` as the gradient of a slot that does nothing else.
"""

import functools

import jax
import jax.numpy as jnp


def split(params):
    """The parameters of a schedule twice: with no gradient but to those named "ends", and with no
    gradient to these."""

    def without(chosen):
        def one(path, value):
            ends = jax.tree_util.DictKey("ends") in path
            return jax.lax.stop_gradient(value) if ends == chosen else value

        return jax.tree_util.tree_map_with_path(one, params)

    return without(False), without(True)


@jax.custom_vjp
def enter(values):
    """`values`, a tuple of arrays [batch, ...], as they are, and the slot for `leave`, [batch]."""
    return values, jnp.zeros(values[0].shape[:1])


def _enter_forward(values):
    return enter(values), None


def _enter_backward(_, gradients):
    values, slot = gradients
    return (tuple(v * slot.reshape(-1, *(1,) * (v.ndim - 1)) for v in values),)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def leave(loss, slot, dims):
    """`loss` [batch], nats per example, as it is. For what went through `enter` the gradient
    becomes 2 loss ∇loss / dims²: that of (loss/dims)², (nats per dimension)²."""
    return loss


def _leave_forward(loss, slot, dims):
    return loss, loss


def _leave_backward(dims, loss, gradient):
    return gradient, 2.0 * loss / dims**2


enter.defvjp(_enter_forward, _enter_backward)
leave.defvjp(_leave_forward, _leave_backward)
