"""The cost of a step, counted and timed, and the number of steps that fit into --minutes."""

import json
import os
import re
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from conftest import ROOT, TINY, make_config, xla_flags
from experiments.speed import flops
from model_helpers import tiny_config
from sweep_helpers import study_here
from vdm import run as run_lib, train
from vdm.data.dataset import Spec
from vdm.nets import conv
from vdm.sweep import budget, cost, jobs, plan
from vdm.sweep.budget import Cost

pytestmark = pytest.mark.usefixtures("single")


@pytest.mark.parametrize("seconds", [1.0, 20.0, 20.4, 21.3, 60.0])
def test_as_many_steps_as_the_time_allows(seconds):
    cost = Cost(start=20.0, step=0.5, operations=1.0)
    steps = cost.steps(seconds)
    assert steps >= 0 and (steps == 0 or cost.seconds(steps) <= seconds)
    assert cost.seconds(steps + 1) > seconds


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_products_of_a_unet_are_those_of_the_formula(depth, remat):
    """The layers are a loop. On a CPU a convolution computes one row more than the image has."""
    fields = {"model.net.depth": depth, "model.net.width": 8, "model.net.remat": remat}
    config, spec = make_config(fields, "configs/cifar10.py"), Spec((32, 32, 3), 256, 10)
    model = run_lib.build_model(config, spec)
    batch = {"image": np.zeros((1, 32, 32, 3), np.uint8), "augmented": np.zeros(1, np.float32)}
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    z, ones = np.zeros((2, 32, 32, 3), np.float32), np.ones(2, np.float32)
    counted = cost.products(jax.make_jaxpr(model.eps_hat)(params, z, ones, ones[:, None]).jaxpr)
    formula = 2 * flops.unet_flops(config.model.net, spec, 3, condition_size=1)
    assert formula < counted < 1.035 * formula


@pytest.mark.parametrize("size", [4, 64])
def test_products_of_a_gradient(size):
    """Three convolutions: the forward one, with one row more than the image's 8; its input's gradient, with
    as many; and its kernel's gradient, in a loop over a few images at a time."""
    h, kernel = np.zeros((size, 8, 16, 5), np.float32), np.zeros((3, 3, 5, 7), np.float32)
    both = jax.value_and_grad(lambda h, kernel: jnp.sum(conv.convolve_on_cpu(h, kernel)), (0, 1))
    counted = cost.products(jax.make_jaxpr(both)(h, kernel).jaxpr)
    assert counted == 2 * (size * 16 * 9 * 5 * 7) * (9 + 9 + 8)


@pytest.mark.slow
def test_cost_of_a_step():
    """In a network with wide layers, nearly all operations are the multiply-adds of its matrix products: one
    per weight and image forward, and two backward, except for the first layers' inputs."""
    fields = {"model.net.name": "mlp", "model.net.width": 512, "train.batch_size": 64, "train.substeps": 3}
    config = tiny_config("digits", **fields)
    found = cost.measure(config)
    params = jax.tree.leaves(run_lib.build(config).like.params["net"])
    products = 2 * 64 * 3 * sum(value.size for value in params if value.ndim > 1)
    assert 0.9 * products < found.operations < 1.05 * products
    assert 0 < 3 * found.step < found.start and "cpu" in found.device


@pytest.mark.slow
def test_operations_are_those_of_all_devices():
    """Whether the traced function is that of one device (pmap) or of all (fsdp)."""
    line = [sys.executable, "-m", "vdm.sweep.cost", "--config=configs/digits.py", *SMALL]
    line.append("--config.optimizer.name=adamw")  # with pmap, each device computes the products of Muon
    operations = []
    for kind in ("pmap", "fsdp"):
        done = subprocess.run(
            [*line, f"--config.parallel={kind}"],
            env={**os.environ, "XLA_FLAGS": xla_flags(2)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        operations.append(Cost(*json.loads(done.stdout).values()).operations)
    assert operations[0] == pytest.approx(operations[1], rel=1e-3)


def test_seconds_of_a_step(monkeypatch):
    """By a clock that only steps advance: 100 s for the first call, of three steps, and 6 s for each later
    call except one slow call."""
    clock, calls = [0.0], []

    def compile_step(config, parts, first):
        def step(state, data, batch):
            clock[0] += 100.0 if not calls else 60.0 if len(calls) == 3 else 6.0
            calls.append(batch)
            return state, {}

        batches = ((number, 3, np.zeros(1)) for number in range(100))
        return step, batches, lambda: None

    monkeypatch.setattr(train, "compile_step", compile_step)
    monkeypatch.setattr(cost, "time", mock.Mock(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(cost, "products", lambda jaxpr: 30)
    monkeypatch.setattr(jax, "make_jaxpr", lambda step: lambda *args: mock.Mock())
    found = cost.measure(tiny_config("digits", **{"model.net.name": "mlp", "train.substeps": 3}))
    assert len(calls) == 1 + cost.CALLS
    assert found[:3] == (pytest.approx(100.0 - 2 * 2.0), pytest.approx(2.0), 10)


COSTS = {"narrow": Cost(4.0, 1.0, 1e9, "a CPU"), "wide": Cost(4.0, 2.0, 1e9, "a CPU")}


places = []  # where they were measured


@pytest.fixture
def asked(monkeypatch):
    """The variants whose cost was measured, by a stand-in."""
    found = []

    def measure(trial, slot):
        found.append(trial.variant)
        places.append(slot)
        return COSTS.get(trial.variant, COSTS["narrow"])

    monkeypatch.setattr(budget, "measure", measure)
    return found


GRID = {
    "narrow": {"model.net.width": 16},
    "wide": {"model.net.width": 32},
    "short": {"model.net.width": 16, "train.steps": 1},
}
SMALL = [f"--{name}={TINY[name]}" for name in ("config.model.net.name", "config.model.net.depth")]
DRY = [*SMALL, "--minutes=0.1", "--seeds=2", "--dry_run"]


def steps_of(out):
    """{run: steps} from the output of a dry run."""
    pattern = r"--workdir=\S*/(\S+) .*--config.train.steps=(\d+)"
    return {name: int(steps) for name, steps in re.findall(pattern, out)}


def test_every_variant_gets_the_same_minutes(tmp_path, asked):
    code, out, err = study_here(tmp_path, GRID, *DRY)
    assert code == 0, err
    want = {"narrow": 3, "wide": 2, "short": 1}
    assert steps_of(out) == {f"{name}-{seed}": want[name] for name in want for seed in range(2)}
    assert budget.read(tmp_path / "W")["wide"][0] == COSTS["wide"]
    assert asked == ["narrow", "wide", "short"]
    study_here(tmp_path, GRID, *DRY)
    assert len(asked) == 3, "a cost is measured once"
    study_here(tmp_path, GRID, *DRY, "--config.model.net.dtype=bfloat16")
    assert len(asked) == 6, "but again for another config"


WHERE = """
import json, os
cores, gpu = len(os.sched_getaffinity(0)), os.environ.get("CUDA_VISIBLE_DEVICES", "all")
print(json.dumps({"start": 1.0, "step": cores, "operations": 1.0, "device": gpu}))
"""


def test_a_step_is_timed_where_the_runs_will_be(tmp_path, monkeypatch):
    """On the GPU of a slot, or on its share of the cores, by a stand-in for cost.py."""
    run = subprocess.run
    monkeypatch.setattr(
        budget.subprocess, "run", lambda line, **how: run([sys.executable, "-S", "-c", WHERE], **how)
    )
    trial = plan.Trial("one", tmp_path / "one-0", ConfigDict(), [sys.executable, "-m", "vdm.main"])
    assert budget.measure(trial, jobs.Slot(gpu="3")).device == "3"
    half = jobs.shares(2)[0]
    assert budget.measure(trial, half).step == len(half.cpus or os.sched_getaffinity(0))


def test_steps_that_were_timed_on_different_parts_do_not_mix(tmp_path, asked, monkeypatch):
    study_here(tmp_path, GRID, *DRY, "--gpus=3,4", "--only=narrow")
    assert places[-1] == jobs.Slot(gpu="3")
    one = COSTS["narrow"]._replace(device="1 × GPU, 2 cores")
    monkeypatch.setitem(COSTS, "wide", one)
    code, _, err = study_here(tmp_path, GRID, *DRY, "--gpus=3,4")
    assert code == 2 and "were timed on different parts" in err and "wide on 1 × GPU, 2 cores" in err


def test_steps_that_were_timed_on_other_cores_are_said_to_be(tmp_path, asked, monkeypatch):
    count = len(jobs.shares(1)[0].cpus or os.sched_getaffinity(0))
    monkeypatch.setitem(COSTS, "narrow", COSTS["narrow"]._replace(device=f"1 × cpu, {count} cores"))
    line = [*DRY, "--only=narrow"]
    assert "were timed on" not in study_here(tmp_path, GRID, *line)[2]
    monkeypatch.setattr(budget.processor, "cores", lambda: [*range(count + 10)])
    note = f"note: the steps were timed on 1 × cpu, {count} cores; here, a run has {count + 10} cores."
    assert note in study_here(tmp_path, GRID, *line)[2]


def test_what_was_timed_can_be_looked_at(tmp_path, asked):
    """--status needs no variant that was left out, nor the config fields of the version that timed them."""
    study_here(tmp_path, GRID, *DRY, "--only=narrow")
    kept = json.loads((tmp_path / "W" / "budget.json").read_text())
    kept["narrow"][-1] = "of an earlier version"
    (tmp_path / "W" / "budget.json").write_text(json.dumps(kept))
    code, out, err = study_here(tmp_path, GRID, *SMALL, "--minutes=0.1", "--seeds=2", "--status")
    assert code == 0 and "narrow" in out and "wide" not in out and asked == ["narrow"], err


def test_only_what_is_asked_for_is_timed(tmp_path, asked):
    _, out, _ = study_here(tmp_path, GRID, *DRY, "--only=wide", "--config.train.eval_every=7")
    assert asked == ["wide"] and steps_of(out).keys() == {"wide-0", "wide-1"}
    assert "--config.train.eval_every=7" in out and out.count("eval_every") == 2


def test_the_chosen_variants_need_not_use_the_base_config(tmp_path, asked):
    grid = {"plain": {}, "other": {"config": "configs/vae.py"}}
    code, out, err = study_here(tmp_path, grid, *DRY, "--only=other")
    assert code == 0 and asked == ["other"], err
    assert steps_of(out).keys() == {"other-0", "other-1"}


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--only=wid"], "--only is 'wid'; accepted: 'narrow', 'wide', 'short'. Did you mean 'wide'?"),
        (
            ["--config.train.steps=5"],
            "--config.train.steps is set, but --minutes determines",
        ),
        (["--cluster=slurm"], "--minutes has to time narrow, wide, short on this machine"),
        (["--minutes=nan"], "--minutes is nan; accepted: a number above 0"),
    ],
)
def test_bad_input_is_found_before_anything_is_timed(flags, text, tmp_path, asked):
    code, _, err = study_here(tmp_path, GRID, *DRY, *flags)
    assert code == 2 and text in err and err.count("\n") == 1, err
    assert not asked


def test_too_few_minutes_for_one_step(tmp_path, asked):
    code, _, err = study_here(tmp_path, GRID, *DRY, "--minutes=0.05")
    assert code == 2 and "--minutes is 0.05; accepted: more than the 4 s until the first step" in err


def test_a_variant_that_cannot_be_trained_is_named(tmp_path):
    code, _, err = study_here(tmp_path, {"odd": {"model.net.heads": 3}}, "--minutes=1", "--dry_run")
    assert code == 2 and err.splitlines()[-1].startswith("error: variant 'odd': config.model.net.width is 64")
