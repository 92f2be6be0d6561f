"""Compiles the programs of a config for devices that need not exist: the training step, the evaluation and
the sampler, each mapped over devices as in a run."""

import contextlib
import dataclasses
import time
from typing import Any
from unittest import mock

import jax
from jax._src.cudnn import fused_attention_stablehlo
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict
import numpy as np

from experiments.accelerators import memory
from experiments.accelerators.targets import Target
from vdm import (
    objective as objective_lib,
    optimizer as optimizer_lib,
    run as run_lib,
    sample as sample_lib,
    step as step_lib,
)
from vdm.data import source
from vdm.data.batches import resident_shapes
from vdm.data.dataset import Spec, Split
from vdm.errors import UserError, one_of, require
from vdm.evaluation import passes
from vdm.evaluation.elbo import one_draw
from vdm.evaluation.profile import UNIFORM
from vdm.runtime import devices

PROGRAMS = ("step", "evaluation", "sampler")

# The number of training images of published data sets, and their Spec. To compile a program, the images
# themselves are not needed.
KNOWN = {
    "cifar10": (50_000, Spec((32, 32, 3), 256, 10)),
    "mnist": (60_000, Spec((28, 28, 1), 256, 10)),
    "downsampled_imagenet/32x32": (1_281_149, Spec((32, 32, 3), 256, 0)),
    "downsampled_imagenet/64x64": (1_281_149, Spec((64, 64, 3), 256, 0)),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program compiled for one device of a target.

    Attributes:
      text: the optimised HLO.
      memory: JAX's CompiledMemoryStats, in bytes per device.
      seconds: the times of tracing and of compilation.
      images: number of images that one device processes per call.
      parameters: number of the model's parameters.
    """

    text: str
    memory: Any
    seconds: tuple[float, float]
    images: int
    parameters: int


def data_of(config: ConfigDict, shape: tuple[int, int, int] | None = None) -> tuple[Split, Spec]:
    """The training split and the Spec of config.data, with blank images if the data set is one of KNOWN; or
    those of a million blank images of the given `shape`.

    Raises:
      UserError: the data set is not known and not found.
    """
    if shape:
        spec = Spec(shape, 256, 0)
        return _empty(1_000_000, spec), spec
    known = KNOWN.get(config.data.name.partition(":")[0])
    if known:
        return _empty(*known), known[1]
    data = source.load(config.data)
    return data.train, data.spec


def _empty(size, spec):
    def read(indices):
        images = np.zeros((len(indices), *spec.shape), np.uint8)
        return {"image": images, "label": np.zeros(len(indices), np.int32)}

    return Split(size, read, size * int(np.prod(spec.shape)))


def compile_for(
    target: Target, config: ConfigDict, name: str, shape: tuple[int, int, int] | None = None
) -> Compiled:
    """Compiles one of PROGRAMS for a Target; `shape` as in `data_of`.

    Raises:
      UserError: the batch size is not a multiple of the number of devices, or the program needs more memory
        than a device has, or it cannot be compiled.
    """
    one_of("the program", name, PROGRAMS)
    split, spec = data_of(config, shape)
    batch = {"step": config.train, "evaluation": config.eval, "sampler": config.sample}[name].batch_size
    parts = target.count * (config.train.accumulate if name == "step" else 1)
    field = {"step": "train", "evaluation": "eval", "sampler": "sample"}[name]
    require(
        batch % parts == 0,
        f"config.{field}.batch_size is {batch}; accepted for {target.name}: a multiple of {parts}, such as "
        f"{-(-batch // parts) * parts}.",
    )
    with devices.described(target.devices()), with_cudnn():
        function, splits, args, params = _program(name, config, split, spec, batch // target.count)
        donate = (0,) if name == "step" else ()
        axis = 1 if name == "step" else 0
        mapped = devices.over_devices(function, config.parallel, *splits, donate=donate, batch_axis=axis)
        began = time.perf_counter()
        lowered = mapped.lower(*args)
        traced = time.perf_counter()
        text = str if config.parallel == "fsdp" else lowered.as_text
        try:
            program = lowered.compile()
        except Exception as error:
            needed = memory.of_error(str(error))
            if needed:
                memory.require_room(target, field, args, splits[0], batch, needed, text)
            raise UserError(f"{target.name}, {name}: {_short(error)}") from error
        temporary = program.memory_analysis().temp_size_in_bytes
        memory.require_room(target, field, args, splits[0], batch, temporary, text)
    took = (traced - began, time.perf_counter() - traced)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Compiled(program.as_text(), program.memory_analysis(), took, batch // target.count, count)


@contextlib.contextmanager
def with_cudnn():
    """Traces cuDNN's attention as on a GPU. JAX checks for the library and a device, though compiling needs
    neither."""
    with (
        mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000),
        mock.patch.object(fused_attention_stablehlo, "check_compute_capability", lambda _: True),
    ):
        yield


def _short(error):
    """The first lines of a compiler's message, which state the missing memory and the largest arrays."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:4])[:600]


ROOT = jax.ShapeDtypeStruct((2,), np.uint32)  # shape and type of randomness.root


def _program(
    name: str, config: ConfigDict, split: Split, spec: Spec, share: int
) -> tuple[Any, tuple[Any, Any], tuple[PyTree, ...], PyTree]:
    """A function for one device, which of its arguments and results are split, the shapes of its arguments,
    and the shapes of the model's parameters."""
    model = run_lib.build_model(config, spec)
    objective = objective_lib.build(config.objective, model)
    count = devices.count()
    shaped = lambda shape, dtype=np.int32: jax.ShapeDtypeStruct(shape, dtype)
    example = {
        "image": np.zeros((1, *spec.shape), np.uint8),
        "label": np.zeros(1, np.int32),
        "augmented": np.zeros(1, np.float32),
    }
    function: Any
    params, own = jax.eval_shape(
        lambda: step_lib.init_params(model, objective, jax.random.key(config.seed), example)
    )
    if name == "evaluation":
        batch = {
            "image": shaped((count, share, *spec.shape), np.uint8),
            "label": shaped((count, share)),
            "augmented": shaped((count, share), np.float32),
            "index": shaped((count, share)),
        }
        args = (
            params,
            (ROOT, shaped((4,))),
            jax.eval_shape(lambda: jnp.asarray(UNIFORM, jnp.float32)),
            batch,
        )
        return passes.of_device(one_draw(model)), passes.SPLIT, args, params
    if name == "sampler":
        function = sample_lib.of_device(model, config, spec)
        return function, sample_lib.SPLIT, (params, ROOT, shaped((count, share))), params
    roles = step_lib.trained(model.roles(params), None if own is None else objective.roles(own))
    optimizer = optimizer_lib.build(config.optimizer, config.train.steps, roles)
    state = jax.eval_shape(lambda p, o: step_lib.first_state(model, optimizer, p, o), params, own)
    state = devices.state_like(state, config.parallel)
    arrays = resident_shapes(split, config.data)
    front = (count, config.train.substeps, share)
    streamed = {"image": shaped((*front, *spec.shape), np.uint8), "label": shaped(front)}
    batch = {"index": shaped(front)} if arrays else streamed
    function = step_lib.make_step(model, objective, optimizer, config, spec.shape)
    data = arrays | {"root": ROOT}
    return function, ((False, False, True), (False, False)), (state, data, batch), params
