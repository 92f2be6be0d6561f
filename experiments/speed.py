"""How fast this machine runs a model, and how much of what it could do that is.

  python -m experiments.speed                        # a CPU: two sizes of the CIFAR-10 model
  python -m experiments.speed --out=runs/speed       # a GPU or TPU: the CIFAR-10 model

Random pictures stand for the data, and the training step is the one that training takes. Each
case is measured in turn with a large product of two square matrices in its own precision, just
before and just after each step, and the share is the median over steps of

  (floating-point operations of the model) / (seconds) / (those of the product / its seconds).

Those of the model are counted by formula: three times the forward pass, twice the multiply-adds of
its convolutions, dense layers and attention; what is computed again to save memory, or beside
them, counts as nothing. Prints a Markdown table, and writes it with every number to speed.md and
speed.json.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
import time

from absl import app, flags, logging
import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
from tqdm import tqdm

from configs import cifar10
from vdm import model as model_lib, sample
from vdm.data import dataset as data_lib
from vdm.evaluation import evaluate
from vdm.reporting import report
from vdm.runtime import devices
from vdm import step as step_lib
from vdm.errors import UserError, require

FLAGS = flags.FLAGS

SPEC = data_lib.Spec((32, 32, 3), 256, 10)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: a size of the CIFAR-10 model."""

    depth: int
    width: int
    batch: int
    dtype: str
    remat: str

    def __str__(self):
        return f"{self.depth} × {self.width}, batch {self.batch}, {self.dtype}, remat {self.remat}"


def cases():
    """On a CPU two sizes that it can run; elsewhere the paper's model in both precisions."""
    if jax.default_backend() == "cpu":
        small = Case(4, 64, 16, "float32", "dots")
        large = Case(32, 128, 8, "float32", "dots")
        return [small, large, *(dataclasses.replace(large, remat=r) for r in ("none", "block"))]
    batch = 128 * jax.device_count()
    whole = [Case(32, 128, batch, d, r) for d in ("bfloat16", "float32") for r in ("dots", "none")]
    return [*whole, dataclasses.replace(whole[0], remat="block")]


def configure(case):
    """The config of a Case."""
    config = cifar10.get_config()
    net = dict(depth=case.depth, width=case.width, dtype=case.dtype, remat=case.remat)
    config.model.net.update(net)
    config.train.batch_size = config.eval.batch_size = case.batch
    config.sample.num = config.sample.batch_size = case.batch
    config.model.sampler = "dpm2m"
    config.model.sample_steps = 2
    return config


def unet_flops(net, spec, outputs, told):
    """Floating-point operations of one forward pass of a U-Net for one picture: two for each
    multiply-add of its products (the rest is about a hundredth of them).

    Args:
      net: config.model.net. outputs: channels that come out. told: numbers that go in beside γ.
    """
    height, width, channels = spec.shape
    pixels, wide = height * width, net.width

    def conv(into, out):
        return 9 * pixels * into * out

    def block(into):
        shortcut = pixels * into * wide if into != wide else 0
        return conv(into, wide) + conv(wide, wide) + 4 * wide * wide + shortcut

    # Queries, keys, values and their output, and twice all pixels by all pixels.
    attention = 4 * pixels * wide**2 + 2 * pixels**2 * wide
    blocks = (net.depth + 2) * block(wide) + (net.depth + 1) * block(2 * wide)
    attentions = 1 if net.attention == "middle" else 2 * net.depth + 2
    embedding = 4 * wide * (wide + told) + (4 * wide) ** 2
    ends = conv(channels * (1 + 2 * net.fourier), wide) + conv(wide, outputs)
    return 2 * (blocks + attentions * attention + embedding + ends)


def matmul_rate(dtype, seconds):
    """Returns () → floating-point operations a second of a product of square matrices, all devices
    of this host together, sustained for about so long."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    times = 1 if jax.default_backend() == "cpu" else 20
    draw = jax.pmap(lambda key: jax.random.normal(key, (side, side), dtype) / side**0.5)
    a = draw(jax.random.split(jax.random.key(0), jax.local_device_count()))

    def power(a):
        return jax.lax.fori_loop(0, times, lambda _, b: a @ b, a)

    multiply = jax.pmap(power)
    jax.block_until_ready(multiply(a))

    def rate():
        count, begun = 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            jax.block_until_ready(multiply(a))
            count += 1
        return count * times * len(a) * 2.0 * side**3 / passed

    return rate


def seconds_of(function):
    """How long a call takes until its result is there."""
    begun = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - begun


def compile_times(mapped, args):
    """Seconds to trace and to compile a function, and to get it back from a cache on disk; and
    the program."""

    def once():
        jax.clear_caches()
        begun = time.perf_counter()
        lowered = mapped.lower(*args)
        traced = time.perf_counter()
        program = lowered.compile()
        return traced - begun, time.perf_counter() - traced, program

    kept = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()
        trace, compiled, _ = once()
        again, loaded, program = once()
        jax.config.update("jax_compilation_cache_dir", kept)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
        compilation_cache.reset_cache()
    return trace, compiled, again + loaded, program


def measure(case, steps):
    """{name: number} of a Case; times in seconds."""
    config = configure(case)
    model = model_lib.build(config, SPEC)
    optimizer = step_lib.make_optimizer(config.optimizer, config.train.steps)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (4 * case.batch, *SPEC.shape)).astype(np.uint8)
    split = data_lib.in_memory(images)
    data = data_lib.Data(split, split, SPEC)
    state = step_lib.make_init(model, optimizer, 0, next(data_lib.eval_batches(split, 1)))()
    state = devices.replicate(state)
    resident = devices.replicate(data_lib.resident(split, config))
    substeps = 1 if jax.default_backend() == "cpu" else 10
    index = draw.integers(0, len(images), (substeps, case.batch)).astype(np.int32)
    batch = {"index": np.stack(np.split(index, jax.device_count(), axis=1))}

    mapped = devices.over_devices(
        step_lib.make_step(model, optimizer, config, SPEC.shape),
        "pmap",
        split_in=(False, False, True),
        split_out=(False, False),
        donate=(0,),
    )
    trace, compiled, start, program = compile_times(mapped, (state, resident, batch))
    memory = program.memory_analysis()

    forward = unet_flops(config.model.net, SPEC, SPEC.shape[-1], told=1)
    work = 3 * forward * case.batch * substeps
    rate = matmul_rate(case.dtype, 0.7)

    def train():
        nonlocal state
        state, metrics = mapped(state, resident, batch)
        return metrics

    seconds_of(train)
    taken, rates = [], [rate()]
    for _ in range(steps):
        taken.append(seconds_of(train))
        rates.append(rate())
    shares = [
        work / seconds / (0.5 * (before + after))
        for seconds, before, after in zip(taken, rates, rates[1:])
    ]
    step = float(np.median(taken)) / substeps

    one_pass = evaluate.make_evaluator(model, config, data)
    one_pass(state.ema, 1)
    evaluation = seconds_of(lambda: one_pass(state.ema, 1)[0].values["bpd"])
    sampler = sample.make_sampler(model, config, data)
    sampler(state.ema)
    sampling = seconds_of(lambda: sampler(state.ema))
    return {
        "trace": trace,
        "compile": compiled,
        "start with cache": start,
        "step": step,
        "examples/s": case.batch / step,
        "share": float(np.median(shares)),
        "share, lowest": min(shares),
        "share, highest": max(shares),
        "matmul TFLOP/s": float(np.median(rates)) / 1e12,
        "forward GFLOP/image": forward / 1e9,
        "temporary MB/image": memory.temp_size_in_bytes * jax.device_count() / case.batch / 1e6,
        "evaluation images/s": len(images) / evaluation,
        "sampling evaluations/s": case.batch * config.model.sample_steps / sampling,
        "input images/s": input_rate(config, split),
    }


def input_rate(config, split, seconds=2.0):
    """Images a second that the input pipeline reads where the data is not kept on the devices."""
    config = config.copy_and_resolve_references()
    config.data.on_device_gib = 0.0
    config.train.steps = 10**9
    chunks = ((step, 1) for step in range(10**9))
    batches = data_lib.train_chunks(split, config, 0, chunks)
    next(batches)
    count, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        next(batches)
        count += 1
    batches.close()
    return count * config.train.batch_size / passed


COLUMNS = {
    "trace": "trace, s",
    "compile": "compile, s",
    "start with cache": "both from cache, s",
    "step": "step, s",
    "examples/s": "examples/s",
    "share": "share of matmul",
    "matmul TFLOP/s": "matmul, TFLOP/s",
    "temporary MB/image": "temporary MB/image",
    "evaluation images/s": "evaluated/s",
    "sampling evaluations/s": "sampler's evaluations/s",
    "input images/s": "input/s",
}


def table(found):
    """Markdown of {Case: measure(…)}."""

    def text(name, value):
        return f"{value:.0%}" if name == "share" else f"{value:.3g}" if value < 1e3 else f"{value:,.0f}"

    rows = [[str(case), *(text(name, numbers[name]) for name in COLUMNS)] for case, numbers in found.items()]
    return report.markdown_table(("model", *COLUMNS.values()), rows)


def main(argv):
    """Measures each case, prints the table, and writes all."""
    logging.set_verbosity(logging.ERROR)  # the libraries' own reports are not the study's
    out = pathlib.Path(FLAGS.out).expanduser()
    try:
        require(not argv[1:], f"{' '.join(argv[1:])!r} is no flag; see --help.")
        every = cases()
        numbers = FLAGS.cases or [str(n + 1) for n in range(len(every))]
        wrong = [n for n in numbers if not n.isdigit() or not 1 <= int(n) <= len(every)]
        require(not wrong, f"--cases has {wrong}; accepted: 1 to {len(every)}, joined by commas.")
    except UserError as error:
        sys.exit(f"error: {error}")
    kind = f"{jax.device_count()} × {jax.devices()[0].device_kind}, JAX {jax.__version__}"
    print(kind, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    bar = tqdm([every[int(n) - 1] for n in numbers], "cases", disable=None)
    for case in bar:
        bar.set_postfix_str(str(case))
        found[case] = measure(case, FLAGS.steps)
        text = table(found)
        (out / "speed.md").write_text(f"{kind}\n\n{text}\n")
        rows = [dataclasses.asdict(case) | numbers for case, numbers in found.items()]
        (out / "speed.json").write_text(json.dumps({"device": kind, "cases": rows}, indent=2) + "\n")
    print(text)
    print(f"{out}: speed.md, speed.json")


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/speed", "Folder for speed.md and speed.json.")
    flags.DEFINE_integer("steps", 5, "Timed training steps of each case.", lower_bound=1)
    flags.DEFINE_list("cases", None, "Only the cases with these numbers, from 1 on.")
    app.run(main)
