"""The operations that the benchmark counts, and what a training step sends between devices."""

import math
import re

import jax
import numpy as np
import pytest

from conftest import make_config, slow
from experiments.speed import benchmark, flops
from vdm import objective as objective_lib, optimizer as optimizer_lib, run as run_lib, step as step_lib
from vdm.data.dataset import Spec
from vdm.nets import conv
from vdm.runtime import devices, randomness
from vdm.sweep import cost


@pytest.mark.parametrize("attention", ["middle", "everywhere"])
def test_counted_operations_are_those_of_the_compiler(attention):
    """Within 5%: the compiler also counts norms, and leaves out products with the padding."""
    config = benchmark.configure(benchmark.Case("unet", 2, 64, 1, "float32", "none"))
    config.model.net.attention = attention
    model = run_lib.build_model(config, benchmark.SPEC)
    net = model.net.clone(unroll=True)  # the compiler counts one iteration of a loop
    z, one = np.zeros((1, 32, 32, 3), np.float32), np.zeros(1, np.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), z, one, one[:, None])
    apply = jax.jit(lambda params: net.apply(params, z, one, one[:, None]))
    counted = apply.lower(params).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(flops.unet_flops(config.model.net, benchmark.SPEC, 3, 1), rel=0.05)


@pytest.mark.parametrize(
    "fields", [{}, {"depth": 1, "coarse": 3, "width": 48, "scales": 2, "patch": 2}, {"scales": 1}]
)
def test_counted_operations_of_a_pyramid_are_those_of_its_trace(fields, monkeypatch):
    """Without the extra row that a convolution on a CPU computes, which the formula leaves out."""
    monkeypatch.setattr(conv, "convolve_on_cpu", conv.convolve_3x3)
    config = benchmark.configure(benchmark.Case("pyramid", 2, 32, 1, "float32"))
    config.model.net.update(fields)
    net = run_lib.build_model(config, benchmark.SPEC).net
    z, one = np.zeros((1, 32, 32, 7), np.float32), np.zeros(1, np.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), z, one)
    counted = cost.products(jax.make_jaxpr(net.apply)(params, z, one).jaxpr)
    assert counted == flops.pyramid_flops(config.model.net, benchmark.SPEC, 7, net.out_channels)


@pytest.mark.parametrize("kind", ["pmap", slow("shard_map")])
def test_a_step_sends_the_gradient_once(kind):
    """In the compiled program of 8 devices, the all-reduces together have the size of the gradient plus four
    scalars of the loss, and there is no other communication."""
    config = make_config({"model.net.depth": 1}, "configs/digits.py")
    spec = Spec((8, 8, 1), 17, 10)
    model = run_lib.build_model(config, spec)
    objective = objective_lib.build(config.objective, model)
    batch = {
        "image": np.zeros((8, 1, 2, 8, 8, 1), np.uint8),
        "label": np.zeros((8, 1, 2), np.int32),
    }
    example = {
        "image": np.zeros((1, 8, 8, 1), np.uint8),
        "label": np.zeros(1, np.int32),
        "augmented": np.zeros(1, np.float32),
    }
    params, _ = jax.eval_shape(lambda: step_lib.init_params(model, objective, jax.random.key(0), example))
    optimizer = optimizer_lib.build(config.optimizer, 10, model.roles(params))
    init = step_lib.make_init(model, objective, optimizer, 0, example)
    like = devices.replicated_like(jax.eval_shape(init))
    mapped = devices.over_devices(
        step_lib.make_step(model, objective, optimizer, config, spec.shape),
        kind,
        split_in=(False, False, True),
        split_out=(False, False),
    )
    text = mapped.lower(like, {"root": randomness.root(0)}, batch).compile().as_text()
    collectives = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    sent = re.findall(rf"= (.*?) ({collectives})(?:-start)?\(", text)
    assert {name for _, name in sent} == {"all-reduce"}
    sizes = [
        math.prod(map(int, filter(None, shape.split(","))))
        for result, _ in sent
        for shape in re.findall(r"f32\[([\d,]*)\]", result)
    ]
    parameters = sum(value.size for value in jax.tree.leaves(like.params))
    assert sum(sizes) == parameters + 4  # the three terms, and the mean square of their sum
