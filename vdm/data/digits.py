"""scikit-learn's 1,797 handwritten digits, 8 × 8 with 17 levels; 360 are held out. No download."""

import dataclasses

import numpy as np

from vdm.data.dataset import Data, Spec, held_out, in_memory
from vdm.data.source import Source


@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """scikit-learn's digits."""

    def load(self) -> Data:
        from sklearn.datasets import load_digits  # only now, as it takes a while to import

        digits = load_digits()
        images = digits.images.astype(np.uint8)[..., None]
        return Data(*held_out(in_memory(images, digits.target), 360), Spec((8, 8, 1), 17, 10))
