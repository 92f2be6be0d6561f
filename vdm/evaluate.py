"""Bits per dimension of the test split, with standard errors."""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
from tqdm import tqdm

from vdm import elbo, parallel, report, run as run_lib
from vdm.data import eval_batches
from vdm.errors import require
from vdm.rng import Rng

# Folded into the seed: evaluation's noise is its own, the same for every checkpoint.
_EVAL = 2


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An ELBO estimate in bits/dim.

    Attributes:
      mean: name of each term, and "bpd" for their sum, to the mean over images.
      se: the same names to the standard error of that mean. It counts both which images
        were drawn and the Monte-Carlo noise, which adds to the spread between images.
      images, passes: how many images, and how often each was evaluated.
    """

    mean: dict[str, float]
    se: dict[str, float]
    images: int
    passes: int

    def json(self, prefix=""):
        """Flat: name and name_se for each, then images and passes."""
        flat = {}
        for name, mean in self.mean.items():
            flat |= {name: mean, f"{name}_se": self.se[name]}
        flat |= {"images": self.images, "passes": self.passes}
        return {prefix + name: value for name, value in flat.items()}


def make_evaluator(model, config, data):
    """Returns (params, passes, progress) → Estimate over the test split.

    `params` are replicated over the devices; every host calls it and gets the same result.

    Raises:
      UserError: the batch is not divisible by the devices, or no pass is asked for.
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
    for name in ("passes", "passes_in_training"):
        value = config.eval[name]
        require(value > 0, f"config.eval.{name} is {value}; accepted: 1 or more.")
    root = jax.random.fold_in(jax.random.key(config.seed), _EVAL)

    def on_device(params, number, size, batch):
        # Pass k of image i has place k n + i among all: the times of one image are spread
        # evenly over [0, 1), and so are those of all images.
        rng = Rng(root, number * size[0] + batch["index"], size[0] * size[1])
        return (model.loss(params, rng, batch, train=False),)

    mapped = parallel.over_devices(
        on_device, config.parallel, split_in=(False, False, False, True), split_out=(True,)
    )

    def evaluate(params, passes, progress=False):
        batches = list(
            eval_batches(data.test, batch_size // jax.process_count(), config.eval.images)
        )
        size = np.array([config.eval.images or data.test.size, passes], np.int32)
        totals = None
        bar = tqdm(total=passes * len(batches), desc="evaluate", disable=not progress or None)
        for number in range(passes):
            values = []
            for batch in batches:
                real = batch["real"]
                inputs = {name: value for name, value in batch.items() if name != "real"}
                (terms,) = mapped(params, np.int32(number), size, parallel.per_device(inputs))
                terms = parallel.gather(parallel.local(terms) | {"real": real})
                values.append({k: v[terms["real"]] for k, v in terms.items() if k != "real"})
                bar.update()
            values = jax.tree.map(lambda *v: np.concatenate(v).astype(np.float64), *values)
            totals = values if totals is None else jax.tree.map(np.add, totals, values)
        bar.close()
        return summarise(totals, passes, data.spec.shape)

    return evaluate


def summarise(totals, passes, shape):
    """Estimate from each term's sum over passes, nats [images]."""
    bits = {
        name: np.asarray(elbo.bits_per_dim(total / passes, shape), np.float64)
        for name, total in totals.items()
    }
    bits = {"bpd": sum(bits.values())} | bits
    images = len(bits["bpd"])
    return Estimate(
        mean={name: float(values.mean()) for name, values in bits.items()},
        se={
            name: float(values.std(ddof=1) / math.sqrt(images)) if images > 1 else math.nan
            for name, values in bits.items()
        },
        images=images,
        passes=passes,
    )


def write(path, estimate, step):
    """Writes an Estimate as JSON: what it is, of which step, and every number."""
    text = json.dumps(
        {
            "estimator": "ELBO: an upper bound on the negative log-likelihood",
            "unit": "bits/dim",
            "step": step,
            **estimate.json(),
        },
        indent=2,
    )
    pathlib.Path(path).write_text(text + "\n")


def run(config, workdir):
    """--mode=eval: prints the terms and the total, and writes them to eval.json."""
    this = run_lib.restore(config, workdir)
    evaluator = make_evaluator(this.model, config, this.data)
    estimate = evaluator(this.state.ema, config.eval.passes, progress=True)
    if jax.process_index() == 0:
        path = pathlib.Path(workdir) / "eval.json"
        write(path, estimate, int(this.state.step))
        print(f"{config.data.name}, test split, step {int(this.state.step)}, EMA")
        print(report.estimate_table(estimate))
        print(path)
