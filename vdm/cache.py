"""Compiled programs, kept between runs: a second start need not compile."""

import hashlib
import os
import pathlib
import platform

FOLDER = "~/.cache/vdm"  # the default


def enable(folder):
    """Keeps compiled programs under `folder`; an empty one keeps none. JAX's own variable
    JAX_COMPILATION_CACHE_DIR goes first.

    What a CPU compiles is for its kind alone, and a home may be shared by many kinds: each has
    its own folder in there.
    """
    if folder and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        import jax  # only now, as main.py asks for FOLDER before it needs JAX

        kind = hashlib.sha256(_cpu().encode()).hexdigest()[:8]
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).expanduser() / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _cpu():
    """What this CPU is and can do."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    kinds = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
