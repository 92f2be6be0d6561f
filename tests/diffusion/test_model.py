"""The model as a whole: depth, times, the signs of its gradients, parameterisations and conditions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import slow
from diffusion_helpers import rng, small


@functools.cache
def diffusion_term(**fields):
    """The diffusion term's mean over the batch and 300 draws, with its standard error."""
    made, params, batch = small(**{f"model.{name}": value for name, value in fields.items()})

    def one(number):
        times = lambda rng: made.times.draw(rng, None)
        return made.draw(params, rng(number), batch, times=times).terms["diffusion"].mean()

    found = np.asarray(jax.jit(lambda: jax.lax.map(one, jnp.arange(300)))(), np.float64)
    return found.mean(), found.std(ddof=1) / np.sqrt(300)


def test_finite_depth_loss_approaches_continuous_time():
    """T = 2000 agrees with T = 0 within error bars, for a denoiser that is not optimal."""
    continuous, deep, shallow = (
        diffusion_term(**depth) for depth in ({}, {"timesteps": 2000}, {"timesteps": 5})
    )
    (a, se_a), (b, se_b) = continuous, deep
    assert abs(a - b) < 4 * np.hypot(se_a, se_b) + 0.005 * a
    assert shallow[0] > a + 10 * np.hypot(se_a, shallow[1])


def test_stratified_and_independent_times_have_one_mean():
    stratified, independent = diffusion_term(), diffusion_term(times="iid")
    assert abs(stratified[0] - independent[0]) < 4 * np.hypot(stratified[1], independent[1])
    assert stratified[1] < independent[1]


def test_gradient_of_the_end_points_has_the_right_sign():
    """A wider range of γ raises the diffusion term, a lower γ_0 lowers the reconstruction, and a higher γ_1
    lowers the prior. The gradient agrees with finite differences on the same noise."""
    made, params, batch = small(**{"model.schedule.gamma_min": -4.0, "model.schedule.gamma_max": 2.0})

    def terms(start, width):
        changed = {**params, "schedule": {"params": {"start": start, "width": width}}}
        return {name: nats.mean() for name, nats in made.draw(changed, rng(), batch).terms.items()}

    gradient = jax.jit(jax.jacrev(terms, argnums=(0, 1)))(-4.0, 6.0)
    start, width = gradient["reconstruction"]
    assert start > 0 and width == 0
    start, width = gradient["prior"]
    assert start < 0 and width < 0
    start, width = gradient["diffusion"]
    assert width > 0
    h, at = 1e-2, jax.jit(terms)
    up, down = at(-4.0 + h, 6.0), at(-4.0 - h, 6.0)
    for name in ("reconstruction", "prior", "diffusion"):
        numeric = (up[name] - down[name]) / (2 * h)
        np.testing.assert_allclose(gradient[name][0], numeric, rtol=2e-2, atol=1e-2)


def test_fixed_end_points_get_no_gradient_from_a_learned_interior():
    made, params, _ = small(**{"model.schedule.name": "learned_net"})

    def ends(schedule):
        return made.gamma({**params, "schedule": schedule}, jnp.array([0.0, 1.0]))

    jacobian = jax.jit(jax.jacobian(ends))(params["schedule"])
    for leaf in jax.tree.leaves(jacobian):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-4)


@pytest.mark.parametrize("parameterisation", ["eps", slow("x"), slow("v"), "categorical"])
def test_every_parameterisation_trains_and_samples(parameterisation):
    made, params, batch = small(**{"model.parameterisation": parameterisation, "model.sample_steps": 5})
    loss = lambda p: sum(t.mean() for t in made.draw(p, rng(), batch, train=True).terms.values())
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    samples = jax.jit(lambda: made.sample(params, rng(size=3), {k: v[:3] for k, v in batch.items()}))()
    assert samples.shape == (3, 4, 4, 1) and samples.dtype == np.uint8 and samples.max() < 17


@pytest.mark.parametrize("condition", ["label", "augmented"])
def test_labels_and_flags_reach_the_denoiser(condition):
    made, params, batch = small(**{"model.condition": condition})
    params = jax.tree.map(lambda v: v + 0.1, params)
    other = {**batch, "label": (batch["label"] + 1) % 10, "augmented": batch["augmented"] + 1}
    term = jax.jit(lambda batch: made.draw(params, rng(), batch).terms["diffusion"])
    assert np.abs(term(other) - term(batch)).max() > 1e-3
