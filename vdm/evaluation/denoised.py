"""The denoiser's predictions x̂ for some test images, from noise to data."""

from typing import NamedTuple

from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm.diffusion import process
from vdm.evaluation.passes import Pass, over_split, progress_bar
from vdm.run import Run

IMAGES = 8
TIMES = 9


class Denoised(NamedTuple):
    """Images and their predictions.

    Attributes:
      times: times t, decreasing from 1 to 0.
      x_hat: x̂(z_t) at these times, in [−1, 1].
      x: the images themselves.
    """

    times: Float[np.ndarray, "times"]
    x_hat: Float[np.ndarray, "times images height width channels"]
    x: Float[np.ndarray, "images height width channels"]


def denoise(config: ConfigDict, run: Run) -> Denoised:
    """x̂(z_t) of the first test images, with one ε for all times; needs Ability.DENOISER."""

    def predicted(params, rng, batch, t):
        x = process.scale(batch["image"], run.data.spec.vocab_size)
        return {"x": x, "x_hat": run.model.x_hat(params, rng, batch, t)}

    images = min(IMAGES, config.eval.images or run.data.test.size)
    one_pass = over_split(predicted, config, run.data)
    times = np.linspace(1.0, 0.0, TIMES)
    with progress_bar(images, config, len(times), "images") as bar:
        shown = [one_pass(run.state.ema, Pass(0, 0, 1), np.float32(t), images, bar) for t in times]
    return Denoised(times, np.stack([one["x_hat"] for one in shown]), shown[0]["x"])
