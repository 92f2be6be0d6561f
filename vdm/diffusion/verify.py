"""Checks, in a fraction of a second, that components do what they declare, before training and before each
evaluation. A likelihood is worthless if γ decreases, or if its slope is not its derivative.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from vdm.component import blamed
from vdm.diffusion.denoiser import Parameterisation
from vdm.diffusion.sampler import Sampler
from vdm.diffusion.schedule import Schedule, with_slope
from vdm.diffusion.times import Times
from vdm.errors import UserError, require
from vdm.runtime import devices
from vdm.runtime.randomness import Rng

NODES = 2**14  # number of values of t at which γ and its slope are compared
PARTS = 32  # number of parts of [0, 1], in each of which γ and its slope must agree
DRAWS = 2**12  # number of times drawn


def schedule(schedule: Schedule, params: PyTree) -> None:
    """Checks that γ is finite and increases, that its slope is its derivative, that its end points are those
    of the schedule's fields, and that the schedule's declarations about its parameters are true.

    Raises:
      UserError: one of these does not hold.
    """
    name = f"schedule {type(schedule).__name__}"
    shape = schedule.shape if schedule.per_value else ()
    nodes = max(2 * PARTS, min(NODES, 2**22 // math.prod(shape)) // PARTS * PARTS)

    # More nodes near both ends, where γ may be steep: t = u² (3 − 2u), with u equally spaced.
    middles = (np.arange(nodes) + 0.5) / nodes
    edges, t = (u**2 * (3.0 - 2.0 * u) for u in (np.arange(PARTS + 1) / PARTS, middles))

    def measure(params):
        gamma = lambda t: schedule.apply(params, t)
        return gamma(jnp.float32(edges)), *with_slope(gamma, jnp.float32(t))

    at, between, slope = _numbers(name, schedule, measure, params)
    for values, count in ((at, PARTS + 1), (between, nodes)):
        found = (count, *shape)
        require(
            values.shape == found,
            f"{name} gives γ of shape {list(values.shape)} at {count} times; accepted: {list(found)}, "
            f"{'a γ for each value of an image' if shape else 'one γ for each time'}, as its per_value is "
            f"{schedule.per_value}.",
        )
    for what, values, times in (("γ(t)", between, t), ("γ(t)", at, edges), ("γ'(t)", slope, t)):
        bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
        for first in bad[:1]:
            wrong = values[first].ravel()
            raise UserError(
                f"{name} gives {what} = {wrong[~np.isfinite(wrong)][0]} at t = {times[first]:.4g}; accepted: "
                "a finite number."
            )

    low, high = at[0], at[-1]
    whole = high - low
    require(
        np.all(whole > 0),
        f"{name} does not increase: γ(0) = {_mean(low):.4g} and γ(1) = {_mean(high):.4g}. γ = −log SNR must "
        "increase from data, t = 0, to noise, t = 1.",
    )
    steps = np.diff(np.concatenate([at[:1], between, at[-1:]]), axis=0)
    rounding = 1e-5 * np.max(np.abs(between))
    worst = int(np.argmin(steps.reshape(len(steps), -1).min(axis=1)))
    require(
        steps.min() >= -rounding,
        f"{name} decreases by {-steps.min():.3g} at t = {t[min(worst, nodes - 1)]:.3f}; γ = −log SNR must "
        "increase with t.",
    )
    # Compares the slope with the rise in each part. A jump has no slope, so the integral lacks its rise.
    by_u = slope * (6.0 * middles * (1.0 - middles)).reshape(-1, *(1,) * len(shape))
    added = by_u.reshape(PARTS, -1, *shape).mean(axis=1) / PARTS
    risen = np.diff(at, axis=0)
    off = np.abs(added - risen) - 0.02 * np.abs(risen) - 2e-3 * whole
    part = int(np.argmax(off.reshape(PARTS, -1).max(axis=1)))
    require(
        np.max(off) <= 0,
        f"{name} has a slope that is not its derivative, or it jumps: between t = {edges[part]:.3f} and "
        f"{edges[part + 1]:.3f} γ rises by {_mean(risen[part]):.4g}, and γ'(t) integrates to "
        f"{_mean(added[part]):.4g}.",
    )
    wanted = (schedule.gamma_min, schedule.gamma_max)
    meets = np.allclose(low, wanted[0], atol=1e-3 * whole.max()) and np.allclose(
        high, wanted[1], atol=1e-3 * whole.max()
    )
    require(
        meets or schedule.learned_ends,
        f"{name} goes from γ = {_mean(low):.4g} to {_mean(high):.4g}, but its gamma_min is {wanted[0]:.4g} "
        f"and its gamma_max {wanted[1]:.4g}; accepted: these end points, or the property learned_ends = True "
        "if they are learned.",
    )
    _declared(name, schedule, params, float(whole.mean()))


def _declared(name: str, schedule: Schedule, params: PyTree, whole: float) -> None:
    """Checks that the schedule's parameters move exactly those parts of γ that it declares."""
    times = jnp.array([0.0, 1.0, 0.3, 0.7])
    gamma = lambda params: schedule.apply(params, times).reshape(4, -1).mean(axis=1)
    by_each = (
        jax.tree.leaves(_numbers(name, schedule, jax.jacrev(gamma), params))
        if jax.tree.leaves(params)
        else []
    )
    # How far one unit of a parameter moves γ, as a share of γ(1) − γ(0). Rounding errors do not count.
    moves = lambda each, part: bool(np.abs(each[part]).max() > 1e-5 * whole)
    interior = [role.interior for role in jax.tree.leaves(schedule.roles(params))]
    ends = [moves(each, slice(0, 2)) for each in by_each]
    between = [moves(each, slice(2, 4)) for each in by_each]
    require(
        schedule.learned_ends or not any(ends),
        f"{name} has parameters that move γ(0) or γ(1), but its property learned_ends is False; accepted: "
        "True, or end points that no parameter moves.",
    )
    require(
        not schedule.learned_ends or any(ends),
        f"{name} has the property learned_ends = True, but none of its parameters moves γ(0) or γ(1); "
        "accepted: False.",
    )
    require(
        not any(end and inside for end, inside in zip(ends, interior)),
        f"{name} has parameters that move γ(0) or γ(1), for which its is_interior returns True; accepted: "
        "False for those.",
    )
    require(
        not schedule.learned_interior or any(one and inside for one, inside in zip(between, interior)),
        f"{name} has the property learned_interior = True, but none of the parameters for which its "
        "is_interior returns True moves γ between its ends; accepted: False, or a correct method "
        "is_interior.",
    )


def times(times: Times) -> None:
    """Checks that times lie in [0, 1], and that their weights are 1/q for their density q: in each eighth of
    [0, 1] the weights must sum to an eighth of the number of draws.

    Raises:
      UserError: one of these does not hold.
    """
    name = f"times {type(times).__name__}"
    rng = Rng(jax.random.key(0), jnp.arange(DRAWS), DRAWS)
    found = _numbers(name, times, lambda: times.draw(rng, times.init()))
    require(
        isinstance(found, tuple) and len(found) == 2,
        f"{name} gives {_kind(found)}; accepted: two arrays, t and 1/q(t).",
    )
    t, weight = found
    require(
        t.shape == (DRAWS,) and weight.shape in ((), (DRAWS,)),
        f"{name} gives t of shape {list(t.shape)} and 1/q(t) of {list(weight.shape)} for {DRAWS} examples; "
        f"accepted: [{DRAWS}] of both.",
    )
    weight = np.broadcast_to(weight, t.shape)
    require(
        np.all(np.isfinite(t)) and np.all((t >= 0) & (t <= 1)),
        f"{name} gives times between {t.min():.4g} and {t.max():.4g}; accepted: 0 to 1.",
    )
    require(
        np.all(np.isfinite(weight)) and np.all(weight > 0),
        f"{name} gives weights 1/q(t) between {weight.min():.4g} and {weight.max():.4g}; accepted: numbers "
        "above 0.",
    )
    for part in range(8):
        inside = (t * 8).astype(int).clip(0, 7) == part
        require(
            inside.sum() >= 4,
            f"{name} seldom or never draws a time between {part / 8} and {(part + 1) / 8}: {inside.sum()} of "
            f"{DRAWS}, so that this part of the ELBO is not trained; accepted: a positive density, for "
            "instance by a mixture with uniform times.",
        )
        share = weight * inside
        mean, se = share.mean(), share.std() / math.sqrt(DRAWS)
        require(
            abs(mean - 0.125) <= 5.0 * se + 0.005,
            f"{name} gives weights that are not 1/q(t): between t = {part / 8} and {(part + 1) / 8} they "
            f"average to {mean:.4f} ± {se:.4f}; accepted: 0.125, the integral of 1.",
        )


def sampler(sampler: Sampler) -> None:
    """Checks that z_0 is a finite float32 number for each value of z_1, for x̂ = 0.

    Raises:
      UserError: this does not hold.
    """
    name = f"sampler {type(sampler).__name__}"
    keys = jax.random.split(jax.random.key(0), 2)
    z_1, gammas = jnp.ones((2, 2, 2, 1)), jnp.linspace(-5.0, 5.0, 4)
    z_0 = _numbers(
        name, sampler, lambda: sampler.sample(lambda z, gamma: jnp.zeros_like(z), gammas, z_1, keys)
    )
    require(
        isinstance(z_0, np.ndarray) and z_0.shape == z_1.shape and z_0.dtype == np.float32,
        f"{name} gives {_kind(z_0)} for z_1 of float32 {list(z_1.shape)}; accepted: the same.",
    )
    require(np.all(np.isfinite(z_0)), f"{name} gives NaN or infinity for x̂ = 0; accepted: finite numbers.")


def parameterisation(
    parameterisation: Parameterisation, params: PyTree, shape: tuple[int, int, int], vocab_size: int
) -> None:
    """Checks that ε̂ is a finite float32 number for each value of z_t, at several γ, for a network output of
    0.

    Raises:
      UserError: this does not hold.
    """
    name = f"parameterisation {type(parameterisation).__name__}"
    channels = parameterisation.outputs(shape[2], vocab_size)
    z_t, gamma = jnp.ones((3, *shape)), jnp.array([-8.0, 0.0, 5.0]).reshape(3, 1, 1, 1)

    def net(given):
        require(
            given.ndim == 4 and given.shape[:3] == z_t.shape[:3],
            f"{name} gives the network {_kind(given)}; accepted: [{', '.join(map(str, z_t.shape[:3]))}, "
            "any].",
        )
        return jnp.zeros((*given.shape[:3], channels))

    eps_hat = _numbers(
        name,
        parameterisation,
        lambda params: parameterisation.eps_hat(net, z_t, gamma, params, vocab_size),
        params,
    )
    require(
        isinstance(eps_hat, np.ndarray) and eps_hat.shape == z_t.shape and eps_hat.dtype == np.float32,
        f"{name} gives ε̂ as {_kind(eps_hat)} for z_t of float32 {list(z_t.shape)}; accepted: the same.",
    )
    require(
        np.all(np.isfinite(eps_hat)),
        f"{name} gives an ε̂ of NaN or infinity for a network output of 0; accepted: finite numbers.",
    )


def images_apart(
    name: str,
    eps_hat: Callable[[PyTree, jax.Array, jax.Array], jax.Array],
    params: PyTree,
    shape: tuple[int, int, int],
) -> None:
    """Checks that ε̂ of an image does not depend on the other images of its batch, as then its likelihood
    would depend on them, too. Noise is added to the parameters, as initial networks may output only zeros.

    Args:
      eps_hat: (params, z, γ) → ε̂ of a batch of 3.

    Raises:
      UserError: ε̂ depends on the other images.
    """
    random = np.random.default_rng(0)

    def noisy(value):
        moves = jnp.issubdtype(value.dtype, jnp.floating)
        return value + 0.1 * random.standard_normal(value.shape).astype(value.dtype) if moves else value

    params, gamma = jax.tree.map(noisy, devices.to_host(params)), jnp.array([-3.0, 0.0, 3.0])
    z = random.standard_normal((3, *shape)).astype(np.float32)
    others = np.concatenate([z[:1], 2.0 + random.standard_normal((2, *shape)).astype(np.float32)])
    predict = jax.jit(eps_hat)
    one, other = (np.asarray(predict(params, images, gamma))[0] for images in (z, others))
    require(
        np.allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(one).max(), equal_nan=True),
        f"{name} gives an ε̂ of an image that depends on the other images of its batch, so that its "
        "likelihood would, too; accepted: a network without batch norm or another mean over axis 0.",
    )


def _numbers(name: str, part: Any, function: Callable[..., Any], *args: Any) -> Any:
    """The result of a component's function as NumPy arrays; errors become one line with the component's
    name."""
    with blamed(part, name):
        # Only these arguments are copied to the host, and the function is compiled for one device.
        return jax.tree.map(np.asarray, jax.jit(function)(*devices.to_host(args)))


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def _mean(values: Any) -> float:
    return float(np.mean(values))
