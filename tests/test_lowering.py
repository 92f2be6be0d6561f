"""The programs of the paper's model lower for CUDA and TPU, without such a device, and in the form meant for
accelerators instead of the one that is fast on a CPU."""

import math
import re

import jax
from jax.sharding import Mesh, PartitionSpec
import numpy as np
import pytest

from conftest import few_devices, make_config, slow
from experiments.accelerators import programs
from vdm import (
    objective as objective_lib,
    optimizer as optimizer_lib,
    run as run_lib,
    sample as sample_lib,
    step as step_lib,
)
from vdm.data.dataset import Data, Spec, in_memory
from vdm.evaluation.elbo import make_elbo
from vdm.runtime import devices, randomness

PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}  # {platform: value of devices.platform()}
PROGRAMS = ("step", "evaluation", "sampler")

# The custom calls that a program may contain: shardings of arrays, random bits on a GPU, and the inverse
# error function, which XLA expands.
CALLS = {
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "cu_threefry2x32_ffi",
    "chlo.erf_inv",
    "mhlo.erf_inv",
}
CUDNN = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")  # in bfloat16


class Caught(Exception):
    """Carries what was to run over the devices: the function of one device, which arguments and results are
    split, and the arguments."""


def catch(function, kind, split_in, split_out, donate=()):
    """Replaces devices.over_devices."""

    def call(*args):
        raise Caught(function, split_in, split_out, args)

    return call


def caught(call, *args):
    with pytest.raises(Caught) as error:
        call(*args)
    return error.value.args


def program(name, config, monkeypatch):
    """(function of one device, which arguments are split, which results are split, arguments) of a run."""
    spec = Spec((32, 32, 3), 256, 10)
    zeros = np.zeros((256, *spec.shape), np.uint8)
    data = Data(in_memory(zeros), in_memory(zeros), spec)
    model = run_lib.build_model(config, spec)
    batch = {"image": zeros[:1], "label": np.zeros(1, np.int32), "augmented": np.zeros(1, np.float32)}
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    if name == "step":
        optimizer = optimizer_lib.build(config.optimizer, config.train.steps, model.roles(params))
        objective = objective_lib.build(config.objective, model)
        step = step_lib.make_step(model, objective, optimizer, config, spec.shape)
        state = jax.eval_shape(step_lib.make_init(model, objective, optimizer, config.seed, batch))
        images = {"image": jax.ShapeDtypeStruct((50_000, *spec.shape), np.uint8)}
        labels = {"label": jax.ShapeDtypeStruct((50_000,), np.int32)}
        root = {"root": randomness.root(config.seed)}
        index = jax.ShapeDtypeStruct((1, config.train.substeps, config.train.batch_size), np.int32)
        return step, (False, False, True), (False, False), (state, images | labels | root, {"index": index})
    monkeypatch.setattr(devices, "over_devices", catch)
    if name == "evaluation":
        return caught(make_elbo(model, config, data), params, 1)
    return caught(sample_lib.make_sampler(model, config, data), params)


def lowered(name, platform, monkeypatch, config):
    """The StableHLO of a program."""
    with few_devices(), monkeypatch.context() as patch:
        if platform != "cpu":
            patch.setattr(devices, "platform", lambda: PLATFORMS[platform])
        function, split_in, split_out, args = program(name, config, patch)

        def on_shard(*args):
            args = [jax.tree.map(lambda v: v[0], arg) if split else arg for arg, split in zip(args, split_in)]
            results = function(*args)
            return tuple(
                jax.tree.map(lambda v: v[None], result) if split else result
                for result, split in zip(results, split_out)
            )

        specs = [[PartitionSpec(devices.AXIS) if split else PartitionSpec() for split in splits]
                 for splits in (split_in, split_out)]  # fmt: skip
        mesh = Mesh(np.array(jax.devices()), (devices.AXIS,))
        mapped = jax.shard_map(
            on_shard, mesh=mesh, in_specs=tuple(specs[0]), out_specs=tuple(specs[1]), check_vma=False
        )
        shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(np.shape(v), v.dtype), args)
        allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in CUDNN]
        exported = jax.export.export(jax.jit(mapped), platforms=[platform], disabled_checks=allowed)(*shapes)
    assert exported.platforms == (platform,)
    return exported.mlir_module()


# Changes to configs/cifar10.py: its depth, and the steps per call.
PAPER = {"model.net.depth": 2, "train.substeps": 2}
PADDED = r"window = \{pad = (\[\[\d, \d\], \[\d, \d\]\])"
OF_KERNEL = "[f, 0, 1, b]x[i, 0, 1, o]->[0, 1, b, f]"  # the gradient of a kernel, as a convolution
ATTENTION = r"stablehlo.exponential .*: tensor<([\dx]*)x1024x1024xf32>"  # softmax over all pixels


def paper(**changes):
    return make_config(
        PAPER | {name.replace("__", "."): v for name, v in changes.items()}, "configs/cifar10.py"
    )


def images_at_once(text):
    """The number of images in each attention operation of a program, as a set."""
    return {math.prod(map(int, shape.split("x"))) for shape in re.findall(ATTENTION, text)}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_papers_model_lowers_for_accelerators(name, platform, monkeypatch):
    """Its convolutions and their gradients are plain; attention takes all images at once."""
    text = lowered(name, platform, monkeypatch, paper())
    assert set(re.findall(r"custom_call @([\w.$]+)", text)) <= CALLS
    assert set(re.findall(PADDED, text)) == {"[[1, 1], [1, 1]]"}
    assert text.count("stablehlo.convolution") == (36 if name == "step" else 12)
    assert text.count(OF_KERNEL) == (12 if name == "step" else 0)
    assert images_at_once(text) == {64 if name == "sampler" else 128}


@pytest.mark.parametrize("name", [slow(name) if name == "step" else name for name in PROGRAMS])
def test_on_a_cpu_it_is_the_other_form(name, monkeypatch):
    """Shows that the previous test would detect the form for a CPU."""
    text = lowered(name, "cpu", monkeypatch, paper())
    assert set(re.findall(PADDED, text)) == {"[[1, 2], [1, 1]]"}
    assert OF_KERNEL not in text and images_at_once(text) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_bfloat16_is_that_of_the_products(platform, monkeypatch):
    with programs.with_cudnn():
        text = lowered("step", platform, monkeypatch, paper(model__net__dtype="bfloat16"))
    assert ("fmhaSoftmaxBackward" in text) == (platform == "cuda")
    results = re.findall(r"stablehlo\.convolution.*-> tensor<[\dx]*x(\w+)>", text)
    assert results.count("bf16") == 3 * 10 and results.count("f32") == 3 * 2, "all but the first and the last"


def test_a_program_does_not_grow_with_depth(monkeypatch):
    """Identical layers are a loop: those of a U-Net on a TPU, those of a transformer on any accelerator."""
    transformer = {"model.net.name": "transformer", "model.net.width": 32, "model.net.patch": 4}

    def size(platform, depth, **fields):
        config = make_config(PAPER | fields | {"model.net.depth": depth}, "configs/cifar10.py")
        text = lowered("evaluation", platform, monkeypatch, config)
        return [text.count(word) for word in ("stablehlo.dot_general", "stablehlo.convolution", "call @")]

    assert size("tpu", 2) == size("tpu", 5)
    assert size("cuda", 2, **transformer) == size("cuda", 5, **transformer)
    assert size("cpu", 2, **transformer) < size("cpu", 5, **transformer)
