"""What a step of training costs on this machine, so that different models can be given the same minutes."""

from collections.abc import Mapping, Sequence
import json
import pathlib
import statistics
import time
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.output import make_folder
from experiments.plan import Trial
from vdm import run as run_lib, train
from vdm.data import resident
from vdm.runtime import devices

TIMED = 8  # steps


class Cost(NamedTuple):
    """What training costs.

    Attributes:
      start: seconds from the config until the first step is done: reading, fitting and compiling.
      step: seconds of each further step, the median.
      operations: floating-point operations of a step, as XLA counts them before it optimises.
    """

    start: float
    step: float
    operations: float

    def steps(self, seconds: float) -> int:
        """How many steps are taken in so many seconds; 1 at least."""
        return max(1, int((seconds - self.start) / self.step) + 1)

    def seconds(self, steps: float) -> float:
        """When so many steps are taken, without evaluations."""
        return self.start + (steps - 1) * self.step


def measure(config: ConfigDict) -> Cost:
    """The Cost of a complete config, by a few steps; nothing else should run meanwhile.

    Raises:
      UserError: the config is not possible.
    """
    config = config.copy_and_resolve_references()
    config.train.substeps = 1  # XLA counts what is in a loop only once
    config.train.steps = TIMED + 1
    train.check(config)
    jax.clear_caches()
    start = time.perf_counter()
    parts = run_lib.build(config)
    step, batches, wait = train.compile_step(config, parts, 0)
    state = parts.init()
    data = devices.replicate(resident.arrays(parts.data.train, config.data))
    wait()
    moments = [start]
    for _, _, batch in batches:
        state, _ = step(state, data, batch)
        jax.block_until_ready(state)
        moments.append(time.perf_counter())
    first, *later = (after - before for before, after in zip(moments, moments[1:]))
    counted = step.lower(state, data, batch).cost_analysis()
    return Cost(first, statistics.median(later), counted["flops"] * jax.device_count())


def measure_trials(trials: Sequence[Trial], workdir: pathlib.Path) -> dict[str, Cost]:
    """{variant: the Cost of its trial}. It is kept in budget.json of the study, so that all runs of a variant
    take as many steps."""
    path = make_folder(workdir) / "budget.json"
    found = read(workdir)
    for trial in tqdm([trial for trial in trials if trial.variant not in found], "timing", disable=None):
        found[trial.variant] = measure(trial.config)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({name: cost._asdict() for name, cost in found.items()}, indent=2) + "\n")
        part.replace(path)
    return {trial.variant: found[trial.variant] for trial in trials}


def read(workdir: pathlib.Path) -> dict[str, Cost]:
    """What budget.json of a study holds; {} where there is none."""
    path = workdir / "budget.json"
    kept: Mapping[str, Mapping[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    return {name: Cost(**cost) for name, cost in kept.items()}
