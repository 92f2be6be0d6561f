"""The autoregressor: predicts one value of a picture from all before it (lecture, "predicting a pixel").

p(x) = Π_i p(x_i | x_1 … x_{i−1}), the values in raster order: row, column, channel. Each factor is a
distribution over the levels of a value, so the likelihood is exact, and nothing is averaged: a drawn level
is always a level (lecture, observation II).
"""

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm import nets
from vdm.diffusion import condition
from vdm.runtime import randomness
from vdm.errors import one_of
from vdm.nets import causal


@dataclasses.dataclass(frozen=True)
class Autoregressor:
    """A causal network over the values of a picture; keeps the contract of model.Model.

    Attributes:
      net: a causal.Causal.
      shape: height, width and channels of a picture.
      classes: how many labels there are.
      condition: what the network is told, of condition.CONDITIONS.
    """

    net: nn.Module
    shape: tuple[int, int, int]
    classes: int
    condition: str
    exact = True  # see model.Model.loss

    def init(self, key, batch):
        """{"net": …}: fresh parameters, under which every picture is as likely as any other."""
        levels = jnp.zeros((1, math.prod(self.shape)), jnp.int32)
        told = self._told({name: value[:1] for name, value in batch.items()})
        return {"net": self.net.init(key, levels, told)}

    def loss(self, params, rng, batch, train):
        """"likelihood": the exact −log p(x), or p(x|label) where it is told, nats [batch]. Nothing but dropout is drawn."""
        keys = rng.keys(randomness.DROPOUT) if train else None
        levels = batch["image"].astype(jnp.int32).reshape(-1, math.prod(self.shape))
        logits = self.net.apply(params["net"], levels, self._told(batch), keys)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), levels[..., None], axis=-1)
        return {"likelihood": -jnp.sum(log_p, axis=(1, 2))}

    def sample(self, params, rng, batch):
        """Samples, uint8 [batch, height, width, channels], drawn value after value: one token goes through
        the network at a time, and keys and values of those before it are kept."""
        told, keys = self._told(batch), rng.keys(randomness.DECODE)
        # Unrolled, XLA would copy what is kept of every layer in each step.
        net = self.net.clone(unroll=False)

        def draw(carry, at):
            level, kept = carry
            logits, kept = net.apply(params["net"], level, kept, at, told, method="step")
            here = jax.vmap(jax.random.fold_in, (0, None))(keys, at)
            level = jax.vmap(jax.random.categorical)(here, logits)
            return (level, kept), level

        start = jnp.zeros(keys.shape, jnp.int32), net.nothing(keys.shape[0])
        _, levels = jax.lax.scan(draw, start, jnp.arange(math.prod(self.shape)))
        return levels.T.reshape(-1, *self.shape).astype(jnp.uint8)

    def _told(self, batch):
        return condition.told(self.condition, batch, self.classes)


def build(config, spec):
    """The Autoregressor that `config` (config.model of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    condition.check(config.condition, spec)
    one_of("config.model.net.name", config.net.name, ("transformer",))
    nets.check(config.net)
    net = causal.Causal(
        tokens=math.prod(spec.shape),
        vocab_size=spec.vocab_size,
        depth=config.net.depth,
        width=config.net.width,
        dropout=config.net.dropout,
        heads=config.net.heads,
        dtype=jnp.dtype(config.net.dtype),
        remat=config.net.remat,
        unroll=jax.default_backend() == "cpu",  # as in nets.build
    )
    return Autoregressor(net, tuple(spec.shape), spec.classes, config.condition)
