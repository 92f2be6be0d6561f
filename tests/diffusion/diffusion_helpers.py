"""A small VDM with its parameters and a batch, for tests."""

import jax
import jax.numpy as jnp
import numpy as np

from conftest import make_config
from vdm import run as run_lib
from vdm.data.dataset import Spec
from vdm.runtime.randomness import Rng

SPEC = Spec((4, 4, 1), 17, 10)


def small(**fields):
    """A small VDM, some fields of its config changed, and a batch of 64 random pictures."""
    net = {"name": "mlp", "depth": 1, "width": 16, "fourier": 0, "dropout": 0.0}
    made = run_lib.build_model(
        make_config({f"model.net.{name}": value for name, value in net.items()} | fields), SPEC
    )
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 17, (64, 4, 4, 1)).astype(np.uint8),
        "label": random.integers(0, 10, 64).astype(np.int32),
        "augmented": np.zeros(64, np.float32),
    }
    return made, jax.jit(made.init)(jax.random.key(0), batch), batch


def rng(number=0, size=64):
    return Rng(jax.random.key(number), jnp.arange(size), size)
