"""The data source "digits", the default."""

import dataclasses
import gzip
import importlib.util
import pathlib

import numpy as np

from vdm.data.dataset import Data, Spec, held_out, in_memory
from vdm.data.source import Source


@dataclasses.dataclass(frozen=True)
class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8 × 8 with 17 levels and labels; 360, a fixed random choice,
    are held out. The installed scikit-learn contains them: nothing is downloaded.

    Each line of the file has 64 values and a label. scikit-learn is not imported, as that takes a second.
    """

    def load(self) -> Data:
        spec = importlib.util.find_spec("sklearn")
        assert spec is not None and spec.origin is not None
        with gzip.open(
            pathlib.Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt"
        ) as file:
            values = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        images, labels = values[:, :-1].reshape(-1, 8, 8, 1), values[:, -1]
        return Data(*held_out(in_memory(images, labels), 360), Spec((8, 8, 1), 17, 10))
