"""Diffusion times drawn independently, stratified, or by importance; under a straight and a learned γ.

  python -m experiments.time_samplers --workdir=runs/time_samplers --config=configs/digits.py

All of them train on the same mean; what differs is its noise. The table has, after training, the
variance of a batch's mean loss over other times and noise, the pictures held fixed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import results, sweep, workdirs
from vdm import run as run_lib
from vdm.data import dataset as data_lib
from vdm.diffusion import elbo, times
from vdm.runtime import workdir as workdir_lib
from vdm.evaluation.evaluate import standard_error
from vdm.runtime.randomness import Rng

REPEATS = 500
CAPTION = """"Variance of a batch" is that of the mean loss of one batch of test images, as long as in training,
over times and noise, in (bits/dim)²; ± counts these draws alone."""


def grid(config):
    """{variant: fields}."""
    return {
        f"{schedule}_{name}": {"model.schedule.name": schedule, "model.times": name}
        for schedule in ("fixed_linear", "piecewise")
        for name in times.TIMES
    }


def results_of(workdir, found):
    """Writes the table and the curves of {variant: [workdirs]}; returns their paths."""
    noise = {variant: mean_of([kept_variance(folder) for folder in folders]) for variant, folders in found.items()}
    print(results.table(found, workdir, more={"variance of a batch": noise}, caption=CAPTION))
    return [workdir / "table.md", workdir / "table.csv", *results.curves(found, workdir)]


def kept_variance(folder):
    """`batch_variance`, as it was kept."""
    return workdirs.kept(folder, "variance", lambda folder: {"variance": batch_variance(folder)})["variance"]


def batch_variance(folder):
    """The variance of the mean loss of a batch of test images over times and noise, (bits/dim)², and its
    standard error, by the fourth moment."""
    config = workdir_lib.get_config(folder / "config.json")
    this = run_lib.restore(config, folder)
    size = min(config.train.batch_size, this.data.test.size)
    batch = next(data_lib.eval_batches(this.data.test, size))
    root = jax.random.fold_in(jax.random.key(config.seed), 3)  # of each seed its own draws
    moments = this.state.moments
    cdf = None if moments is None else times.cdf(moments)

    @jax.jit
    def once(params, number):
        rng = Rng(jax.random.fold_in(root, number), jnp.arange(size), size)
        return sum(this.model.draw(params, rng, batch, False, cdf).terms.values()).mean()

    nats = np.array([once(this.state.ema, number) for number in range(REPEATS)], np.float64)
    bits = elbo.bits_per_dim(nats, this.data.spec.shape)
    square = np.square(bits - bits.mean())
    return bits.var(ddof=1), standard_error(square)


def mean_of(numbers):
    """The mean of [(value, standard error)] that are independent, and its standard error."""
    values, errors = np.array(numbers).T
    return float(values.mean()), float(np.sqrt(np.sum(errors**2)) / len(errors))


if __name__ == "__main__":
    sweep.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=sweep.SHORT)
