"""--mode=import: an external model as a new workdir, to evaluate, to sample, or to train further, also with
another objective."""

import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from vdm import config as config_lib, parameters, run as run_lib, workdir as workdir_lib
from vdm.contract import Params
from vdm.data import dataset, fingerprint, source
from vdm.data.dataset import Data
from vdm.errors import UserError, one_line, require
from vdm.exchange import official, weights
from vdm.runtime import devices, lock
from vdm.runtime.atomic import write_text
from vdm.step import State, first_state

SAYS = """
From {path}, step {step}: the averaged parameters, from which a run here starts, without the optimiser's
state. The function is the same: pixels are 2 (v + ½)/V − 1, the network gets γ as (γ − gamma_min)/(gamma_max
− gamma_min), and ε̂ is z plus its output. Stored differently: {stored}.
Not in the file, and to be set as in the original run: gamma_min ({gamma_min}), gamma_max ({gamma_max}),
timesteps ({timesteps}), dropout ({dropout})."""


def run(config: ConfigDict, workdir: pathlib.Path, path: str) -> None:
    """Makes the workdir from the weights --input: a checkpoint of step 0, and imported.json.

    Args:
      path: the workdir of a run, a folder that --mode=export wrote, or a checkpoint of google-research/vdm.

    Raises:
      UserError: the file does not exist, is of another model than the config's, or the workdir has a run.
    """
    require(
        workdir_lib.newest(workdir) is None and not (workdir / "config.json").exists(),
        f"--workdir is {str(workdir)!r}, which has a run; give a new folder.",
    )
    folder = pathlib.Path(path).expanduser()
    read = None if folder.is_dir() else official.read(path)
    if read:
        check_fields(config, read.fields, path)
    data, known = data_of(config, folder)
    parts = run_lib.build(config, data)
    if read:
        params, step = official.parameters(read.ema), read.step
        check_shapes(params, parts.like.params, path)
        print(says(config, path, step))
    elif (folder / "checkpoints").is_dir():
        old = workdir_lib.read_config(folder)
        old.eval.checkpoint = config.eval.checkpoint
        given = run_lib.restore(old, folder, images=False)
        params, step = jax.device_get(given.state.ema), int(given.state.step)
        check_shapes(params, {name: parts.like.params.get(name) for name in params}, path)
    else:
        params = weights.read(folder, parts.like.params, partly=True)
        step = json.loads((folder / "config.json").read_text()).get("step")
    state = state_of(parts, params)
    from vdm.runtime import checkpoint  # imported late, as importing Orbax is slow

    with lock.hold(workdir):
        checkpoints = checkpoint.Checkpoints(workdir, config.train.keep)
        checkpoints.save(0, devices.as_global(devices.replicate(state)), {"seconds": 0.0})
        checkpoints.close()
        fingerprint.write(workdir / "data.json", known)
        write_text(workdir / "imported.json", json.dumps({"file": path, "step": step}) + "\n")
        workdir_lib.write_config(workdir, config)
    count = sum(value.size for value in jax.tree.leaves(state.params))
    print(
        f"imported {count:,} parameters into {workdir}; "
        f"next: python -m vdm.main --workdir={workdir} --mode=sample"
    )


def state_of(parts: run_lib.Parts, params: Params) -> State:
    """The State before the first step with these parameters of the model; parts of the model that they lack
    have their initial parameters."""
    lacks = parts.like.params.keys() - params.keys()
    own = None
    # Only if something is missing, as compiling the initialisation takes seconds.
    if lacks or parts.like.objective is not None:
        first = jax.device_get(parts.init(fit=bool(lacks)))
        params, own = {**first.params, **params}, first.objective
    return jax.jit(lambda *given: first_state(parts.model, parts.optimizer, *given))(params, own)


def data_of(config: ConfigDict, folder: pathlib.Path) -> tuple[Data, dict[str, Any]]:
    """The data set of the new run, and the contents of its data.json (fingerprint.about). If the images are
    not found, both come from what `folder` states about its data; the run can then do everything that needs
    no images.

    Raises:
      UserError: the images are not found, and config.data differs from that of `folder` or `folder` does not
        state the spec of its data; or this statement is damaged.
    """
    is_workdir = (folder / "checkpoints").is_dir()
    there = fingerprint.read(folder / "data.json") if is_workdir else weights.known_data(folder)
    spec = fingerprint.spec_of(there, folder)
    try:
        data = source.load(config.data)
    except UserError as error:
        if spec is None or workdir_lib.differences(
            {"data": workdir_lib.read_config(folder).data}, {"data": config.data}
        ):
            raise
        print(
            "Sampling, compression and export will work. To evaluate or train, add "
            f"--config.data.data_dir=PATH, the folder of {config.data.name!r}, to that command: "
            f"{one_line(error)}"
        )
        return dataset.without_images(spec, str(error)), there
    here = fingerprint.about(data)
    for name in ("train", "test"):
        if there.get(name, here[name]) != here[name]:
            print(f"the {name} images here differ from those of the model: {here[name]}, not {there[name]}")
    return data, here


def says(config: ConfigDict, path: str, step: int) -> str:
    """What was read from an official checkpoint, and what the config must state."""
    model = config.model
    ends = {name: model.schedule[name] for name in ("gamma_min", "gamma_max")}
    free = {"timesteps": model.timesteps, "dropout": model.net.dropout, **ends}
    return SAYS.strip().format(path=path, step=step, stored=official.STORED, **free)


def check_fields(config: ConfigDict, fields: dict[str, Any], path: str) -> None:
    """Raises UserError if the config does not describe the file's model."""
    flat = config_lib.flat(config.model)
    wrong = {name: value for name, value in fields.items() if flat.get(name) != value}
    flags = " ".join(f"--config.model.{name}={value}" for name, value in wrong.items())
    require(not wrong, f"{path!r} is of another model than the config's; add {flags}")


def check_shapes(params: Any, like: Any, path: str) -> None:
    """Raises UserError if the parameters are not those of the config's model."""
    differs = parameters.first_difference(params, like)
    require(
        not differs,
        f"{path!r} is of another model than the config: {differs}; give the config of that run, and images "
        "of its shape.",
    )
