"""The autoregressor: predicts each value of an image from all values before it (lecture, "predicting a
pixel").

p(x) = Π_i p(x_i | x_1 … x_{i−1}), with the values in raster order: row, column, channel. Each factor is a
distribution over the levels of a value, so the likelihood is exact, and a sample is never an average: each
drawn value is one of the levels (lecture, observation II).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
import numpy as np

from vdm import component
from vdm.contract import Ability, Draw, Model, Params, Stages
from vdm.data.dataset import Spec
from vdm.diffusion import condition as condition_lib
from vdm.nets.causal import Causal
from vdm.parameters import Role
from vdm.runtime import devices, randomness


@dataclasses.dataclass(frozen=True)
class Autoregressor(Model):
    """A causal network over the values of an image.

    Attributes:
      net: the causal network.
      shape: height, width and channels of an image.
      classes: number of labels.
      condition: what the network is conditioned on: none, label or augmented.
    """

    net: Causal
    shape: tuple[int, int, int]
    classes: int
    condition: str = "none"

    sections = {"net": "causal network"}

    def check(self) -> None:
        condition_lib.check(self.condition, self.classes)

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({Ability.EXACT, Ability.CODE})

    @property
    def given_label(self) -> bool:
        return self.condition == "label"

    def init(self, key, batch):
        """{"net": …}: initial parameters."""
        levels = jnp.zeros((1, math.prod(self.shape)), jnp.int32)
        condition = self._condition_of({name: value[:1] for name, value in batch.items()})
        return {"net": self.net.init(key, levels, condition)}

    def roles(self, params: Params) -> PyTree[Role]:
        return {"net": self.net.roles(params["net"])}

    def draw(self, params, rng, batch, train=False, times=None) -> Draw:
        """ "likelihood": the exact −log p(x). Only dropout is random."""
        keys = rng.keys(randomness.DROPOUT) if train else None
        levels = batch["image"].astype(jnp.int32).reshape(-1, math.prod(self.shape))
        logits = self.net.apply(params["net"], levels, self._condition_of(batch), keys)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), levels[..., None], axis=-1)
        return Draw({"likelihood": -jnp.sum(log_p, axis=(1, 2))})

    def sample(self, params, rng, batch):
        """Samples, drawn value by value. Each step computes the logits of one value, with what the network
        keeps of earlier steps."""
        condition, keys = self._condition_of(batch), rng.keys(randomness.DECODE)
        # If the layers of a transformer are unrolled, XLA copies all cached keys and values in each step.
        net = self.net.clone(unroll=False)

        def draw(carry, at):
            level, kept = carry
            logits, kept = net.apply(params["net"], level, kept, at, condition, method="step")
            here = jax.vmap(jax.random.fold_in, (0, None))(keys, at)
            level = jax.vmap(jax.random.categorical)(here, logits)
            return (level, kept), level

        start = jnp.zeros(keys.shape, jnp.int32), net.nothing(keys.shape[0])
        _, levels = jax.lax.scan(draw, start, jnp.arange(math.prod(self.shape)))
        return levels.T.reshape(-1, *self.shape).astype(jnp.uint8)

    @property
    def stages(self) -> Stages:
        """One stage per value, in raster order."""

        def start(params, batch):
            condition = self._condition_of(batch)
            return self.net.nothing(batch["augmented"].shape[0]), condition

        net = self.net.clone(unroll=False)  # as in `sample`

        def logits(params, carried, places, levels):
            kept, condition = carried
            at = places[0]
            before = levels[:, jnp.maximum(at - 1, 0)]
            logits, kept = net.apply(params["net"], before, kept, at, condition, method="step")
            return logits[:, None], (kept, condition)

        return Stages(np.split(np.arange(self.net.tokens), self.net.tokens), start, logits)

    def _condition_of(self, batch):
        return condition_lib.of_batch(self.condition, batch, self.classes)

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "Autoregressor":
        """The Autoregressor that config.model describes.

        Raises:
          UserError: a field has a value that is not accepted.
        """
        net = component.build(
            "causal network",
            section.net,
            "config.model.net",
            shape=spec.shape,
            vocab_size=spec.vocab_size,
            unroll=devices.platform() == "cpu",  # as in nets.build
        )
        made = cls(net, spec.shape, spec.classes, section.condition)
        component.check(made, section, "config.model")
        return made
