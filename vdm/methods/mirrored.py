"""A VDM that gives an image and its mirror image the same likelihood, as suits photographs.

ε̂ is the mean of the predictions for an image and its mirror image, so that errors of the network that differ
between the two partly cancel. This takes two evaluations of the network; with the predictions for both upside
down (`upside_down`), it takes four, and the errors cancel further. In training the network is evaluated once,
on images that are mirrored at random (config.data.augment = "flip").
"""

import dataclasses

import jax.numpy as jnp

from vdm.component import accept
from vdm.diffusion.model import Diffusion

TURNS = ((), (2,), (1,), (1, 2))  # the axes to reverse: none, columns, rows, both


@dataclasses.dataclass(frozen=True)
class Mirrored(Diffusion):
    """A VDM whose ε̂ is the mean of the predictions for an image and its mirror image (columns reversed).

    Attributes:
      upside_down: whether the mean includes the predictions for both images upside down.
    """

    upside_down: bool = False

    def check(self):
        super().check()
        accept(
            "condition",
            self.condition != "augmented",
            "'none' or 'label', as the network must not be told which of the two images is the mirror image",
        )
        accept(
            "schedule.name",
            not self.schedule.per_value,
            "a schedule with one γ for all values, as an image and its mirror image have the same noise",
        )

    def draw(self, params, rng, batch, train=False, times=None):
        if not train:
            return super().draw(params, rng, batch, train, times)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Diffusion)}
        return Diffusion(**fields).draw(params, rng, batch, train, times)

    def eps_hat(self, params, z_t, gamma, condition, dropout_keys=None):
        total = jnp.zeros_like(z_t)
        for axes in TURNS if self.upside_down else TURNS[:2]:
            turned = super().eps_hat(params, jnp.flip(z_t, axes), gamma, condition, dropout_keys)
            total += jnp.flip(turned, axes)
        return total / (len(TURNS) if self.upside_down else 2)
