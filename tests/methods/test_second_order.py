"""The second-order term against an explicit Jacobian, and its optimum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config
from diffusion_helpers import rng, small
from vdm import objective
from vdm.diffusion import process
from vdm.errors import UserError
from vdm.methods import second_order
from vdm.runtime import randomness

P = np.array([0.5, 0.2, 0.3])
POINTS = np.array([[-0.7, 0.4], [0.6, 0.5], [0.1, -0.8]])  # three points of two values


def optimal(z, gamma):
    """E[ε|z] of the three points at one z [2]."""
    alpha, sigma = process.alpha(gamma), process.sigma(gamma)
    far = jnp.square(z - alpha * POINTS).sum(axis=1) / sigma**2
    return (z - alpha * jax.nn.softmax(jnp.log(P) - 0.5 * far) @ POINTS) / sigma


def wrong(z, gamma):
    """A function whose Jacobian is not symmetric."""
    return jnp.array([jnp.tanh(z[0] + 2.0 * z[1]) + gamma, z[1] - 0.3 * z[0] ** 2])


def test_error_is_that_of_the_whole_jacobian():
    """The mean over drawn probes agrees with the mean over all four probes; M is in float64 NumPy."""
    random, gamma = np.random.default_rng(0), jnp.float32(-0.4)
    z, eps = (jnp.asarray(random.normal(size=(3, 2)), jnp.float32) for _ in range(2))
    sigma = 1 / np.sqrt(1 + np.exp(0.4))
    wanted = []
    for one, e in zip(z, eps):
        jacobian = np.asarray(jax.jacfwd(wrong)(one, gamma), np.float64)
        off = np.asarray(wrong(one, gamma) - e, np.float64)
        m = sigma * jacobian - np.eye(2)
        probes = np.array(list(itertools.product([-1, 1], repeat=2)))
        wanted.append(np.mean([(u @ m @ u + off @ off) ** 2 for u in probes]) / 2)

    @jax.jit
    def drawn(number):
        keys = jax.random.split(jax.random.key(number), 3)
        return second_order.error(jax.vmap(lambda z: wrong(z, gamma)), z, eps, gamma, keys)

    found = np.array([drawn(number) for number in range(400)])
    error = found.std(axis=0) / 20.0
    assert np.all(np.abs(found.mean(axis=0) - wanted) < 4.0 * error + 1e-5)


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 2.0])
def test_error_has_the_mean_zero_given_z_where_the_denoiser_is_optimal(gamma):
    """E[u' M u | z] = 0 for any u: the covariance of the optimal denoiser's errors gives its Jacobian."""
    alpha, sigma = float(process.alpha(gamma)), float(process.sigma(gamma))
    for z in np.random.default_rng(1).normal(size=(5, 2)):
        far = ((z - alpha * POINTS) ** 2).sum(axis=1) / sigma**2
        posterior = np.exp(np.log(P) - 0.5 * far)
        posterior /= posterior.sum()
        off = (
            np.asarray(optimal(jnp.asarray(z, jnp.float32), gamma), np.float64) - (z - alpha * POINTS) / sigma
        )
        jacobian = np.asarray(jax.jacfwd(optimal)(jnp.asarray(z, jnp.float32), gamma), np.float64)
        mean = sigma * jacobian - np.eye(2) + np.einsum("k,ki,kj->ij", posterior, off, off)
        np.testing.assert_allclose(mean, 0.0, atol=2e-4 / sigma)


def test_gradient_is_zero_on_average_at_the_optimum_and_not_elsewhere():
    """For z drawn from q and a change of ε̂ that keeps its values, so that only its derivative matters."""
    gamma, count = jnp.float32(0.3), 100_000
    random = np.random.default_rng(2)
    x = POINTS[random.choice(3, size=count, p=P)]
    eps = jnp.asarray(random.normal(size=(count, 2)), jnp.float32)
    z = process.diffuse(jnp.asarray(x, jnp.float32), gamma, eps)
    keys = jax.random.split(jax.random.key(0), count)
    bump = lambda size, z: size * jnp.sin(2.0 * z)

    @jax.jit
    def slope(start):
        def at(size):
            function = lambda z: (
                jax.vmap(lambda z: optimal(z, gamma))(z)
                + bump(start + size, z)
                - bump(start + size, jax.lax.stop_gradient(z))
            )
            return second_order.error(function, z, eps, gamma, keys)

        return jax.jvp(at, (jnp.float32(0.0),), (jnp.float32(1.0),))[1]

    at_optimum, beside = (np.asarray(slope(jnp.float32(start)), np.float64) for start in (0.0, 0.5))
    error = at_optimum.std() / np.sqrt(count)
    assert abs(at_optimum.mean()) < 4.0 * error
    assert beside.mean() > 20.0 * error


@pytest.mark.slow
def test_objective_adds_it_and_evaluation_does_not_see_it(single):
    model, params, batch = small(**{"model.parameterisation": "v"})
    chosen = second_order.SecondOrder(0.3)
    draw = model.draw(params, rng(), batch)
    minimised = chosen(None, draw)
    assert set(minimised) == {"reconstruction", "prior", "diffusion", "second_order"} and not chosen.is_elbo
    assert "second_order" not in draw.terms
    for name, nats in draw.terms.items():
        assert minimised[name] is nats
    # The weight is that of the diffusion term: ½ γ'(t), with γ' = γ_1 − γ_0 for a linear schedule.
    slope = float(model.gamma(params, jnp.ones(())) - model.gamma(params, jnp.zeros(())))
    gamma = process.over_pixels(draw.denoising.gamma)
    eps = rng().normal(1, (4, 4, 1))
    z = process.diffuse(process.scale(batch["image"], 17), gamma, eps)
    predict = lambda z: model.eps_hat(params, z, draw.denoising.gamma, None)
    error = second_order.error(predict, z, eps, gamma, rng().keys(randomness.PROBE))
    np.testing.assert_allclose(minimised["second_order"], 0.3 * 0.5 * slope * error, rtol=2e-3)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"model.schedule.name": "multivariate"}, "needs a denoiser that predicts the noise in z_t"),
        (
            {"model.name": "diffenc", "model.encoder.name": "scaled", "model.parameterisation": "v"},
            "and a denoiser that predicts the noise in z_t",
        ),
        ({"model.schedule.name": "learned_net", "model.schedule.learn_ends": True}, "end points are not"),
        ({"objective.coefficient": -1.0}, "coefficient is -1.0; accepted: a number above 0"),
    ],
)
def test_models_without_it_are_refused(fields, said):
    config = make_config({"objective.name": "second_order"} | fields)
    model, _, _ = small(**{name: value for name, value in fields.items() if name.startswith("model")})
    with pytest.raises(UserError, match=said):
        objective.build(config.objective, model)
