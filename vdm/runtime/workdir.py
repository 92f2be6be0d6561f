"""What a workdir was started with, and how far it came; as a config file: started.py:W/config.json.

Files alone, without JAX and Orbax, which take their time to import.
"""

import json
import pathlib

from configs import default
from vdm.errors import UserError, require
from vdm.config import flat


def get_config(path):
    """Fields of default.py that the workdir, made by an older version, has not are added."""
    config = default.get_config()
    config.update(_read(path))
    return config


def newest(workdir):
    """The step of the newest checkpoint in the workdir, or None where there is none."""
    names = [path.name for path in pathlib.Path(workdir).glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


# Fields that may differ when a run goes on: how long, what is told and drawn meanwhile, and in what
# precision and memory the same function is computed.
HARMLESS = (
    "train.steps",
    "train.keep",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.sample_every",
    "eval",
    "sample",
    "model.sampler",
    "model.sample_steps",
    "model.guidance",
    "model.net.dtype",
    "model.net.remat",
    "data.data_dir",
    "data.on_device_gib",
    "parallel",
)


def differences(old, new):
    """[(field, old value, new value)] of two nested dictionaries, without what is harmless."""
    old, new = flat(old), flat(new)
    return [
        (name, old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
        and not any(f"{name}.".startswith(f"{field}.") for field in HARMLESS)
    ]


def check_config(workdir, config):
    """Raises UserError where the workdir was started with a config that differs."""
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        return
    started = _read(path)
    # What the schema did not have then was as its default is.
    found = differences(_filled(started, default.get_config().to_dict()), config.to_dict())
    if found:
        fields = "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in found)
        raise UserError(
            f"{str(workdir)!r} was started with another config: {fields}. "
            "Set these fields back, or give another --workdir."
        )


def _read(path):
    try:
        found = json.loads(pathlib.Path(path).read_text())
        require(isinstance(found, dict), f"{str(path)!r} is damaged (no object); give another --workdir.")
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); give another --workdir.") from error
    return found


def _filled(config, defaults):
    """A nested dictionary with what it lacks from another."""
    both = {name: _filled(config[name], value) for name, value in defaults.items() if isinstance(config.get(name), dict)}
    return defaults | config | both


def write_config(workdir, config):
    """Writes config.json, whole or not at all."""
    path = pathlib.Path(workdir) / "config.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    part.replace(path)
