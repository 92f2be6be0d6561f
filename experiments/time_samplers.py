"""Compares diffusion times drawn independently, stratified or by importance, for a linear and a learned γ.

  python -m experiments.time_samplers --workdir=runs/time_samplers --config=configs/digits.py

The mean of the objective is the same for all; its noise differs. The interior of the learned γ is trained for
the least variance. The table lists the variance, after training, of a batch's mean loss over new times and
noise for fixed images.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vdm import run as run_lib, workdir as workdir_lib
from vdm.component import REGISTRIES
from vdm.contract import bits_per_dim
from vdm.data.batches import eval_batches
from vdm.estimate import standard_error
from vdm.runtime.randomness import Rng
from vdm.sweep import study, workdirs

REPEATS = 500
CAPTION = """"Variance of a batch" is that of the mean loss of one batch of test images, of the size of a
training batch, over times and noise, in (bits/dim)²; ± counts only these draws."""

SCHEDULES = {
    "fixed_linear": {"model.schedule.name": "fixed_linear"},
    "piecewise": {"model.schedule.name": "piecewise", "objective.name": "least_variance"},
}


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    return {
        f"{schedule}_{name}": fields | {"model.times": name}
        for schedule, fields in SCHEDULES.items()
        for name in REGISTRIES["times"].builtin
    }


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the curves; returns their paths."""
    noise = {
        variant: mean_of([kept_variance(folder) for folder in folders]) for variant, folders in found.items()
    }
    return study.table_and_curves(workdir, found, {"variance of a batch": noise}, CAPTION)


def kept_variance(folder: pathlib.Path) -> tuple[float, float]:
    """`batch_variance`, cached."""
    return workdirs.kept(folder, "variance", lambda folder: {"variance": batch_variance(folder)})["variance"]


def batch_variance(folder: pathlib.Path) -> tuple[float, float]:
    """The variance of the mean loss of a batch of test images over times and noise, (bits/dim)², and its
    standard error, from the fourth moment."""
    config = workdir_lib.read_config(folder)
    run = run_lib.restore(config, folder)
    size = min(config.train.batch_size, run.data.test.size)
    batch = next(eval_batches(run.data.test, size))
    root = jax.random.fold_in(jax.random.key(config.seed), 3)  # separate draws for each seed
    model, moments = run.model, run.state.moments

    @jax.jit
    def once(params, number):
        rng = Rng(jax.random.fold_in(root, number), jnp.arange(size), size)
        draw = model.draw(params, rng, batch, times=lambda rng: model.times.draw(rng, moments))
        return sum(draw.terms.values()).mean()

    nats = np.array([once(run.state.ema, number) for number in range(REPEATS)], np.float64)
    bits = bits_per_dim(nats, run.data.spec.shape)
    return float(bits.var(ddof=1)), standard_error(np.square(bits - bits.mean()))


def mean_of(numbers: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean of independent values and its standard error, from each (value, standard error)."""
    values, errors = np.array(numbers).T
    return float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(errors))


if __name__ == "__main__":
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=study.SHORT)
