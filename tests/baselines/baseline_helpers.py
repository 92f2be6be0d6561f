"""Random parameters of small models, for tests."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def random_parameters(model, batch):
    """Random parameters, but of q such that it is wide enough to weigh its draws."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    random = np.random.default_rng(0)

    def one(path, leaf):
        names = [getattr(key, "key", None) for key in path]
        size = 0.5 if names[0] in ("encoder", "up", "down") and "out" in names or names[0] == "prior" else 1.0
        value = random.normal(size=leaf.shape) * size / math.sqrt(max(4, *leaf.shape[:1]))
        return jnp.asarray(value + (names[-1] == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)
