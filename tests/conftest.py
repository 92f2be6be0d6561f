"""Eight virtual CPU devices for every test, so that one process can be many devices; and tiny runs."""

import contextlib
import fnmatch
import gc
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import pytest

# Where experiments.on_gpu runs tests, they are on the device that is there.
OTHER_DEVICE = "VDM_TESTS_ON" in os.environ
os.environ["JAX_PLATFORMS"] = os.environ.get("VDM_TESTS_ON", "cpu")

# Most programs here run once, on a few pixels, so that it costs more to optimise them than to run them. What
# users run is fully optimised: JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests that.
QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"


XLA_FLAGS = os.environ.get("XLA_FLAGS", "")  # the user's own


def xla_flags(devices):
    """Those that are set, and of so many virtual devices. XLA's older code for fused loops compiles in half
    the time; the XLA of JAX 0.12 has it no more, and ends at a flag that it does not know."""
    older = QUICK and importlib.metadata.version("jax").startswith("0.10.")
    own = f"--xla_force_host_platform_device_count={devices}" + older * " --xla_cpu_use_fusion_emitters=false"
    return f"{XLA_FLAGS} {own}"


if not OTHER_DEVICE:
    os.environ["XLA_FLAGS"] = xla_flags(8)

ROOT = pathlib.Path(__file__).resolve().parent.parent

# JAX makes millions of objects as it traces and next to no garbage among them.
gc.set_threshold(100_000)

# Programs that take long to compile are kept between the many processes, and between runs of the tests; to
# write all of them costs a cold run a third of its time.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# A run of a second or two: the digits, a tiny network, everything often.
TINY = {
    "config": "configs/digits.py",
    "config.model.net.name": "mlp",
    "config.model.net.depth": 1,
    "config.model.net.width": 16,
    "config.model.sample_steps": 3,
    "config.optimizer.name": "adamw",
    "config.optimizer.learning_rate": 1e-3,
    "config.optimizer.decay": "constant",
    "config.train.steps": 12,
    "config.train.batch_size": 16,
    "config.train.substeps": 2,
    "config.train.log_every": 3,
    "config.train.eval_every": 4,
    "config.train.checkpoint_every": 2,
    "config.train.sample_every": 6,
    "config.eval.passes": 2,
    "config.eval.passes_in_training": 1,
    "config.codec.timesteps": 3,
    "config.sample.num": 4,
    "config.sample.batch_size": 4,
}

# What the clock says in a line of metrics.jsonl.
TIMING = ("seconds", "steps_per_second")


def make_config(fields=None, file=None):
    """The complete config of a file, or without one of the defaults, with fields set by dotted names as on
    the command line."""
    from vdm import commandline, config

    raw = config.default() if file is None else config.load(str(ROOT / file))
    return commandline.apply(raw, [f"--config.{name}={value}" for name, value in (fields or {}).items()])


@contextlib.contextmanager
def few_devices(count=1):
    """Shows JAX so many of the eight devices: a program for one is compiled in a fraction of the time."""
    import jax

    with pytest.MonkeyPatch.context() as patch:
        first = jax.local_devices()[:count]
        patch.setattr(jax, "devices", lambda *_: first)
        patch.setattr(jax, "device_count", lambda *_: count)
        patch.setattr(jax, "local_device_count", lambda *_: count)
        yield


@pytest.fixture(scope="module")
def single():
    with few_devices():
        yield


def command(workdir, devices=1, **flags):
    """The command line of a tiny run, and its environment of that many virtual devices."""
    flags = TINY | {"workdir": workdir, "cache": ROOT / ".pytest_cache" / "vdm"} | flags
    line = [sys.executable, "-m", "vdm.main"]
    line += [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return line, {**os.environ, "XLA_FLAGS": xla_flags(devices)}


def only(**flags):
    """Flags that unset all of TINY's config but what is given, with _ for the dots."""
    return {name: None for name in TINY if name.startswith("config")} | {
        name.replace("_", "."): value for name, value in flags.items()
    }


def run(workdir, devices=1, **flags):
    """Runs a tiny run to its end; returns the finished process with its output."""
    line, env = command(workdir, devices, **flags)
    return subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def undescribed(folder, files):
    """The names in a folder of which FILES, of vdm/workdir.py or vdm/sweep/saved.py, says nothing."""
    names = [name.removesuffix("/") for of in files for name in of.split(", ")]
    patterns = [re.sub("[A-Z]{2,}|…", "*", name) for name in names]
    found = sorted(path.name for path in folder.iterdir())
    return [name for name in found if not any(fnmatch.fnmatchcase(name, one) for one in patterns)]


def one_line(text):
    """An error as users see it."""
    assert text.count("\n") == 1 and "Traceback" not in text, text
    return text


def cli(*args):
    """The exit code of a command, in this process."""
    from vdm import main

    for flag in ("workdir", "mode", "cache", "components", "input", "output"):
        main.FLAGS[flag].unparse()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vdm", *map(str, args)])
        return main.cli()


def perturbed(params, size=0.1, seed=0):
    """Parameters as training may leave them, of which none is at zero any more; by NumPy, which needs
    no program for each shape."""
    import jax
    import numpy as np

    random = np.random.default_rng(seed)
    add = lambda value: value + np.float32(size * random.normal(size=value.shape))
    return jax.tree.map(add, jax.device_get(params))


def state(workdir, step=12):
    """Every array of a checkpoint, as bytes by name."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    path = workdir / "checkpoints" / str(step) / "state"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(
            lambda saved: jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=here),
            checkpointer.metadata(path).item_metadata.tree,
        )
        tree = checkpointer.restore(path, like)
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(value).tobytes() for path, value in flat}


def metrics(workdir):
    """The lines of metrics.jsonl without what the clock says."""
    from vdm.reporting.metrics import read_metrics

    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]
