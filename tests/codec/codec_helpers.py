"""Small models and images for the codec's tests."""

import types

import jax
import numpy as np

from conftest import make_config
from vdm import run as run_lib
from vdm.data.dataset import Data, Spec, in_memory
from vdm.run import Run

SPEC = Spec((4, 4, 1), 17, 10)

NET = {"model.net.name": "mlp", "model.net.depth": 1, "model.net.width": 16}
CAUSAL = {"model.net.depth": 1, "model.net.width": 16}
VECTOR = {"model.net.depth": 1, "model.net.width": 16, "model.latent": 4}
MODELS = {
    "diffusion": {**NET},
    "levels, each value its own γ": {
        **NET,
        "model.parameterisation": "categorical",
        "model.schedule.name": "multivariate",
    },
    "label": {**NET, "model.condition": "label"},
    "gaussian": {**NET, "model.parameterisation": "wiener"},
    "autoregressor": {"model.name": "autoregressor", **CAUSAL},
    "pixelcnn": {"model.name": "autoregressor", "model.net.name": "pixelcnn", **CAUSAL},
    "naive": {"model.name": "naive", **NET},
    "vae": {"model.name": "vae", **VECTOR},
    "mhvae": {"model.name": "mhvae", **NET, "model.latent": 4, "model.timesteps": 3},
    "mhvae I, II": {"model.name": "mhvae", **NET, "model.timesteps": 40, "model.restrictions": "I,II"},
    "latent": {"model.name": "latent", **NET, "model.latent": 4},
    "latent, label": {"model.name": "latent", **NET, "model.latent": 4, "model.condition": "label"},
}


def images(count, seed=0):
    """Random images, with labels."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 17, (count, *SPEC.shape)).astype(np.uint8)
    return image, random.integers(0, 10, count).astype(np.int32)


def make_run(fields, count=24, spec=SPEC):
    """(config, Run) of a model with random parameters, small enough that no latent lies far from where the
    model expects it."""
    config = make_config(fields)
    model = run_lib.build_model(config, spec)
    image, label = images(count)
    batch = {"image": image[:1], "label": label[:1], "augmented": np.zeros(1, np.float32)}
    params = jax.jit(model.init)(jax.random.key(0), batch)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.3 * np.asarray(leaf) + 0.02 * random.normal(size=leaf.shape).astype(leaf.dtype), params
    )
    split = in_memory(image, label)
    data = Data(split, split, spec)
    return config, Run(data, model, types.SimpleNamespace(step=np.int32(0), ema=params))
