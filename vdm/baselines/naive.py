"""The naive predictor: asked for a picture at once, it gives the average of all answers (lecture,
observation I).

It predicts the lower half of a picture from the upper one, and the upper half from nothing, each value by
itself: p(x) = Π_i p(x_i | the mean it predicts), the discretised Gaussian of decoder.py. Where that is most
likely, its mean is the conditional mean of the data: the blurred average.
"""

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm import nets
from vdm.diffusion import condition, decoder, encoder
from vdm.runtime import randomness
from vdm.errors import require


@dataclasses.dataclass(frozen=True)
class Naive:
    """A one-shot predictor; keeps the contract of model.Model.

    Attributes:
      net: of nets/: the upper half and zeros to a number for each value.
      shape: height, width and channels of a picture.
      vocab_size: integer levels of each value.
      classes: how many labels there are.
      condition: what the network is told, of condition.CONDITIONS.
    """

    net: nn.Module
    shape: tuple[int, int, int]
    vocab_size: int
    classes: int
    condition: str
    exact = True  # see model.Model.loss

    def init(self, key, batch):
        """{"net": …, "log_variance": of each value, [*shape]}: fresh parameters."""
        one = {name: value[:1] for name, value in batch.items()}
        net = self.net.init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1), self.told(one))
        return {"net": net, "log_variance": jnp.full(self.shape, math.log(0.25), jnp.float32)}

    def loss(self, params, rng, batch, train):
        """The exact −log p(x), or p(x|label) where it is told, nats [batch]: "upper" of the upper half from nothing, "lower" of the lower
        half from the upper."""
        levels = batch["image"].astype(jnp.int32)
        keys = rng.keys(randomness.DROPOUT) if train else None
        x, half = encoder.scale(levels, self.vocab_size), self.shape[0] // 2

        def nats(given, time):
            u, gamma = self.predict(params, x * given, time, self.told(batch), keys)
            return -decoder.log_prob(levels, u * encoder.alpha(gamma), gamma, self.vocab_size)

        upper, lower = nats(0.0, 0.0)[:, :half], nats(self.is_upper(), 1.0)[:, half:]
        return {"upper": jnp.sum(upper, axis=(1, 2, 3)), "lower": jnp.sum(lower, axis=(1, 2, 3))}

    def sample(self, params, rng, batch):
        """What it predicts, uint8 [batch, height, width, channels]: the average picture, its lower half
        from the average upper one. Nothing is drawn."""
        told, blank = self.told(batch), jnp.zeros((rng.index.shape[0], *self.shape))
        first = self.average(params, blank, 0.0, told)
        second = self.average(params, first * self.is_upper(), 1.0, told)
        whole = jnp.where(self.is_upper() > 0, first, second)
        return encoder.unscale(whole, self.vocab_size).astype(jnp.uint8)

    def average(self, params, given, time, told):
        """The mean of p(x | given), in [−1, 1], like `given`."""
        u, gamma = self.predict(params, given, time, told)
        logits = decoder.logits(u * encoder.alpha(gamma), gamma, self.vocab_size)
        return jax.nn.softmax(logits) @ encoder.scale(jnp.arange(self.vocab_size), self.vocab_size)

    def predict(self, params, given, time, told, keys=None):
        """The middle of each value's Gaussian, like `given`, and the log of its variance, [*shape].

        Args:
          given: [batch, height, width, channels], in [−1, 1]; 0 where nothing is given.
          time: 0.0 where nothing is given, 1.0 where the upper half is.
        """
        time = jnp.full(given.shape[:1], time)
        return self.net.apply(params["net"], given, time, told, keys), params["log_variance"]

    def is_upper(self):
        """1 for the values of the upper half, 0 for the others: [height, 1, 1]."""
        return (jnp.arange(self.shape[0]) < self.shape[0] // 2).astype(jnp.float32)[:, None, None]

    def told(self, batch):
        """What the network is told: [batch, k], or None."""
        return condition.told(self.condition, batch, self.classes)


def build(config, spec):
    """The Naive that `config` (config.model of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted, or the pictures have a single row.
    """
    condition.check(config.condition, spec)
    require(
        spec.shape[0] >= 2,
        f"config.model.name is 'naive', which predicts the lower half of a picture from the upper, but the "
        f"pictures have {spec.shape[0]} row; give other data.",
    )
    net = nets.build(config.net, spec, spec.shape[2])
    return Naive(net, tuple(spec.shape), spec.vocab_size, spec.classes, config.condition)
