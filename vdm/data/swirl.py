"""The data source "swirl"."""

import dataclasses

import numpy as np

from vdm.data.dataset import Data, Spec, held_out, in_memory
from vdm.data.source import Source, check_levels


@dataclasses.dataclass(frozen=True)
class Swirl(Source):
    """20,000 points of a noisy spiral, as images of 1 × 1 with two channels, to show a density in two
    dimensions; 2,000 are held out.

    Attributes:
      vocab_size: number of levels of each coordinate.
    """

    vocab_size: int = 256

    def check(self) -> None:
        super().check()
        check_levels(self.vocab_size)

    def load(self) -> Data:
        random = np.random.default_rng(0)
        along = np.sqrt(random.uniform(size=20_000))
        angle = 3.0 * np.pi * along
        points = along[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        points = 0.8 * points + 0.02 * random.normal(size=points.shape)
        levels = np.clip((points + 1.0) / 2.0 * self.vocab_size, 0, self.vocab_size - 1)
        splits = held_out(in_memory(levels.astype(np.uint8)[:, None, None, :]), 2_000)
        return Data(*splits, Spec((1, 1, 2), self.vocab_size, 0))
