"""Samples of a trained model, in batches over all devices."""

from collections.abc import Callable
import pathlib

import jax
from jaxtyping import Array, PyTree, UInt8
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from vdm import run as run_lib
from vdm.contract import Model
from vdm.data.dataset import Data, Spec
from vdm.errors import UserError, require
from vdm.reporting import sample_sheet
from vdm.runtime import devices, lock, randomness
from vdm.runtime.randomness import Rng

Samples = UInt8[np.ndarray, "samples height width channels"]

# Folded into the seed: sampling has its own noise, which is the same for every checkpoint.
_SAMPLE = 3


SPLIT = (False, False, True), (True,)  # which arguments and results of `of_device` are split over devices


def of_device(model: Model, config: ConfigDict, spec: Spec) -> Callable[..., tuple[Array]]:
    """The function for one device that `make_sampler` maps: (params, root of the seed, indices of samples) →
    (samples,)."""

    def on_device(params, root, index):
        key = jax.random.fold_in(jax.random.wrap_key_data(root), _SAMPLE)
        batch = {"label": index % max(1, spec.classes), "augmented": np.zeros(index.shape, np.float32)}
        images = model.sample(params, Rng(key, index, config.sample.num), batch)
        like = f"uint8 {[len(index), *spec.shape]}"
        require(
            f"{images.dtype} {list(images.shape)}" == like,
            f"model {type(model).__name__} gives samples as {images.dtype} {list(images.shape)}; accepted: "
            f"{like}.",
        )
        return (images,)

    return on_device


def make_sampler(
    model: Model, config: ConfigDict, data: Data, like: PyTree | None = None
) -> Callable[..., Samples]:
    """Returns sample(params, progress=False, seed=config.seed) → config.sample.num samples.

    `params` are replicated; every host calls the function and gets all samples. Labels, if the model is
    conditioned on them, are 0, 1, … in turn. A sample depends only on the seed and its index, and not on the
    batch size.

    Args:
      like: the shapes and devices of `params`, to compile in another thread until the first call.

    Raises:
      UserError: the batch size is not divisible by the number of devices, or config.sample.num is less than
        1.
    """
    num, batch_size = config.sample.num, config.sample.batch_size
    require(num > 0, f"config.sample.num is {num}; accepted: 1 or more.")
    require(
        batch_size > 0 and batch_size % devices.count() == 0,
        f"config.sample.batch_size is {batch_size}; accepted: a multiple of the {devices.count()} devices.",
    )

    # If there are few samples, the batch has their number, rounded up to a multiple of the devices.
    batch_size = min(batch_size, devices.multiple(num))
    mapped = devices.over_devices(of_device(model, config, data.spec), config.parallel, *SPLIT)
    share = batch_size // jax.process_count()

    def batch_from(first):
        own = first + jax.process_index() * share + np.arange(share, dtype=np.int32)
        return devices.per_device(own)

    wait = lambda: None
    if like is not None:
        wait = devices.compile_ahead(mapped, like, randomness.root(config.seed), batch_from(0))

    def sample(params, progress=False, seed=config.seed):
        parts, root = [], randomness.root(seed)
        wait()
        firsts = range(0, num, batch_size)
        for first in tqdm(firsts, "sample", disable=not progress or len(firsts) == 1 or None):
            (part,) = mapped(params, root, batch_from(first))
            parts.append(devices.gather(devices.local(part)))
        return np.concatenate(parts)[:num]

    return sample


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Draws config.sample.num samples into samples.png and samples.npz of the workdir, or of its folder
    step-STEP while the run is training."""
    parts = run_lib.of_workdir(config, workdir, images=False)
    try:
        sampler = make_sampler(parts.model, config, parts.data, parts.like.ema)
    except UserError:
        raise
    except Exception:
        run_lib.at_checkpoint(parts, config, workdir)  # names the faulty component, if there is one
        raise
    run = run_lib.at_checkpoint(parts, config, workdir)
    if jax.process_index() == 0:
        print(f"drawing {config.sample.num} samples", flush=True)
    samples = sampler(run.state.ema, progress=True)
    if jax.process_index() == 0:
        with lock.place_for_results(workdir, int(run.state.step)) as place:
            sample_sheet.write_samples(place, samples, run.data.spec.vocab_size)
        print(f"{len(samples)} samples: {place}/samples.png, {place}/samples.npz")
