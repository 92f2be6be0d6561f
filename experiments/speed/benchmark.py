"""One case of the speed study: times training, evaluation and sampling of a CIFAR-10 model."""

from collections.abc import Callable
import dataclasses
import tempfile
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
import numpy as np

from configs import cifar10, cifar10_laptop
from experiments.speed.flops import matmul_rate, pyramid_flops, unet_flops
from vdm import (
    config as config_lib,
    objective as objective_lib,
    optimizer as optimizer_lib,
    run as run_lib,
    sample,
    step as step_lib,
)
from vdm.contract import Model
from vdm.data.batches import eval_batches, resident_arrays, train_batches
from vdm.data.dataset import Data, Spec, Split, in_memory
from vdm.evaluation.elbo import make_elbo
from vdm.runtime import devices, randomness

SPEC = Spec((32, 32, 3), 256, 10)
CONFIGS = {"unet": cifar10, "pyramid": cifar10_laptop}


@dataclasses.dataclass(frozen=True)
class Case:
    """The model to measure: a network of CONFIGS, its size, batch size and dtype; and `remat` for a U-Net."""

    net: str
    depth: int
    width: int
    batch: int
    dtype: str
    remat: str | None = None

    def __str__(self) -> str:
        remat = "" if self.remat is None else f", remat {self.remat}"
        return f"{self.net} {self.depth} × {self.width}, batch {self.batch}, {self.dtype}{remat}"


def configure(case: Case) -> ConfigDict:
    """The config of a Case."""
    config = CONFIGS[case.net].get_config()
    config.model.net.update(depth=case.depth, width=case.width, dtype=case.dtype)
    if config.optimizer.name == "muon":
        config.optimizer.dtype = case.dtype
    if case.remat is not None:
        config.model.net.remat = case.remat
    config.train.batch_size = config.eval.batch_size = case.batch
    config.sample.num = config.sample.batch_size = case.batch
    config.model.sampler = "dpm2m"
    config.model.sample_steps = 2
    return config_lib.complete(config)


def seconds_of(function: Callable[[], Any]) -> float:
    """The seconds from a call until its result is available."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def compile_times(mapped: Any, args: tuple[Any, ...]) -> tuple[float, float, float, Any]:
    """Seconds to trace a function, to compile it, and to do both with a cache on disk; and the program."""

    def once():
        jax.clear_caches()
        start = time.perf_counter()
        lowered = mapped.lower(*args)
        traced = time.perf_counter()
        program = lowered.compile()
        return traced - start, time.perf_counter() - traced, program

    settings: Any = jax.config
    folder_before = settings.jax_compilation_cache_dir
    seconds_before = settings.jax_persistent_cache_min_compile_time_secs
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        trace, compiled, _ = once()
        trace_again, loaded, program = once()
        jax.config.update("jax_compilation_cache_dir", folder_before)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds_before)
        compilation_cache.reset_cache()
    return trace, compiled, trace_again + loaded, program


@dataclasses.dataclass
class Trained:
    """A case whose training step was timed.

    Attributes:
      numbers: results by name, such as "step", in seconds, and "share" of the matrix product's rate.
      program: the compiled step.
      state: the training state after the timed steps.
    """

    config: ConfigDict
    model: Model
    split: Split
    numbers: dict[str, float]
    program: Any
    state: Any


def timed(case: Case, steps: int, compiled: Callable[[Any, tuple[Any, ...]], Any] | None = None) -> Trained:
    """Times training of a Case on random images.

    Args:
      steps: number of timed calls of the training step.
      compiled: compiles the mapped function for its arguments; by default without timing.
    """
    config = configure(case)
    model: Any = run_lib.build_model(config, SPEC)
    random = np.random.default_rng(0)
    split = in_memory(random.integers(0, 256, (4 * case.batch, *SPEC.shape)).astype(np.uint8))
    mapped, args = training_step(config, model, split, random)
    program = compiled(mapped, args) if compiled else mapped.lower(*args).compile()
    state, arrays, batch = args
    substeps = batch["index"].shape[1]

    if case.net == "pyramid":
        first = state.params["net"]["params"]["Dense_0"]["kernel"]
        forward = pyramid_flops(config.model.net, SPEC, first.shape[-2], model.net.out_channels)
    else:
        forward = unet_flops(config.model.net, SPEC, SPEC.shape[-1], condition_size=1)
    work = 3 * forward * case.batch * substeps
    rate = matmul_rate(case.dtype, 0.7)

    def train():
        nonlocal state
        state, metrics = program(state, arrays, batch)
        return metrics

    seconds_of(train)
    taken, rates = [], [rate()]
    for _ in range(steps):
        taken.append(seconds_of(train))
        rates.append(rate())
    shares = [
        work / seconds / (0.5 * (before + after)) for seconds, before, after in zip(taken, rates, rates[1:])
    ]
    step = float(np.median(taken)) / substeps
    numbers = {
        "step": step,
        "substeps": substeps,
        "examples/s": case.batch / step,
        "share": float(np.median(shares)),
        "share, lowest": min(shares),
        "share, highest": max(shares),
        "matmul TFLOP/s": float(np.median(rates)) / 1e12,
        "forward GFLOP/image": forward / 1e9,
    }
    return Trained(config, model, split, numbers, program, state)


def measure(case: Case, steps: int) -> dict[str, float]:
    """{name: number} of a Case, from `steps` calls of the training step; times in seconds."""
    compiling = {}

    def compiled(mapped, args):
        *seconds, program = compile_times(mapped, args)
        compiling.update(zip(("trace", "compile", "start with cache"), seconds))
        return program

    of = timed(case, steps, compiled)
    images, ema = of.split.size, of.state.ema
    data = Data(of.split, of.split, SPEC)
    evaluate = make_elbo(of.model, of.config, data)
    evaluate(ema, 1)
    evaluation = seconds_of(lambda: evaluate(ema, 1)[0].values["bpd"])
    sampler = sample.make_sampler(of.model, of.config, data)
    sampler(ema)
    sampling = seconds_of(lambda: sampler(ema))
    temporary = of.program.memory_analysis().temp_size_in_bytes
    return {
        **compiling,
        **of.numbers,
        "temporary MB/image": temporary * jax.device_count() / case.batch / 1e6,
        "evaluation images/s": images / evaluation,
        "sampling evaluations/s": case.batch * of.config.model.sample_steps / sampling,
        "input images/s": input_rate(of.config, of.split),
    }


def training_step(
    config: ConfigDict, model: Model, split: Split, random: np.random.Generator
) -> tuple[Any, tuple[Any, ...]]:
    """The training step over all devices, and the arguments of a call: state, data, and a batch of random
    indices."""
    objective = objective_lib.build(config.objective, model)
    example = next(eval_batches(split, 1))
    params, _ = jax.eval_shape(lambda: step_lib.init_params(model, objective, jax.random.key(0), example))
    optimizer = optimizer_lib.build(config.optimizer, config.train.steps, model.roles(params))
    state = devices.replicate(step_lib.make_init(model, objective, optimizer, 0, example)())
    data = devices.replicate(resident_arrays(split, config.data) | {"root": randomness.root(config.seed)})
    substeps = 1 if jax.default_backend() == "cpu" else 10
    index = random.integers(0, split.size, (substeps, config.train.batch_size)).astype(np.int32)
    batch = {"index": np.stack(np.split(index, jax.device_count(), axis=1))}
    mapped = devices.over_devices(
        step_lib.make_step(model, objective, optimizer, config, SPEC.shape),
        "pmap",
        split_in=(False, False, True),
        split_out=(False, False),
        donate=(0,),
    )
    return mapped, (state, data, batch)


def input_rate(config: ConfigDict, split: Split, seconds: float = 2.0) -> float:
    """Images per second that the input pipeline reads when the data are not kept on the devices."""
    config = config.copy_and_resolve_references()
    config.data.on_device_gib = 0.0
    config.train.steps = 10**9
    batches: Any = train_batches(split, config, ((step, 1) for step in range(10**9)))
    next(batches)
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        next(batches)
        count += 1
    batches.close()
    return count * config.train.batch_size / passed
