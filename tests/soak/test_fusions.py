"""Every estimator and the gradient of a training step are right in fully optimised programs, as users run
them, with and without XLA's fused sums (docs/guide/trust.md)."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import ROOT, make_config, perturbed
from vdm import run as run_lib
from vdm.data.batches import eval_batches
from vdm.evaluation.self_check import FLAG
from vdm.runtime.randomness import NOISE, Rng

FLAGS = pytest.mark.parametrize("flag", ["", FLAG], ids=["fused", "not fused"])
ESTIMATORS = ("evaluation/test_estimator.py", "evaluation/test_ode.py", "evaluation/test_elbo.py")


def in_a_process(flag, *tests):
    """Runs pytest on these tests, which must all pass."""
    if flag and not jax.__version__.startswith("0.10."):
        pytest.skip(f"XLA of JAX {jax.__version__} ends at a flag that it does not know")
    line = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    env = os.environ | {"XLA_FLAGS": flag, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]


@FLAGS
def test_every_estimator_is_right(flag):
    """Runs their own tests, against enumerations and closed forms in float64."""
    in_a_process(flag, *(f"tests/{name}" for name in ESTIMATORS))


@FLAGS
def test_a_training_step_is_right(flag):
    in_a_process(flag, f"{__file__}::test_gradient_against_float64")


def test_gradient_against_float64(single):
    """Of the diffusion term, for a convolutional network, at the times and noise of the draw."""
    net = {"name": "pyramid", "width": 32, "scales": 2, "depth": 1, "dropout": 0.0}
    fields = {"parameterisation": "eps", "schedule.name": "fixed_linear"}
    fields |= {f"net.{name}": value for name, value in net.items()}
    config = make_config({f"model.{name}": value for name, value in fields.items()}, "configs/digits.py")
    parts = run_lib.build(config)
    params = perturbed(parts.init().params)
    batch = next(eval_batches(parts.data.train, 16))
    rng = Rng(jax.random.key(3), jnp.arange(16), 16)

    @jax.jit
    def found(net):
        def minimised(net):
            draw = parts.model.draw(params | {"net": net}, rng, batch)
            return jnp.mean(draw.terms["diffusion"]), draw.denoising.t

        return jax.value_and_grad(minimised, has_aux=True)(net)

    (loss, t), gradient = found(params["net"])
    low, high = config.model.schedule.gamma_min, config.model.schedule.gamma_max
    gamma = low + (high - low) * np.asarray(t, np.float64)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(s * gamma)))[:, None, None, None] for s in (1, -1))
    x = 2 * (np.asarray(batch["image"], np.float64) + 0.5) / 17 - 1
    eps = np.asarray(rng.normal(NOISE, (8, 8, 1)), np.float64)
    with jax.enable_x64(True):
        net = parts.model.net.clone(dtype="float64")

        @jax.jit
        def in_float64(params, z_t, time):
            def minimised(params):
                error = eps - z_t - net.apply(params, z_t, time)
                return 0.5 * (high - low) * jnp.mean(jnp.sum(error**2, axis=(1, 2, 3)))

            return jax.value_and_grad(minimised)(params)

        doubled = jax.tree.map(np.float64, params["net"])
        want, expected = jax.device_get(
            in_float64(doubled, alpha * x + sigma * eps, np.asarray(t, np.float64))
        )
    assert loss == pytest.approx(want, rel=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5 * np.abs(other).max(), rtol=0)
