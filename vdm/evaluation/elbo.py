"""The ELBO of the test split, or the exact likelihood, with its error bars; and the estimator "elbo"."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import time

import jax
from ml_collections import ConfigDict
import numpy as np

from vdm.contract import Ability, Model, check_draw
from vdm.data import fingerprint
from vdm.data.batches import in_memory_if_it_fits
from vdm.data.dataset import Data
from vdm.diffusion.times import distributed
from vdm.errors import require
from vdm.estimate import Estimate, combine, require_possible
from vdm.evaluation import self_check
from vdm.evaluation.estimator import Estimator, Result, print_row
from vdm.evaluation.passes import Pass, PerExample, over_split, progress_bar
from vdm.evaluation.profile import UNIFORM, Profile, in_continuous_time, of_time
from vdm.evaluation.table import Row
from vdm.reporting.text import estimate_table
from vdm.run import Run
from vdm.runtime import devices

OWN = "the model"  # how rows name the model whose likelihood they bound, unless it has variable depth


def elbo_name(timesteps: int) -> str:
    """The name of the ELBO of a chain of `timesteps` steps; 0 for T → ∞."""
    return f"ELBO, T = {timesteps}" if timesteps else "ELBO, T → ∞"


def chain_name(timesteps: int) -> str:
    """The name of the model whose likelihood the ELBO at this depth bounds; 0 for T → ∞."""
    return f"the chain of {timesteps} steps" if timesteps else "the chain of ∞ steps"


def elbo_row(config: ConfigDict, run: Run, model: Model) -> tuple[Row, Profile | None]:
    """The ELBO of a model with the parameters of the run, and its Profile if the model draws a time."""
    start = time.monotonic()
    if model.depth is None:
        name, bounds = "exact" if Ability.EXACT in model.abilities else "ELBO", OWN
        key = name.lower()
    else:
        name, bounds = elbo_name(model.depth), chain_name(model.depth)
        key = f"elbo_T{model.depth or 'inf'}"
    evaluate = make_elbo(model, config, run.data)
    estimate, profile = evaluate(run.state.ema, config.eval.passes, True, config.eval.target_se, name)
    seconds = time.monotonic() - start
    row = Row(name, bounds, estimate, estimate.passes, seconds, id=key, depth=model.depth)
    return row, profile


@dataclasses.dataclass(frozen=True)
class ELBO(Estimator):
    """The model's ELBO, and the ELBO for T → ∞ if the model is a chain."""

    def measure(self, config: ConfigDict, run: Run, done: Sequence[Row]) -> Result:
        row, profile = elbo_row(config, run, run.model)
        if jax.process_index() == 0:
            print(estimate_table(row.estimate), flush=True)
        if not run.model.depth:
            return Result([row], profile=profile)
        continuous, profile = elbo_row(config, run, in_continuous_time(run.model))
        return Result([row, print_row(continuous)], profile=profile)


# Number of passes in a set. The times and noise of a set are spread evenly (randomness.QuasiRng).
SET = 10

# The entries of a draw besides its terms, if a time is drawn (profile.of_time).
_TIME = ("t", "time_weight", "error")


def one_draw(model: Model) -> PerExample:
    """A function that draws the terms and, if a time is drawn, what a Profile needs; `extra` is the times'
    cdf."""
    draws_time = Ability.TIME in model.abilities

    def draw_terms(params, rng, batch, cdf):
        draw = model.draw(params, rng, batch, times=distributed(cdf) if draws_time else None)
        check_draw(model, draw, len(batch["label"]))
        return {**draw.terms, **of_time(draw.denoising)} if draws_time else draw.terms

    return draw_terms


def make_elbo(
    model: Model, config: ConfigDict, data: Data, draw: PerExample | None = None
) -> Callable[..., tuple[Estimate, Profile | None]]:
    """Returns evaluate(params, passes, progress=False, target_se=0.0, title="ELBO") → (Estimate, Profile).

    Two passes or more are taken in at least two independent sets, so that the Monte-Carlo error is measured,
    not assumed; that of a single pass is NaN.
    If the model draws a time, the earlier sets determine the distribution of times in each set (Profile.cdf),
    which does not change the mean. The Profile of any other model is None.

    With `target_se`, sets of SET passes continue until the Monte-Carlo error of the bits/dim is at most
    `target_se`, or config.eval.max_passes are taken.

    Args:
      draw: one_draw(model), for a caller that keeps what is compiled for it.

    Raises:
      UserError: a number of config.eval is not accepted. `evaluate` also raises it if the compiler computes
        sums wrongly (self_check.py).
    """
    for name in ("passes", "passes_in_training", "max_passes"):
        value = config.eval[name]
        require(value > 0, f"config.eval.{name} is {value}; accepted: 1 or more.")
    target = config.eval.target_se
    require(target >= 0, f"config.eval.target_se is {target}; accepted: 0 (none) or more.")
    draws_time = Ability.TIME in model.abilities
    one_pass = over_split(draw or one_draw(model), config, data)

    @functools.cache
    def data_of(images):
        return fingerprint.of_split(in_memory_if_it_fits(data.test, config.data), data.spec, images)

    def evaluate(params, passes, progress=False, target_se=0.0, title="ELBO"):
        images = config.eval.images or data.test.size
        here = min(config.eval.batch_size, devices.multiple(images)) // devices.count()
        self_check.require_right_sums(here, data.spec.shape, data.spec.vocab_size)
        profile = Profile(images) if draws_time else None
        sets = []
        bar = progress_bar(images, config, SET if target_se else passes, title, progress)

        def add_set(length):
            cdf = profile.cdf() if sets and draws_time else UNIFORM
            drawn = []
            for number in range(length):
                draw = one_pass(params, Pass(len(sets), number, length), cdf, images, bar)
                if draws_time:
                    profile.add(draw)
                drawn.append({name: nats for name, nats in draw.items() if name not in _TIME})
            sets.append((length, jax.tree.map(lambda *nats: sum(nats), *drawn)))

        if not target_se:
            for part in np.array_split(np.arange(passes), min(passes, max(2, round(passes / SET)))):
                add_set(len(part))
        while target_se:
            left = config.eval.max_passes - len(sets) * SET
            if left <= 0:
                break
            if sets:
                bar.total = (len(sets) + 1) * bar.total // len(sets)
            add_set(min(SET, left))
            noise = combine(sets, data.spec.shape).noise["bpd"]
            bar.set_postfix_str(f"noise {noise:.5f}, target {target_se}")
            # With few degrees of freedom, a standard error is too often small by chance.
            if noise <= target_se and images * (len(sets) - 1) >= 30:
                break
        bar.close()
        estimate = combine(sets, data.spec.shape)
        require_possible(estimate)
        about = {"exact": Ability.EXACT in model.abilities, "given_label": model.given_label}
        return dataclasses.replace(estimate, data=data_of(images), **about), profile

    return evaluate
