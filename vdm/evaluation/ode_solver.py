"""The probability-flow ODE: the density of z_0 under a denoiser, by the change of variables.

Pure functions of arrays.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from vdm.diffusion import process
from vdm.diffusion.importance_weights import of_each
from vdm.diffusion.schedule import with_slope
from vdm.gaussian import STANDARD, log_prob, total

# (z [batch, …], γ [batch] or of each value, condition) → ε̂ [batch, …].
EpsHat = Callable[[Array, Array, Any], Array]

MAX_STEPS = 10_000  # largest number of solver steps for one image


def velocity(
    eps_hat: EpsHat,
    z: Float[Array, "batch *shape"],
    gamma: Float[Array, "*#batch_and_shape"],
    condition: Any,
    slope: Any = 1.0,
) -> Float[Array, "batch *shape"]:
    """dz/ds = ½ γ' σ (ε̂ − σ z), where γ' is `slope`, dγ/ds, which may differ between the values of an image.

    Song et al. 2021, eq. 13, for dα/dγ = −½ α σ² and dσ/dγ = ½ σ α².
    """
    sigma = process.sigma(gamma)
    return 0.5 * slope * sigma * (eps_hat(z, of_each(gamma, z), condition) - sigma * z)


def flow_log_density(
    eps_hat: EpsHat,
    z_0: Float[Array, "batch *shape"],
    condition: Any,
    ends: tuple[Any, Any],
    keys: Key[Array, "batch"],
    nodes: int,
    tolerance: float,
    exact_divergence: bool,
    curve: Callable[[Array, Any], Array] | None = None,
) -> dict[str, Array]:
    """log p_0(z_0) under the flow that takes N(0, I) at γ_1 to γ_0.

    log p_0(z_0) = log N(z_1; 0, I) + ∫ div ds over the path of z_0 (Chen et al. 2018), where s is γ itself,
    or the time on which the γ of each value depends. Tsit5 solves the path, with separate steps for each
    image that keep the local error in z within `tolerance`, relative or absolute. Clenshaw–Curtis quadrature
    on the path computes the integral, so the divergence is needed only at the nodes.

    Args:
      condition: the condition of each example, an array or a tree of arrays.
      ends: γ_0 and γ_1, or their times if there is a `curve`.
      keys: one for each example, for the probes.
      nodes: n, the number of intervals of the quadrature, a multiple of 4; the coarser rule has n/2.
      exact_divergence: whether to compute the divergence as the trace of the whole Jacobian. Otherwise it is
        Hutchinson's estimate with a fresh ±1 probe at each node, which leaves log p_0 unbiased.
      curve: (time, condition of one example) → γ of each of its values.

    Returns:
      "log_density": in nats, [batch]. "steps": number of steps, [batch]. "quadrature": absolute difference
      from the rule with half the nodes, in nats, [batch]; it estimates the error, which can be larger.
    """
    points, weights = clenshaw_curtis(nodes)
    low, high = ends
    places = low + (high - low) * jnp.asarray(points, jnp.float32)
    path, steps = _solve_path(eps_hat, z_0, condition, places, tolerance, curve)

    def divergence(args):
        i, place, z = args
        gamma, slope = place, 1.0
        if curve is not None:
            of_each = jax.vmap(
                lambda condition: with_slope(lambda t: curve(t, condition), place), axis_size=len(z_0)
            )
            gamma, slope = of_each(condition)
        _, pull = jax.vjp(lambda z: velocity(eps_hat, z, gamma, condition, slope), z)
        if exact_divergence:
            return _trace(pull, z.shape)

        def probe_of(key):
            return jax.random.rademacher(jax.random.fold_in(key, i), z.shape[1:], z.dtype)

        probe = jax.vmap(probe_of)(keys)
        return total(probe * pull(probe)[0])

    divergences = jax.lax.map(divergence, (jnp.arange(nodes + 1), places, path))
    fine = (high - low) * jnp.tensordot(jnp.asarray(weights, jnp.float32), divergences, 1)
    half = jnp.asarray(clenshaw_curtis(nodes // 2)[1], jnp.float32)
    coarse = (high - low) * jnp.tensordot(half, divergences[::2], 1)
    return {
        "log_density": log_prob(STANDARD, path[-1]) + fine,
        "steps": steps,
        "quadrature": jnp.abs(coarse - fine),
    }


def _solve_path(
    eps_hat: EpsHat,
    z_0: Float[Array, "batch *shape"],
    condition: Any,
    places: Float[Array, "nodes"],
    tolerance: float,
    curve: Callable[[Array, Any], Array] | None,
) -> tuple[Float[Array, "nodes batch *shape"], Int[Array, "batch"]]:
    """z along the flow from z_0 at each place, and the number of steps of each image."""
    import diffrax  # imported late: the import takes half a second, and training imports this file

    def one(z, condition):
        one_condition = jax.tree.map(lambda value: value[None], condition)

        def field(place, z, _):
            gamma, slope = (place, 1.0) if curve is None else with_slope(lambda t: curve(t, condition), place)
            return velocity(eps_hat, z[None], gamma, one_condition, slope)[0]

        term = diffrax.ODETerm(field)
        solution = diffrax.diffeqsolve(
            term,
            diffrax.Tsit5(),
            places[0],
            places[-1],
            None,  # the solver chooses the first step
            z,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            saveat=diffrax.SaveAt(ts=places),
            max_steps=MAX_STEPS,
            throw=False,  # unreached values are inf; the caller checks the number of steps
        )
        return solution.ys, solution.stats["num_steps"]

    return jax.vmap(one, out_axes=(1, 0))(z_0, condition)


def _trace(pull, shape: tuple[int, ...]) -> Float[Array, "batch"]:
    """The trace of a linear map that acts on each example separately, from its transpose."""
    size = math.prod(shape[1:])

    def entry(i):
        unit = jax.nn.one_hot(i, size).reshape(1, *shape[1:])
        (row,) = pull(jnp.broadcast_to(unit, shape))
        return row.reshape(shape[0], size)[:, i]

    return jnp.sum(jax.lax.map(entry, jnp.arange(size)), axis=0)


def clenshaw_curtis(n: int) -> tuple[Float[np.ndarray, "n_and_one"], Float[np.ndarray, "n_and_one"]]:
    """The points (1 − cos(πj/n))/2 of [0, 1] for even n, and their weights, in float64.

    The rule is exact for polynomials up to degree n. Every other point is a point of the rule for n/2.
    """
    j = np.arange(n + 1)
    points = 0.5 * (1.0 - np.cos(np.pi * j / n))
    even = np.arange(0, n + 1, 2)  # the integral of cos(kθ) sin(θ)/2 over [0, π] is 1/(1 − k²)
    ends = np.where((j == 0) | (j == n), 0.5, 1.0)
    terms = np.where((even == 0) | (even == n), 0.5, 1.0) / (1.0 - even**2)
    weights = (2.0 / n) * ends * (np.cos(np.pi * np.outer(j, even) / n) @ terms)
    return points, weights
