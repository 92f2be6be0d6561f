"""The header of a file: statements about the model, the images and the machine, and their checks."""

import hashlib
import importlib.metadata
import json
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

import vdm
from vdm.errors import require
from vdm.run import Run
from vdm.runtime import processor

# Fields of config.model that do not change the model's distributions.
OTHER = ("sampler", "sample_steps", "guidance")
FINEST = 1024  # largest config.codec.fineness

KINDS = {
    "model": str,
    "images": int,
    "shape": list,
    "sha": str,
    "timesteps": int,
    "fineness": int | float,
    "seed": int,
    "made": dict,
    "initial": list,
    "plain": list,
}


def check(header: Any, lanes: int, run: Run, path: str) -> None:
    """Raises UserError unless `codec.compress` can have written this header for the model of `run`.

    Args:
      lanes: number of stacks.
      path: the file's name, for error messages.
    """
    wrong = [name for name, kind in KINDS.items() if not isinstance(header.get(name), kind)]
    names = header.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        wrong.append("names")
    if not wrong:
        initial, images = header["initial"], header["images"]
        holds = {
            "shape": header["shape"] == list(run.data.spec.shape),
            "images": lanes <= images - len(header["plain"]),
            "names": not names or len(names) == images,
            "timesteps": header["timesteps"] >= 1,
            "fineness": 1 <= header["fineness"] <= FINEST,
            "initial": len(initial) == lanes and all(type(count) is int and count >= 0 for count in initial),
            "plain": all(_is_plain(each, lanes) for each in header["plain"]),
        }
        wrong = [name for name, right in holds.items() if not right]
    require(
        not wrong,
        f"{path!r} has a header whose {', '.join(wrong)} this model cannot have; give a file that "
        "--mode=compress wrote, and the --workdir of the model.",
    )


def _is_plain(each: Any, lanes: int) -> bool:
    """Whether this can be the (stack, number of words) of an image stored without the model."""
    if not (isinstance(each, list | tuple) and len(each) == 2 and all(type(part) is int for part in each)):
        return False
    return 0 <= each[0] < lanes and each[1] >= 1


def made_by() -> dict[str, str]:
    """The versions and the device, on which the last digits of a network's output may depend."""
    device = jax.devices()[0]
    kind = processor.name() if device.platform == "cpu" else device.device_kind
    versions = {name: importlib.metadata.version(name) for name in ("jax", "constriction")}
    return {"vdm": vdm.__version__, **versions, "device": kind}


def differences(made: dict[str, str]) -> str:
    """How this machine and its versions differ from those that wrote a file; "" without a difference."""
    here = made_by()
    return "; ".join(
        f"{name} {made.get(name)}, here {own}" for name, own in here.items() if own != made.get(name)
    )


def fingerprint(config: ConfigDict, run: Run) -> str:
    """A fingerprint of the model's config and of each bit of its parameters."""
    found = hashlib.sha256()
    section = {name: value for name, value in config.model.to_dict().items() if name not in OTHER}
    found.update(json.dumps([section, run.data.spec], sort_keys=True, default=vars).encode())
    for path, value in jax.tree_util.tree_leaves_with_path(run.state.ema):
        value = np.asarray(value)
        found.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        found.update(value.tobytes())
    return found.hexdigest()[:16]
