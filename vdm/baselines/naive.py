"""The naive predictor: it predicts all values of an image at once, and so yields the average of all possible
images (lecture, observation I).

It predicts the lower half of an image from the upper half, and the upper half without input. The values are
independent: p(x) = Π_i p(x_i | the predicted mean), with the discretised Gaussian of decoder.py. At the
maximum likelihood, this mean is the conditional mean of the data: the blurred average.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
import numpy as np

from vdm import component, nets
from vdm.arrays import Image
from vdm.contract import Ability, Batch, Draw, Model, Params, Stages
from vdm.data.dataset import Spec
from vdm.diffusion import condition as condition_lib, decoder, process
from vdm.errors import require
from vdm.nets import Network
from vdm.parameters import Role
from vdm.runtime import randomness

Condition = Float[Array, "batch size"] | None


@dataclasses.dataclass(frozen=True)
class Naive(Model):
    """A predictor of half an image from the other half, in one pass.

    Attributes:
      net: network from the upper half, padded with zeros, to one number per value.
      shape: height, width and channels of an image.
      vocab_size: number of levels of a value.
      classes: number of labels.
      condition: what the network is conditioned on: none, label or augmented.
    """

    net: Network
    shape: tuple[int, int, int]
    vocab_size: int
    classes: int
    condition: str = "none"

    sections = {"net": "network"}

    def check(self) -> None:
        condition_lib.check(self.condition, self.classes)

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({Ability.EXACT, Ability.CODE})

    @property
    def given_label(self) -> bool:
        return self.condition == "label"

    @property
    def heavy(self) -> bool:
        return self.net.heavy

    def init(self, key, batch):
        """{"net": …, "log_variance": one per value, [*shape]}: initial parameters."""
        condition = self.condition_of({name: value[:1] for name, value in batch.items()})
        net = self.net.init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1), condition)
        return {"net": net, "log_variance": jnp.full(self.shape, math.log(0.25), jnp.float32)}

    def roles(self, params: Params) -> PyTree[Role]:
        return {"net": self.net.roles(params["net"]), "log_variance": Role()}

    def draw(self, params, rng, batch, train=False, times=None) -> Draw:
        """The exact −log p(x): "upper" is the term of the upper half, and "lower" that of the lower half
        given the upper half."""
        levels = batch["image"].astype(jnp.int32)
        keys = rng.keys(randomness.DROPOUT) if train else None
        x, half = process.scale(levels, self.vocab_size), self.shape[0] // 2

        def nats(given, time):
            u, gamma = self.predict(params, x * given, time, self.condition_of(batch), keys)
            return -decoder.log_prob(levels, u * process.alpha(gamma), gamma, self.vocab_size)

        upper, lower = nats(0.0, 0.0)[:, :half], nats(self.is_upper(), 1.0)[:, half:]
        return Draw({"upper": jnp.sum(upper, axis=(1, 2, 3)), "lower": jnp.sum(lower, axis=(1, 2, 3))})

    def sample(self, params, rng, batch):
        """The average image, with its lower half predicted from the average upper half. Nothing is drawn."""
        condition, blank = self.condition_of(batch), jnp.zeros((rng.index.shape[0], *self.shape))
        first = self.average(params, blank, 0.0, condition)
        second = self.average(params, first * self.is_upper(), 1.0, condition)
        whole = jnp.where(self.is_upper() > 0, first, second)
        return process.unscale(whole, self.vocab_size).astype(jnp.uint8)

    def average(self, params: Params, given: Image, time: float, condition: Condition) -> Image:
        """The mean of p(x | given), in [−1, 1]."""
        u, gamma = self.predict(params, given, time, condition)
        logits = decoder.logits(u * process.alpha(gamma), gamma, self.vocab_size)
        return jax.nn.softmax(logits) @ process.scale(jnp.arange(self.vocab_size), self.vocab_size)

    @property
    def stages(self) -> Stages:
        """The upper half, then the lower half."""
        first = math.prod(self.shape[1:]) * (self.shape[0] // 2)
        places = np.split(np.arange(math.prod(self.shape)), [first])

        def logits(params, condition, places, levels):
            second = (places[0] > 0).astype(jnp.float32)
            x = process.scale(levels.reshape(-1, *self.shape), self.vocab_size)
            u, gamma = self.predict(params, x * self.is_upper() * second, second, condition)
            found = decoder.logits(u * process.alpha(gamma), gamma, self.vocab_size)
            return found.reshape(x.shape[0], -1, self.vocab_size)[:, places], condition

        return Stages(places, lambda params, batch: self.condition_of(batch), logits)

    def predict(
        self, params: Params, given: Image, time: Any, condition: Condition, keys: Array | None = None
    ) -> tuple[Image, Float[Array, "height width channels"]]:
        """The centre of each value's Gaussian, and the log of its variance.

        Args:
          given: the given values, in [−1, 1], and 0 for all others.
          time: 0.0 if nothing is given, 1.0 if the upper half is.
        """
        times = jnp.full(given.shape[:1], time)
        return self.net.predict(params["net"], given, times, condition, keys), params["log_variance"]

    def is_upper(self) -> Float[Array, "height 1 1"]:
        """1 for the values of the upper half, 0 for the others."""
        return (jnp.arange(self.shape[0]) < self.shape[0] // 2).astype(jnp.float32)[:, None, None]

    def condition_of(self, batch: Batch) -> Condition:
        """The condition of the network; None without one."""
        return condition_lib.of_batch(self.condition, batch, self.classes)

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "Naive":
        """The Naive that config.model describes.

        Raises:
          UserError: a field has a value that is not accepted, or the images have a single row.
        """
        require(
            spec.shape[0] >= 2,
            "config.model.name is 'naive', which predicts the lower half of an image from the upper half, "
            f"but the images have {spec.shape[0]} row; give other data.",
        )
        net = nets.build(section.net, spec.shape, spec.vocab_size, spec.shape[2])
        made = cls(net, spec.shape, spec.vocab_size, spec.classes, section.condition)
        component.check(made, section, "config.model")
        return made
