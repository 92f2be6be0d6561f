"""Every schedule keeps its end points, increases, and has the slope that `with_slope` gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm import component
from vdm.component import Refused
from vdm.diffusion.schedule import LearnedLinear, with_slope

LOW, HIGH = -13.3, 5.0
CASES = [("fixed_linear", False), ("learned_linear", False)]
PUBLISHED = ["cosine", "linear_beta", "sigmoid", "polynomial"]
CASES += [(name, False) for name in (*PUBLISHED, "multivariate")]
CASES += [(name, ends) for name in ("learned_net", "piecewise") for ends in (False, True)]


def made(name, learn_ends, seed=0):
    """A schedule and its initial parameters."""
    fields = {"learn_ends": True} if learn_ends else {}
    module = component.find("schedule", name, "name")(
        shape=(2, 2, 1), gamma_min=LOW, gamma_max=HIGH, **fields
    )
    return module, jax.jit(module.init)(jax.random.key(seed), jnp.zeros(1))


def pushed(name, params, seed):
    far = 10.0 if name == "multivariate" else 1.0  # its parameters are scaled by 0.1
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(100 + seed), max(1, len(leaves)))
    return tree.unflatten([v + far * jax.random.normal(k, v.shape) for k, v in zip(keys, leaves)])


@pytest.mark.parametrize("name, learn_ends", CASES)
def test_starts_at_the_given_ends(name, learn_ends):
    module, params = made(name, learn_ends)
    ends = jax.jit(module.apply)(params, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends[0], LOW, atol=1e-5)
    np.testing.assert_allclose(ends[1], HIGH, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name, learn_ends", CASES)
def test_increases_and_keeps_ends_that_are_not_learned(name, learn_ends, seed):
    module, params = made(name, learn_ends, seed)
    params = pushed(name, params, seed)
    gamma = jax.jit(module.apply)(params, jnp.linspace(0, 1, 101))
    assert np.all(np.diff(gamma, axis=0) > 0)
    if name != "learned_linear" and not learn_ends:
        np.testing.assert_allclose(gamma[0], LOW, atol=1e-5)
        np.testing.assert_allclose(gamma[-1], HIGH, atol=1e-5)
    else:
        assert abs(float(gamma[0]) - LOW) > 1e-3


@pytest.mark.parametrize("name, learn_ends", CASES)
def test_slope_against_finite_differences(name, learn_ends):
    module, params = made(name, learn_ends)
    params = pushed(name, params, 0)
    t = jnp.linspace(0.0625, 0.9625, 10)  # between the corners of a piecewise schedule
    at = jax.jit(lambda t: module.apply(params, t))
    gamma, slope = jax.jit(lambda t: with_slope(at, t))(t)
    np.testing.assert_allclose(gamma, at(t), rtol=1e-6, atol=2e-6)

    def rise(h):
        return (at(t + h) - at(t - h)) / (2 * h)

    near = (4 * rise(0.005) - rise(0.01)) / 3  # cancels the error in h²
    np.testing.assert_allclose(slope, near, rtol=2e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules_are_what_their_papers_say(name):
    """α² in float64 NumPy by the papers' definitions. Bisection finds the paper's times at which γ has the
    end points; between them, γ is the paper's at linearly interpolated times."""

    def alpha2(s):
        if name == "cosine":
            return np.cos(0.5 * np.pi * s) ** 2
        if name == "sigmoid":
            low, here, high = (1 / (1 + np.exp(-b)) for b in (-3.0, 6.0 * s - 3.0, 3.0))
            return (high - here) / (high - low)
        if name == "polynomial":
            return (1.0 - s**2) ** 2
        grid = np.linspace(0.0, s, 20_001)  # exp(−∫β), the integral by the trapezoidal rule
        return np.exp(-np.trapezoid(0.1 + 19.9 * grid, grid))

    def gamma(s):
        return np.log((1.0 - alpha2(s)) / alpha2(s))

    def time_of(wanted):
        low, high = 1e-7, 1.0 - 1e-9
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if gamma(middle) < wanted else (low, middle)
        return low

    module, params = made(name, False)
    first, last = time_of(LOW), time_of(HIGH)
    for t in (0.1, 0.5, 0.9):
        expected = gamma(first + (last - first) * t)
        assert float(module.apply(params, jnp.float32(t))) == pytest.approx(expected, abs=1e-3)


RATES = [("linear_beta", "fast", 0.1), ("linear_beta", "slow", -1.0), ("sigmoid", "steep", 0.0)]


@pytest.mark.parametrize(("name", "field", "value"), RATES)
def test_rates_that_do_not_rise_are_refused(name, field, value):
    with pytest.raises(Refused, match=f"{field}.*more"):
        dataclasses.replace(made(name, False)[0], **{field: value}).check()


def test_a_learned_line_rises_whatever_the_sign_of_its_width():
    line = LearnedLinear(shape=(1, 1, 1), gamma_min=-3.0, gamma_max=5.0)
    params = {"params": {"start": jnp.float32(-2.0), "width": jnp.float32(-4.0)}}
    np.testing.assert_allclose(line.apply(params, jnp.array([0.0, 0.5, 1.0])), [-2.0, 0.0, 2.0])
