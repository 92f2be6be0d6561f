"""Maps functions of images over the test split: over batches, devices and passes."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

from vdm.contract import Batch, Params
from vdm.data.batches import eval_batches, in_memory_if_it_fits
from vdm.data.dataset import Data
from vdm.errors import require
from vdm.run import Run
from vdm.runtime import devices, randomness
from vdm.runtime.randomness import QuasiRng

# Folded into the seed: evaluation has its own noise, which is the same for every checkpoint.
_EVALUATION = 2

# (params, rng, batch, extra) → {name: [batch, …]}.
PerExample = Callable[[Params, QuasiRng, Batch, Any], dict[str, Array]]
PerImage = dict[str, Float[np.ndarray, "images ..."]]


class Pass(NamedTuple):
    """A pass over the images: pass `number` of the `passes` passes in a set of draws.

    The draws of a set are spread evenly over its passes (randomness.QuasiRng); different sets are
    independent.
    """

    set: int
    number: int
    passes: int


SPLIT = (False, False, False, True), (True,)  # whether `of_device`'s arguments and results are split


def of_device(function: PerExample) -> Callable[..., tuple[dict[str, Array]]]:
    """The function for one device that `over_split` maps: (params, (root of the seed, Pass and number of
    images), extra, batch) → (results,)."""

    def on_device(params, which, extra, batch):
        root, (set_number, number, passes, images) = which
        key = jax.random.fold_in(jax.random.wrap_key_data(root), _EVALUATION)
        rng = QuasiRng(jax.random.fold_in(key, set_number), batch["index"], number, images, passes)
        return (function(params, rng, batch, extra),)

    return on_device


def over_split(function: PerExample, config: ConfigDict, data: Data) -> Callable[..., PerImage]:
    """Maps a function of examples over images of the test split.

    Returns:
      one_pass(params, which, extra, images, bar) → {name: float64 [images, …]}, where `which` is a Pass,
      `images` is the number of images, and `bar` counts batches. `params` and `extra` are replicated over the
      devices. Every host calls one_pass and gets the results of all images.

    Raises:
      UserError: the batch size is not divisible by the number of devices, or there are fewer images than
        config.eval.images.
    """
    batch_size = config.eval.batch_size
    require(
        batch_size > 0 and batch_size % devices.count() == 0,
        f"config.eval.batch_size is {batch_size}; accepted: a multiple of the {devices.count()} devices.",
    )
    require(
        0 <= config.eval.images <= data.test.size,
        f"config.eval.images is {config.eval.images}; accepted: 0 (all) to {data.test.size}.",
    )

    mapped = _mapped(function, config.parallel)
    root = randomness.root(config.seed)
    whole = functools.cache(lambda: in_memory_if_it_fits(data.test, config.data))
    test = (lambda: data.test) if config.eval.images else whole  # for a subset, only its images are read

    def one_pass(params, which, extra, images, bar):
        parts: list[PerImage] = []
        which = root, np.array([*which, images], np.int32)
        # If there are few images, the batch has their number, rounded up to a multiple of the devices.
        size = min(batch_size, devices.multiple(images))

        def fetch(values, real):
            values = devices.gather(devices.local(values) | {"real": real})
            real = values.pop("real")
            parts.append({name: value[real] for name, value in values.items()})
            bar.update()

        running = None  # a batch on the devices, while the next one is read
        for batch in eval_batches(test(), size // jax.process_count(), images):
            real = batch.pop("real")
            (values,) = mapped(params, which, extra, devices.per_device(batch))
            if running:
                fetch(*running)
            running = values, real
        assert running, "there are images"
        fetch(*running)
        return jax.tree.map(lambda *v: np.concatenate(v).astype(np.float64), *parts)

    return one_pass


@functools.lru_cache(4)
def _mapped(function: PerExample, kind: str) -> Callable[..., tuple[dict[str, Array]]]:
    """`of_device(function)` over all devices: compiled once for all calls of `over_split` with it."""
    return devices.over_devices(of_device(function), kind, *SPLIT)


def progress_bar(images: int, config: ConfigDict, passes: int, title: str, shown: bool = True) -> tqdm:
    """A progress bar over the batches of `passes` passes; the function of `over_split` updates it."""
    batches = -(-images // config.eval.batch_size)
    return tqdm(total=passes * batches, desc=title, disable=not shown or None, leave=False)


def run_passes(
    function: PerExample,
    config: ConfigDict,
    run: Run,
    passes: int,
    title: str,
    images: int | None = None,
) -> dict[str, Float[np.ndarray, "passes images ..."]]:
    """The results of one set of `passes` passes, stacked, in float64; the `extra` of `function` is 0.

    Args:
      images: number of images; None for config.eval.images.
    """
    images = images or config.eval.images or run.data.test.size
    one_pass = over_split(function, config, run.data)
    with progress_bar(images, config, passes, title) as bar:
        results = [
            one_pass(run.state.ema, Pass(0, number, passes), np.float32(0), images, bar)
            for number in range(passes)
        ]
    return jax.tree.map(lambda *values: np.stack(values), *results)
