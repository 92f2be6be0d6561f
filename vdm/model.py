"""The generative models by name, and `build(config, spec)`: the one that a config describes."""

from typing import Any

from vdm.baselines.autoregressor import Autoregressor
from vdm.baselines.latent import LatentDiffusion
from vdm.baselines.mhvae import MHVAE
from vdm.baselines.naive import Naive
from vdm.baselines.vae import VAE
from vdm.component import Registry
from vdm.contract import Model
from vdm.data.dataset import Spec
from vdm.diffusion.dequantised import Dequantised
from vdm.diffusion.model import Diffusion

MODELS = Registry(
    Model,
    {
        "diffusion": Diffusion,
        "naive": Naive,
        "autoregressor": Autoregressor,
        "vae": VAE,
        "mhvae": MHVAE,
        "latent": LatentDiffusion,
        "dequantised": Dequantised,
    },
)


def build(config: Any, spec: Spec) -> Model:
    """The model that `config.model` describes, for pictures as `spec` has them.

    Raises:
      UserError: a field of config.model has a value that is not accepted.
    """
    return MODELS.find(config.model.name, "config.model.name").build(config.model, spec)
