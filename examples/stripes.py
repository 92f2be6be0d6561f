"""A custom data source: noisy 8 × 8 stripes of 16 levels; the label states whether they are horizontal or
vertical.

python -m vdm.main --config=configs/digits.py --config.data.name=examples.stripes:Stripes \\
    --workdir=/tmp/stripes
"""

import dataclasses

import numpy as np

from vdm.data.dataset import Data, Spec, held_out, in_memory
from vdm.data.source import Source


@dataclasses.dataclass(frozen=True)
class Stripes(Source):
    noise: float = 0.5  # standard deviation, in levels

    def load(self) -> Data:
        random = np.random.default_rng(0)
        labels = random.integers(0, 2, size=2_000)
        waves = 7.5 + 6.0 * np.sin(np.arange(8)[:, None] + random.uniform(0.0, 6.28, size=(2_000, 1, 1)))
        images = np.where(labels[:, None, None] == 1, waves.swapaxes(1, 2), waves)
        levels = np.round(images + self.noise * random.normal(size=images.shape)).clip(0, 15).astype(np.uint8)
        return Data(*held_out(in_memory(levels[..., None], labels), 200), Spec((8, 8, 1), 16, 2))
