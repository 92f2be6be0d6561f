"""The contract that every generative model keeps, and `build(config) → model`."""

from typing import Any, Protocol

import jax

from vdm.diffusion import model as diffusion_lib
from vdm.baselines import autoregressor, latent, mhvae, naive, vae
from vdm.errors import one_of, require
from vdm.runtime.randomness import Rng

Params = Any
Batch = dict[str, jax.Array]
Terms = dict[str, jax.Array]


class Model(Protocol):
    """A frozen value that holds no arrays: all state is in `params`.

    A batch is {"image": integer levels [batch, height, width, channels], "label": int32
    [batch], "augmented": float32 [batch], 1 where the image was changed}.
    """

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """Fresh parameters."""

    def loss(self, params: Params, rng: Rng, batch: Batch, train: bool) -> Terms:
        """Name of each term to nats per example, [batch]; their sum is the negative ELBO,
        or the exact negative log-likelihood where the model has one, which then tells so by
        `exact = True`. In evaluation `rng` is an rng.Spread, which draws by the same methods.
        A model whose loss is a draw of a time tells it by a method `draw` beside, as
        diffusion_lib.Diffusion does. One with latents may have log_weight(params, rng, batch): log p(x, z)/q(z|x)
        of one z drawn from q(z|x), nats [batch], for importance-weighted bounds."""

    def sample(self, params: Params, rng: Rng, batch: Batch) -> jax.Array:
        """Integer levels [batch, height, width, channels], under the labels of `batch`."""


MODELS = {
    "diffusion": diffusion_lib.build,
    "naive": naive.build,
    "autoregressor": autoregressor.build,
    "vae": vae.build,
    "mhvae": mhvae.build,
    "latent": latent.build,
}
GUIDED = ("diffusion", "latent")  # what can sample with classifier-free guidance


def build(config, spec) -> Model:
    """The model that `config.model` describes, for pictures as `spec` (data.Spec) has them.

    Raises:
      UserError: a field of config.model has a value that is not accepted.
    """
    one_of("config.model.name", config.model.name, MODELS)
    for field in ("drop_label", "guidance"):
        value = config.model[field]
        require(
            not value or config.model.name in GUIDED,
            f"config.model.{field} is {value}, but config.model.name is {config.model.name!r}; accepted for it: 0.",
        )
    return MODELS[config.model.name](config.model, spec)
