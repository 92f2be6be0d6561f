"""Random parameters for small models, and importance-weighted bounds on a grid, for tests."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def random_parameters(model, batch):
    """Random parameters, with the output of q scaled down so that q is wide enough for importance weights."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    random = np.random.default_rng(0)

    def one(path, leaf):
        names = [getattr(key, "key", None) for key in path]
        size = 0.5 if names[0] in ("encoder", "up", "down") and "out" in names or names[0] == "prior" else 1.0
        value = random.normal(size=leaf.shape) * size / math.sqrt(max(4, *leaf.shape[:1]))
        return jnp.asarray(value + (names[-1] == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, shapes)


def importance_bounds(log_w):
    """E[log of the mean of K weights] for K = 1, 5 and 50, with standard errors: [K, 2]."""
    found = [np.log(np.exp(log_w).reshape(-1, k).mean(axis=1)) for k in (1, 5, 50)]
    return np.array([(log.mean(), log.std() / math.sqrt(len(log))) for log in found])


def bounds_of_grid(log_q, log_joint, count):
    """The same bounds from `count` draws of q in NumPy, given log q(z|x) and log p(x, z) on a grid."""
    q = np.exp(log_q).ravel()
    drawn = np.random.default_rng(0).choice(q.size, count, p=q / q.sum())
    return importance_bounds((log_joint - log_q).ravel()[drawn])


def assert_bounds_agree(found, want, log_p):
    """The bounds rise with K from the ELBO towards log p(x), and agree with those from the grid."""
    assert np.all(np.diff(found[:, 0]) > 0)
    assert np.all(np.abs(found[:, 0] - want[:, 0]) < 4.0 * np.hypot(found[:, 1], want[:, 1]))
    assert found[-1, 0] < log_p + 4.0 * found[-1, 1]
