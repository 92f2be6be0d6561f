"""The cost of a training step on this machine: seconds, and floating-point operations.

  python -m vdm.sweep.cost --config=configs/digits.py

Takes a few steps without a cache, so that the startup time is that of a first run. Nothing else should run
meanwhile. Prints a line of JSON.
"""

from collections.abc import Sequence
import json
import math
import statistics
import sys
import time
from typing import Any

from absl import flags
import jax
from ml_collections import ConfigDict

from vdm import commandline, config as config_lib, run as run_lib, train
from vdm.errors import require
from vdm.runtime import processor
from vdm.sweep import command
from vdm.sweep.budget import Cost

CALLS = 8  # timed calls of config.train.substeps steps, or of one step if steps are slow on a CPU


def measure(config: ConfigDict) -> Cost:
    """The Cost of a complete config.

    Raises:
      UserError: the config is not accepted.
    """
    config = config.copy_and_resolve_references()
    config.train.steps = (CALLS + 1) * config.train.substeps
    for name in ("log_every", "eval_every", "checkpoint_every", "sample_every"):
        config.train[name] = 0
    train.check(config)
    start = time.perf_counter()
    parts = run_lib.build(config)
    step, batches, wait = train.compile_step(config, parts, 0)
    state = parts.init()
    data = train.step_data(config, parts)
    wait()
    seconds, ended = [], time.perf_counter()
    for _, (_, count, batch) in zip(range(CALLS + 1), batches):  # a step includes the wait for its batch
        state, _ = step(state, data, batch)
        jax.block_until_ready(state)
        seconds.append((time.perf_counter() - ended) / count)
        ended = time.perf_counter()
    of_step = statistics.median(seconds[1:])
    first = time.perf_counter() - start - sum(seconds[1:]) * count - of_step * (count - 1)
    # With "fsdp" the traced function is that of all devices; otherwise it is that of one device.
    traced = 1 if config.parallel == "fsdp" else jax.device_count()
    counted = products(jax.make_jaxpr(step)(state, data, batch).jaxpr) / count * traced
    where = f"{jax.device_count()} × {jax.devices()[0].device_kind}, {len(processor.cores())} cores"
    return Cost(first, of_step, counted, where)


def products(jaxpr: Any) -> int:
    """Floating-point operations of the matrix products and convolutions in a traced function: two for each
    multiply-add. The body of a scan counts once for each iteration; of several branches, the most expensive
    counts."""
    total = 0
    for equation in jaxpr.eqns:
        kind, params = equation.primitive.name, equation.params
        if kind == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shared = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * shared
        elif kind == "conv_general_dilated":
            kernel, features = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[features]
        elif kind == "cond":
            total += max(products(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if kind == "scan" else 1
            inner = (getattr(value, "jaxpr", value) for value in jax.tree.leaves(params, is_leaf=_is_jaxpr))
            total += times * sum(products(value) for value in inner if hasattr(value, "eqns"))
    return total


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def run(others: Sequence[str]) -> None:
    """Prints the Cost of the config on the command line."""
    command.refuse_others(others)
    given = commandline.split(sys.argv)
    require(given.file, "--config is missing; give a config file, such as configs/digits.py.")
    config = commandline.apply(config_lib.load(given.file), given.args)
    print(json.dumps(measure(config)._asdict()))


if __name__ == "__main__":
    command.main(__doc__, flags.FlagValues(), run, commandline.split(sys.argv).rest)
