"""Variational diffusion models whose likelihood can be trusted."""

import importlib
from typing import Any

__version__ = "0.1.0"

# The interface for scripts and notebooks; imported on first use, as the import takes a second.
_INTERFACE = {
    "load": "vdm.interface",
    "train_model": "vdm.interface",
    "config_of": "vdm.interface",
    "judge": "vdm.likelihood",
}


def __getattr__(name: str) -> Any:
    if name not in _INTERFACE:
        raise AttributeError(f"module 'vdm' has no attribute {name!r}")
    return getattr(importlib.import_module(_INTERFACE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_INTERFACE])
