"""The sums of an evaluation are compared with float64, and a wrong one is refused."""

import jax
import jax.numpy as jnp
import pytest

from vdm.errors import UserError
from vdm.evaluation import self_check

SHAPE = (16, (8, 8, 1), 17)


@pytest.fixture
def optimised():
    """Optimised compilation, as for users' programs; the other tests disable it (conftest.py)."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    self_check.require_right_sums.cache_clear()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    self_check.require_right_sums.cache_clear()


@pytest.mark.parametrize("case", [SHAPE, (4, (32, 32, 3), 256), (3, (1, 1, 16), 2), (2000, (1, 1, 1), 2)])
def test_right_sums_agree_to_float32(case, optimised):
    _, error = self_check.worst(*case)
    assert error < 3e-6
    self_check.require_right_sums(*case)


BROKEN = {
    "the diffusion term": ("total", lambda right: lambda values: 1.008 * right(values)),
    "the density of a normal distribution": ("log_prob", lambda right: lambda p, z: right(p, z) * jnp.nan),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sum_is_refused_with_the_flag(name, optimised, monkeypatch):
    what, broken = BROKEN[name]
    monkeypatch.setattr(self_check, what, broken(getattr(self_check, what)))
    with pytest.raises(UserError, match=f"{name} has a relative error .* XLA_FLAGS={self_check.FLAG} in"):
        self_check.require_right_sums(*SHAPE)
