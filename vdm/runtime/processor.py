"""The processor of this machine, which decides the last bits of what a CPU computes."""

import os
import pathlib
import platform


def name() -> str:
    """The processor, and the instruction sets that XLA uses."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {name.strip(): value.strip() for name, value in known.items()}
    flags = known.get("flags", known.get("Features", "")).split()
    used = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    return " ".join([known.get("model name", platform.machine()), *used])


def cores() -> list[int]:
    """The cores that this process may use; [] where the system cannot state them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
