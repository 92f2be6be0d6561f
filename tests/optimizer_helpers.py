"""Models and parameters for the tests of the optimisers."""

import functools

import jax
from ml_collections import ConfigDict
import numpy as np

from conftest import make_config
from vdm import component, run as run_lib
from vdm.data import source
from vdm.data.batches import eval_batches


@functools.cache
def model_of(file="configs/digits.py", **fields):
    """The model of a config, and the shapes of its parameters."""
    config = make_config({name.replace("__", "."): value for name, value in fields.items()}, file)
    data = source.load(config.data)
    model = run_lib.build_model(config, data.spec)
    example = next(eval_batches(data.train, 1))
    return model, jax.eval_shape(model.init, jax.random.key(0), example)


def flat(tree):
    """{path: leaf}, where the paths of network parameters lack their common prefix."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path).removeprefix("net/params/"): leaf for path, leaf in leaves}


def section(name, **fields):
    cls = component.find("optimizer", name, "config.optimizer.name")
    return ConfigDict({"name": name, **cls.config_fields()} | {"warmup": 0} | fields)


def random_like(shapes, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda s: random.normal(size=s.shape).astype(np.float32), shapes)
