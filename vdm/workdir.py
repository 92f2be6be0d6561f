"""The files of a workdir, its config, and the step of its newest checkpoint.

Works with the files alone, without Orbax, which is slow to import.
"""

from collections.abc import Mapping
import importlib.util
import json
import os
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from vdm import config as config_lib
from vdm.component import OWN, load_file
from vdm.config import flat
from vdm.errors import UserError, require
from vdm.runtime.atomic import atomic_path, write_text

# The files of a workdir and their contents; a folder's name ends with "/". Words in capitals and "…" stand
# for names that vary.
FILES = {
    "config.json": "the complete config; later commands on this workdir need no `--config`",
    "components/": "the modules of components that the config names by import path",
    "provenance.json": "an entry each time the run was started or resumed: the commit, changed files of the "
    "checkout, versions, devices and the command",
    "start-NUMBER.patch": "the changes to the checkout at that time, for `git apply`",
    "imported.json": "the source of `--mode=import`",
    "data.json": "fingerprints of 256 images of each split, their shape, levels and classes; a run is not "
    "resumed with other images",
    "metrics.jsonl": "a line of JSON for each measurement: `split` is `train`, `test`, `validation` or, at "
    "the end, `final`; bits/dim, terms, errors, seconds",
    "elbo.png": "the curve of metrics.jsonl",
    "events.out.tfevents…": "the same numbers and the samples, for TensorBoard",
    "wandb/": "the same for Weights & Biases, with `--config.loggers=wandb`",
    "loggers.json": "the ids of the run in its loggers, so that a resumed run continues there",
    "checkpoints/": "a folder for each kept step; its checksums.json has the size and hash of each file",
    "damaged/": "damaged checkpoints that were set aside",
    "samples/": "samples during training, an image for each step",
    "samples.png, samples.npz": "the newest samples, as an image, and as an array for the data source `npz`",
    "eval.json": "the final estimate, or that of the last `--mode=eval`: each term, its standard error and "
    "the two parts of the error; then the other rows",
    "eval_images.csv": "all numbers for each image; a column for each row, named by its `id` in eval.json",
    "eval.md": "the tables and the checks that `--mode=eval` printed",
    "profile.csv": "the columns of density.png and distortion.png, for a model with a denoiser",
    "density.png": "the density of the diffusion term over t and over γ",
    "distortion.png": "distortion of an image against the rate in bits",
    "depth.png": "the ELBO of chains of T steps against T, from the estimator `depth`",
    "step-STEP/": "the output of `--mode=eval` and `--mode=sample` while the run trains",
    "lock, holder.json": "the lock of the writing process, and its host and process id",
    "log.txt": "the output of the run, in a study",
    "job.json": "the job of the run on a cluster, in a study",
}

# Fields that may change when a run is resumed: its length, its reports, and the precision and memory in which
# the same function is computed.
HARMLESS = (
    "train.steps",
    "train.accumulate",
    "train.keep",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.sample_every",
    "eval",
    "codec",
    "sample",
    "model.sampler",
    "model.sample_steps",
    "model.guidance",
    "model.net.dtype",
    "model.net.remat",
    "model.encoder.net.dtype",
    "model.encoder.net.remat",
    "data.data_dir",
    "data.on_device_gib",
    "parallel",
    "loggers",
)


def newest(workdir: pathlib.Path) -> int | None:
    """The step of the newest checkpoint in the workdir; None if there is no checkpoint."""
    names = [path.name for path in pathlib.Path(workdir).glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def make(workdir: pathlib.Path) -> None:
    """Makes the folder of a run if it does not exist.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir is {str(workdir)!r}, which cannot be written ({error.strerror}); give a folder that "
            "can be written."
        ) from error


# ---- config.json ---------------------------------------------------------------------


def read_config(workdir: pathlib.Path) -> ConfigDict:
    """The complete config that the workdir was started with.

    Raises:
      UserError: config.json is missing or damaged, or names a component whose module is not found.
    """
    require_modules(workdir)
    return config_lib.complete(read_raw(workdir), drop_unread=True)


def read_raw(workdir: pathlib.Path) -> dict[str, Any]:
    """config.json, with the field names of older versions replaced.

    Raises:
      UserError: config.json is missing or damaged.
    """
    path = pathlib.Path(workdir) / "config.json"
    require(path.is_file(), f"{str(workdir)!r} is not the workdir of a run: it has no config.json.")
    try:
        found = json.loads(path.read_text())
        require(isinstance(found, dict), f"{str(path)!r} is damaged (no object); give another --workdir.")
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); give another --workdir.") from error
    return _renamed(found)


def _renamed(found):
    """Translates a config of an older version to the names of this version."""
    model = found.get("model")
    if not isinstance(model, dict):
        return found
    found = found | {"model": (model := _with_new_names(model))}
    schedule = model.get("schedule")
    if not isinstance(schedule, dict):
        return found
    if model.get("name") == "diffusion":
        # In older versions, methods were fields of a single model.
        encoder = model.get("encoder")
        if isinstance(encoder, dict) and encoder.get("name") != "identity":
            found = found | {"model": (model := model | {"name": "diffenc"})}
        elif schedule.get("context"):
            found = found | {"model": (model := model | {"name": "mulan", "context": schedule["context"]})}
    elif schedule.get("context"):
        raise UserError(
            f"the config is of an older version, of a {model.get('name')!r} with "
            f"config.model.schedule.context = {schedule['context']}; in this version only 'mulan' has a "
            "context."
        )
    return found


def _with_new_names(model):
    """config.model with the present names of its parameterisation and of the pyramid's resolutions."""
    model, new = dict(model), {"levels": "categorical", "gaussian": "wiener"}
    how, net = model.get("parameterisation"), model.get("net")
    if isinstance(how, str):
        model["parameterisation"] = new.get(how, how)
    elif isinstance(how, dict) and isinstance(how.get("name"), str):
        model["parameterisation"] = how | {"name": new.get(how["name"], how["name"])}
    if isinstance(net, dict) and "levels" in net:
        model["net"] = {"scales" if field == "levels" else field: value for field, value in net.items()}
    return model


def write_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Writes config.json atomically, and keeps the modules of custom components."""
    keep_modules(workdir, config)
    path = pathlib.Path(workdir) / "config.json"
    write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")


def differences(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """[(field, old value, new value)] of two nested configs, without the fields in HARMLESS."""
    old, new = flat(old), flat(new)
    return [
        (name, old.get(name), new.get(name))
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
        and not any(f"{name}.".startswith(f"{field}.") for field in HARMLESS)
    ]


def check_config(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Raises UserError if the workdir was started with another config or another component module."""
    if not (pathlib.Path(workdir) / "config.json").exists():
        return
    _check_modules(workdir, config)
    found = differences(read_config(workdir), config)
    if found:
        says = lambda value: "not there" if value is None else repr(value)
        fields = "; ".join(f"{name} was {says(old)}, is {says(new)}" for name, old, new in found)
        raise UserError(
            f"{str(workdir)!r} was started with another config: {fields}. "
            "Set these fields back, or give another --workdir."
        )


# ---- custom components --------------------------------------------------------------


def load_modules(folder: pathlib.Path) -> None:
    """Loads the modules that `keep_modules` kept in a folder, each under its original name. Executes their
    code.

    Raises:
      UserError: there are no modules, or a module raises an exception.
    """
    require(
        any(folder.glob("*.py")),
        f"--components is {str(folder)!r}, which holds no module; give a folder such as W/components.",
    )
    for path in sorted(folder.glob("*.py")):
        name = path.stem
        try:
            module = load_file(path, name)
        except Exception as error:
            raise UserError(f"{str(path)!r} cannot be loaded: {type(error).__name__}: {error}") from error
        sys.modules[name] = module


def require_modules(workdir: pathlib.Path) -> None:
    """Checks that no code of a workdir runs without consent, as the workdir may be from another machine.

    Raises:
      UserError: a component of its config is in a module that is not loaded, and that Python would find in
        the workdir itself, or not at all.
    """
    for name in sorted(_own_names(read_raw(workdir))):
        module = name.partition(":")[0]
        if module in sys.modules:
            continue
        found = importlib.util.find_spec(module.partition(".")[0])  # executes nothing
        places = [found.origin, *(found.submodule_search_locations or ())] if found else []
        inside = [p for p in places if p and pathlib.Path(p).resolve().is_relative_to(workdir.resolve())]
        kept = workdir / "components" / f"{module}.py"
        require(
            places and not inside,
            f"the run of {str(workdir)!r} has a custom component, {name!r}, whose module is not in the "
            f"current folder or installed. Its copy {str(kept)!r} is code: read it, and to execute it, add "
            f"--components={kept.parent}",
        )


def keep_modules(workdir: pathlib.Path, config: ConfigDict) -> None:
    """Copies the module of each component that is named by an import path into components/, as
    PACKAGE.MODULE.py, so that the run can be restored from its workdir alone.

    Raises:
      UserError: another version of a module is kept there, with a checkpoint of it.
    """
    if newest(workdir) is not None:
        _check_modules(workdir, config)
    for kept, source in _own_modules(workdir, config):
        kept.parent.mkdir(exist_ok=True)
        with atomic_path(kept) as part:
            part.write_bytes(source.read_bytes())


def _check_modules(workdir, config):
    for kept, source in _own_modules(workdir, config):
        require(
            not kept.exists() or kept.read_bytes() == source.read_bytes(),
            f"{str(source)!r} has changed since {str(workdir)!r} was started ({str(kept)!r}); restore it, "
            f"use the copy by --components={kept.parent}, or give another --workdir.",
        )


def _own_modules(workdir, config):
    """(path of the kept copy, path of the source) of the module of each custom component."""
    modules = {name.partition(":")[0] for name in _own_names(config)}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.partition(".")[0] != "vdm":
            yield pathlib.Path(workdir) / "components" / f"{name}.py", pathlib.Path(file)


def _own_names(config):
    """The import paths in a config: any text in a section that describes a component, as a name may replace
    the section, and the names of estimators and loggers."""
    found = {
        value
        for field, value in flat({part: config.get(part) for part in config_lib.COMPONENTS}).items()
        if isinstance(value, str) and OWN.fullmatch(value) and not field.endswith(".data_dir")
    }
    evaluation = config.get("eval")
    names = evaluation.get("estimators") if isinstance(evaluation, Mapping | ConfigDict) else None
    loggers = config.get("loggers")
    return found | {name for text in (names, loggers) for name in config_lib.own_estimators(text)}
