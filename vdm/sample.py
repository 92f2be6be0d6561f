"""Samples of a trained model, in batches over all devices."""

import pathlib

import jax
import numpy as np
from tqdm import tqdm

from vdm import run as run_lib
from vdm.reporting import figures
from vdm.runtime import devices
from vdm.errors import require
from vdm.runtime.randomness import Rng

# Folded into the seed: sampling's noise is its own, the same for every checkpoint.
_SAMPLE = 3


def make_sampler(model, config, data):
    """Returns (params, progress) → uint8 [config.sample.num, height, width, channels].

    `params` are replicated; every host calls it and gets all samples. Labels, where the
    model is conditioned on them, are 0, 1, … in turn. A sample depends on the seed and its
    own number alone, not on the size of the batches.

    Raises:
      UserError: the batch is not divisible by the devices, or no sample is asked for.
    """
    num, batch_size = config.sample.num, config.sample.batch_size
    require(num > 0, f"config.sample.num is {num}; accepted: 1 or more.")
    require(
        batch_size > 0 and batch_size % jax.device_count() == 0,
        f"config.sample.batch_size is {batch_size}; accepted: a multiple of the "
        f"{jax.device_count()} devices.",
    )

    def on_device(params, index):
        key = jax.random.fold_in(jax.random.key(config.seed), _SAMPLE)
        label = index % max(1, data.spec.classes)
        batch = {"label": label, "augmented": np.zeros(index.shape, np.float32)}
        return (model.sample(params, Rng(key, index, num), batch),)

    mapped = devices.over_devices(
        on_device, config.parallel, split_in=(False, True), split_out=(True,)
    )
    share = batch_size // jax.process_count()

    def sample(params, progress=False):
        parts = []
        firsts = range(0, num, batch_size)
        for first in tqdm(firsts, "sample", disable=not progress or len(firsts) == 1 or None):
            index = first + jax.process_index() * share + np.arange(share, dtype=np.int32)
            (part,) = mapped(params, devices.per_device(index))
            parts.append(devices.gather(devices.local(part)))
        return np.concatenate(parts)[:num]

    return sample


def write(workdir, samples, vocab_size):
    """Writes samples.png, a grid, and samples.npz, whose "image" data.py reads back."""
    workdir = pathlib.Path(workdir)
    figures.save_samples(workdir / "samples.png", samples, vocab_size)
    np.savez_compressed(workdir / "samples.npz", image=samples)


def run(config, workdir):
    """--mode=sample: draws config.sample.num samples into samples.png and samples.npz."""
    this = run_lib.restore(config, workdir)
    samples = make_sampler(this.model, config, this.data)(this.state.ema, progress=True)
    if jax.process_index() == 0:
        write(workdir, samples, this.data.spec.vocab_size)
        print(f"{len(samples)} samples: {workdir}/samples.png, {workdir}/samples.npz")
