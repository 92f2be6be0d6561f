"""Bits per dimension of the test split by the ELBO, with standard errors."""

import dataclasses
import functools
import json
import math
import pathlib

import jax
import numpy as np
from tqdm import tqdm

from vdm.data import dataset as data_lib
from vdm.diffusion import elbo
from vdm.runtime import devices
from vdm.errors import require
from vdm.evaluation.profile import UNIFORM, Profile
from vdm.runtime.randomness import Spread

# Folded into the seed: evaluation's noise is its own, the same for every checkpoint.
_EVAL = 2


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate of the negative log-likelihood of some images, in bits/dim.

    Attributes:
      values: name of each term, and "bpd" for their sum, to float64 [images].
      noise: the same names to the standard error of the mean over these very images: the
        Monte-Carlo noise. NaN where there was but one set of draws, and more than there is
        where sets differ in size.
      passes: how often each image was evaluated.
      exact: whether it is the negative log-likelihood itself, and not the negative ELBO.
      given_label: whether it is that of images given their labels.
    """

    values: dict[str, np.ndarray]
    noise: dict[str, float]
    passes: int
    exact: bool = False
    given_label: bool = False

    @property
    def images(self):
        """How many images."""
        return len(self.values["bpd"])

    @property
    def mean(self):
        """Name to the mean over images."""
        return {name: float(values.mean()) for name, values in self.values.items()}

    @property
    def se(self):
        """Name to the standard error of that mean as an estimate for all images there could
        be. It counts both which images were drawn and the Monte-Carlo noise, which adds to the
        spread between images."""
        return {name: standard_error(values) for name, values in self.values.items()}

    @property
    def images_se(self):
        """Name to the part of `se` that comes of which images were drawn; NaN where the other,
        `noise`, is not known."""
        return {
            name: float(np.sqrt(np.maximum(se**2 - self.noise[name] ** 2, 0.0)))
            for name, se in self.se.items()
        }

    def json(self):
        """Flat: name, name_se and its parts name_se_images, name_se_noise; images, passes."""
        flat = {}
        for name, mean in self.mean.items():
            flat |= {name: mean, f"{name}_se": self.se[name]}
            flat |= {f"{name}_se_images": self.images_se[name], f"{name}_se_noise": self.noise[name]}
        flat |= {"images": self.images, "passes": self.passes}
        return {name: value if math.isfinite(value) else None for name, value in flat.items()}


def standard_error(values):
    """Of the mean of independent values [n]; NaN for one value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def over_split(function, config, data):
    """Maps (params, rng, batch, extra) → {name: [batch, …]} over images of the test split.

    Returns:
      (params, place, extra, images, bar) → {name: float64 [images, …]}, one pass. `place` is
      (set, number, passes): it is pass `number` of the `passes` of a set of draws, and sets
      are independent of each other. `extra` is replicated; `bar` counts batches. `params` are
      replicated too; every host calls it and gets all images.

    Raises:
      UserError: the batch is not divisible by the devices, or config.eval.images is not there.
    """
    batch_size = config.eval.batch_size
    require(
        batch_size > 0 and batch_size % jax.device_count() == 0,
        f"config.eval.batch_size is {batch_size}; accepted: a multiple of the "
        f"{jax.device_count()} devices.",
    )
    require(
        0 <= config.eval.images <= data.test.size,
        f"config.eval.images is {config.eval.images}; accepted: 0 (all) to {data.test.size}.",
    )

    def on_device(params, place, extra, batch):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _EVAL), place[0])
        rng = Spread(key, batch["index"], place[1], place[3], place[2])
        return (function(params, rng, batch, extra),)

    mapped = devices.over_devices(
        on_device, config.parallel, split_in=(False, False, False, True), split_out=(True,)
    )

    whole = functools.cache(lambda: data_lib.in_memory_where_it_fits(data.test, config, "test"))
    test = (lambda: data.test) if config.eval.images else whole  # of some images, these alone are read

    def one_pass(params, place, extra, images, bar):
        parts = []
        place = np.array([*place, images], np.int32)
        # Of few images no more than these, and a multiple of the devices.
        size = min(batch_size, -(-images // jax.device_count()) * jax.device_count())
        for batch in data_lib.eval_batches(test(), size // jax.process_count(), images):
            real = batch.pop("real")
            (values,) = mapped(params, place, extra, devices.per_device(batch))
            values = devices.gather(devices.local(values) | {"real": real})
            real = values.pop("real")
            parts.append({name: value[real] for name, value in values.items()})
            bar.update()
        return jax.tree.map(lambda *v: np.concatenate(v).astype(np.float64), *parts)

    return one_pass


def progress_bar(images, config, passes, what, shown=True):
    """A bar over the batches of so many passes; `over_split` moves it."""
    batches = -(-images // config.eval.batch_size)
    return tqdm(total=passes * batches, desc=what, disable=not shown or None, leave=False)


# How many passes are a set, whose times and noise are spread evenly (rng.Spread).
SET = 10


def make_evaluator(model, config, data):
    """Returns evaluate(params, passes, progress=False, target_se=0.0) → (Estimate, Profile).

    Passes are taken in at least two independent sets, so that the Monte-Carlo noise is seen,
    not assumed. Where a model draws a time (Diffusion.draw), each set's times are distributed
    as the sets before it advise (Profile.cdf), which no mean depends on; other models have no
    Profile, but None. With `target_se`, sets of SET go on until the Monte-Carlo part of the
    standard error of bpd is at most that, or config.eval.max_passes are taken.

    Raises:
      UserError: a number of config.eval cannot be.
    """
    for name in ("passes", "passes_in_training", "max_passes"):
        value = config.eval[name]
        require(value > 0, f"config.eval.{name} is {value}; accepted: 1 or more.")
    target = config.eval.target_se
    require(target >= 0, f"config.eval.target_se is {target}; accepted: 0 (none) or more.")
    times = hasattr(model, "draw")

    def one_draw(params, rng, batch, cdf):
        if not times:
            return model.loss(params, rng, batch, False)
        draw = model.draw(params, rng, batch, False, cdf)
        return {**draw.terms, "t": draw.t, "weight": draw.weight, "error": draw.error}

    one_pass = over_split(one_draw, config, data)

    def evaluate(params, passes, progress=False, target_se=0.0, what="ELBO"):
        images = config.eval.images or data.test.size
        profile, sets = Profile(images) if times else None, []
        bar = progress_bar(images, config, SET if target_se else passes, what, progress)

        def add(length):
            cdf = profile.cdf() if sets and times else UNIFORM
            drawn = []
            for number in range(length):
                draw = one_pass(params, (len(sets), number, length), cdf, images, bar)
                if times:
                    profile.add(draw)
                drawn.append({k: v for k, v in draw.items() if k not in ("t", "weight", "error")})
            sets.append((length, jax.tree.map(lambda *nats: sum(nats), *drawn)))

        if not target_se:
            for part in np.array_split(
                np.arange(passes), min(passes, max(2, round(passes / SET)))
            ):
                add(len(part))
        while target_se:
            left = config.eval.max_passes - len(sets) * SET
            if left <= 0:
                break
            if sets:
                bar.total = (len(sets) + 1) * bar.total // len(sets)
            add(min(SET, left))
            noise = combine(sets, data.spec.shape).noise["bpd"]
            bar.set_postfix_str(f"noise {noise:.5f}, to be {target_se}")
            # An s.e. of few degrees of freedom is small by chance too often.
            if noise <= target_se and images * (len(sets) - 1) >= 30:
                break
        bar.close()
        exact = getattr(model, "exact", False)
        given = getattr(model, "condition", None) == "label"
        return dataclasses.replace(combine(sets, data.spec.shape), exact=exact, given_label=given), profile

    return evaluate


def combine(sets, shape):
    """The Estimate from independent sets of draws.

    Args:
      sets: [(passes, {term: the sum over these passes, nats [images]})].
    """
    passes = np.array([length for length, _ in sets], np.float64)
    bits = {
        name: elbo.bits_per_dim(np.stack([terms[name] for _, terms in sets]), shape)
        for name in sets[0][1]
    }
    bits = {"bpd": sum(bits.values())} | bits if "bpd" not in bits else bits
    values = {name: sums.sum(axis=0) / passes.sum() for name, sums in bits.items()}

    def noise(name):
        # Σ (n_r m_r² − n m²) is what the sets' means m_r differ by, where n_r passes are worth n_r.
        if len(sets) == 1:
            return math.nan
        means = bits[name] / passes[:, None]
        spread = passes @ np.square(means - values[name]) / (len(sets) - 1) / passes.sum()
        return math.sqrt(spread.mean() / spread.size)

    return Estimate(values, {name: noise(name) for name in values}, int(passes.sum()))


def write(path, estimate, step, more=()):
    """Writes an Estimate as JSON: what it is, of which step, and every number."""
    text = json.dumps(
        {
            "estimator": (
                "exact negative log-likelihood"
                if estimate.exact
                else "ELBO: an upper bound on the negative log-likelihood"
            )
            + (" given the label" if estimate.given_label else ""),
            "unit": "bits/dim",
            "step": step,
            **estimate.json(),
            **dict(more),
        },
        indent=2,
    )
    pathlib.Path(path).write_text(text + "\n")
