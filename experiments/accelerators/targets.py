"""Accelerators by name: the manufacturers' figures, and JAX devices that describe them.

Programs are compiled ahead of time for the described devices, on a machine without them.
"""

from collections.abc import Sequence
import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from vdm.errors import UserError, one_of, require

EXTRA = "pip install -c constraints.txt -e '.[accelerators]'"


@dataclasses.dataclass(frozen=True)
class Chip:
    """The manufacturer's figures of one device.

    Attributes:
      memory: in bytes.
      bandwidth: memory bandwidth, in bytes per second.
      bfloat16: floating-point operations per second of dense bfloat16 matrix products.
      float32: the same for float32, as JAX computes these products by default: in TensorFloat-32 on a GPU,
        and in one pass of bfloat16 on a TPU.
    """

    memory: float
    bandwidth: float
    bfloat16: float
    float32: float


TPUS = {
    "v4": Chip(32 * 2**30, 1.23e12, 275e12, 275e12),
    "v5e": Chip(16 * 2**30, 0.82e12, 197e12, 197e12),
    "v5p": Chip(95 * 2**30, 2.77e12, 459e12, 459e12),
    "v6e": Chip(32 * 2**30, 1.64e12, 918e12, 918e12),
}
GPUS = {
    "a100": Chip(80e9, 2.04e12, 312e12, 156e12),
    "h100": Chip(80e9, 3.35e12, 989e12, 495e12),
    "h200": Chip(141e9, 4.8e12, 989e12, 495e12),
    "b200": Chip(180e9, 7.7e12, 2250e12, 1125e12),
}
HOST = 8  # GPUs per host

# The description of a GPU for XLA's compiler: number of streaming multiprocessors, arithmetic units of each,
# clock in GHz, bytes of L2 cache, bytes of shared memory per multiprocessor and per block, compute
# capability, and name.
_CUDA = {
    "a100": (108, 64, 1.41, 41943040, 167936, 166912, (8, 0), "NVIDIA A100-SXM4-80GB"),
    "h100": (132, 128, 1.98, 52428800, 233472, 232448, (9, 0), "NVIDIA H100 80GB HBM3"),
    "h200": (132, 128, 1.98, 52428800, 233472, 232448, (9, 0), "NVIDIA H200"),
    "b200": (148, 128, 1.965, 132644864, 233472, 232448, (10, 0), "NVIDIA B200"),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A number of chips of one kind, such as v5e:2x2 or h100:8."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return (TPUS | GPUS)[self.kind]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_gpu(self) -> bool:
        return self.kind in GPUS

    def devices(self) -> Sequence[jax.Device]:
        """JAX devices that describe the target, for devices.described.

        Raises:
          UserError: the compiler is not installed, or the topology does not exist.
        """
        return _gpus(self) if self.is_gpu else _tpus(self)


def parse(text: str) -> Target:
    """A Target by its name: TPU v4, v5e, v5p or v6e and a topology, such as v5e:2x2; or a100, h100, h200 or
    b200 and the number of GPUs, such as h100:8.

    Raises:
      UserError: the target is unknown.
    """
    kind, _, size = text.partition(":")
    one_of(f"the kind of target {text!r}", kind, (*TPUS, *GPUS))
    if kind in GPUS:
        count = int(size) if re.fullmatch(r"[1-9]\d*", size) else 1 if not size else 0
        require(
            0 < count <= HOST or count and count % HOST == 0,
            f"target {text!r} has {size!r} GPUs; accepted: 1 to {HOST}, or a multiple of {HOST}, on hosts of "
            f"{HOST}.",
        )
        return Target(text, kind, (max(1, count // HOST), min(count, HOST)))
    axes = 3 if kind in ("v4", "v5p") else 2
    require(
        re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (axes - 1), size),
        f"target {text!r} has the topology {size!r}; accepted: {axes} sizes, such as "
        f"'{kind}:{'x'.join(['2', '2', '1'][:axes])}'.",
    )
    return Target(text, kind, tuple(map(int, size.split("x"))))


def _tpus(target):
    os.environ.setdefault(
        "TPU_SKIP_MDS_QUERY", "1"
    )  # otherwise libtpu queries the network for this machine's TPU
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=target.name).devices
    except Exception as error:
        raise _missing(target, "libtpu", error) from error


def _gpus(target):
    try:
        return topologies.get_topology_desc(
            platform="cuda",
            topology="x".join(map(str, (1, *target.shape))),
            target_config=_description(target.kind),
        ).devices
    except Exception as error:
        raise _missing(target, "jax-cuda12-plugin", error) from error


def _missing(target, package, error):
    import importlib.util

    module = package.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        return UserError(
            f"target {target.name!r} needs the package {package}, which is not installed: {EXTRA}."
        )
    text = next(iter(str(error).splitlines()), "")
    if "lockfile" in text:
        return UserError(
            f"target {target.name!r}: another process compiles for TPUs, and libtpu allows one at a time."
        )
    return UserError(f"target {target.name!r} cannot be described: {text}")


def _description(kind):
    """A GpuTargetConfigProto as text."""
    cores, units, clock, cache, shared, of_block, (major, minor), name = _CUDA[kind]
    chip = GPUS[kind]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {chip.memory:.0f}
  shared_memory_per_block_optin: {of_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}"
"""
