"""Eight virtual CPU devices in the process of every test, and helpers for tiny training runs."""

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

# experiments.on_gpu sets VDM_TESTS_ON to run tests on its device instead of the CPU.
OTHER_DEVICE = "VDM_TESTS_ON" in os.environ
os.environ["JAX_PLATFORMS"] = os.environ.get("VDM_TESTS_ON", "cpu")

# Most programs here run once on a few pixels, so optimising them costs more than running them. Users run
# fully optimised programs: JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests those.
QUICK = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"


XLA_FLAGS = os.environ.get("XLA_FLAGS", "")  # the user's own


def xla_flags(devices):
    """The user's flags and the number of virtual devices. XLA's older emitters for fused loops compile in
    half the time; the XLA of JAX 0.12 no longer has them, and aborts on an unknown flag."""
    older = QUICK and importlib.metadata.version("jax").startswith("0.10.")
    own = f"--xla_force_host_platform_device_count={devices}" + older * " --xla_cpu_use_fusion_emitters=false"
    return f"{XLA_FLAGS} {own}"


if not OTHER_DEVICE:
    os.environ["XLA_FLAGS"] = xla_flags(8)

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Tracing creates millions of objects, and almost none of them is garbage.
gc.set_threshold(100_000)

# Programs that take long to compile are cached for other processes and later test runs. Caching all programs
# would take a third of the time of a cold run.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# A run of a second or two: the digits, a tiny network, and frequent logs, evaluations and checkpoints.
TINY_FIELDS = {
    "model.net.name": "mlp",
    "model.net.depth": 1,
    "model.net.width": 16,
    "model.sample_steps": 3,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.decay": "constant",
    "train.steps": 12,
    "train.batch_size": 16,
    "train.substeps": 2,
    "train.log_every": 3,
    "train.eval_every": 4,
    "train.checkpoint_every": 2,
    "train.sample_every": 6,
    "eval.passes": 2,
    "eval.passes_in_training": 1,
    "codec.timesteps": 3,
    "sample.num": 4,
    "sample.batch_size": 4,
}
TINY = {"config": "configs/digits.py"} | {f"config.{name}": value for name, value in TINY_FIELDS.items()}

# Fields of a line of metrics.jsonl that depend on the clock.
TIMING = ("seconds", "steps_per_second")


def make_config(fields=None, file=None):
    """The complete config of a file, or the default config, with fields set by dotted names as on the command
    line."""
    from vdm import commandline, config

    raw = config.default() if file is None else config.load(str(ROOT / file))
    return commandline.apply(raw, [f"--config.{name}={value}" for name, value in (fields or {}).items()])


def slow(*values):
    """A test's parameters with which it is slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


@contextlib.contextmanager
def few_devices(count=1):
    """Shows JAX only the first `count` devices: a program for one compiles in a fraction of the time."""
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
    """The command line of a tiny run, and an environment with this number of virtual devices."""
    flags = TINY | {"workdir": workdir, "cache": ROOT / ".pytest_cache" / "vdm"} | flags
    line = [sys.executable, "-m", "vdm.main"]
    line += [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return line, {**os.environ, "XLA_FLAGS": xla_flags(devices)}


def only(**flags):
    """Flags that unset the config fields of TINY and set those given, with _ for dots."""
    return {name: None for name in TINY if name.startswith("config")} | {
        name.replace("_", "."): value for name, value in flags.items()
    }


def run(workdir, devices=1, **flags):
    """Executes a tiny run to its end; returns the finished process with its output."""
    line, env = command(workdir, devices, **flags)
    return subprocess.run(line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def undescribed(folder, files):
    """The names in a folder that FILES (of vdm/workdir.py or vdm/sweep/saved.py) does not describe."""
    names = [name.removesuffix("/") for of in files for name in of.split(", ")]
    patterns = [re.sub("[A-Z]{2,}|…", "*", name) for name in names]
    found = sorted(path.name for path in folder.iterdir())
    return [name for name in found if not any(fnmatch.fnmatchcase(name, one) for one in patterns)]


def one_line(text):
    """The text of an error, which must be one line without a traceback."""
    assert text.count("\n") == 1 and "Traceback" not in text, text
    return text


def cli(*args):
    """Runs a command in this process; returns its exit code."""
    from vdm import main

    for flag in ("workdir", "mode", "cache", "components", "input", "output"):
        main.FLAGS[flag].unparse()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vdm", *map(str, args)])
        return main.cli()


def perturbed(params, size=0.1, seed=0):
    """Parameters with normal noise added, so that none is zero. NumPy avoids compiling a program for each
    shape."""
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
    """The lines of metrics.jsonl without the fields of TIMING."""
    from vdm.reporting.metrics import read_metrics

    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]
