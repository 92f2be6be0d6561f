"""A run: what training, evaluation and sampling build from a config, or restore from a workdir."""

from collections.abc import Callable
import pathlib
from typing import NamedTuple

import jax
from ml_collections import ConfigDict
import optax

from vdm import (
    component,
    objective as objective_lib,
    optimizer as optimizer_lib,
    step as step_lib,
    workdir as workdir_lib,
)
from vdm.contract import Model
from vdm.data import dataset, fingerprint, source
from vdm.data.dataset import Data, Spec
from vdm.errors import one_of, require
from vdm.objective import Objective
from vdm.runtime import checksums, devices, lock


class Parts(NamedTuple):
    """The parts that a config describes.

    Attributes:
      init: (fit=True) → the State before the first step, placed as config.parallel requires; without `fit`,
        Model.fit is not called on the images.
      like: shapes, types and devices of the State, known before it is computed.
    """

    data: Data
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    init: Callable[..., step_lib.State]
    like: step_lib.State


class Run(NamedTuple):
    """A run restored from one of its checkpoints."""

    data: Data
    model: Model
    state: step_lib.State


def build(config: ConfigDict, data: Data | None = None) -> Parts:
    """The Parts of a run.

    Args:
      config: complete (config.complete).
      data: replaces the data set that config.data describes.

    Raises:
      UserError: a value of the config is not accepted.
    """
    data = source.load(config.data) if data is None else data
    model = build_model(config, data.spec)
    objective = objective_lib.build(config.objective, model)
    example = dataset.blank(data.spec)
    with component.blamed(model, f"model {type(model).__name__}"):
        params, own = jax.eval_shape(
            lambda: step_lib.init_params(model, objective, jax.random.key(config.seed), example)
        )
    roles = step_lib.trained(model.roles(params), None if own is None else objective.roles(own))
    like = step_lib.trained(params, own)
    optimizer = optimizer_lib.build(config.optimizer, config.train.steps, roles, like)
    init = step_lib.make_init(model, objective, optimizer, config.seed, example)
    # Uses the shapes of the parameters, as tracing a large model's init again takes a third of a second.
    like = jax.eval_shape(
        lambda params, own: step_lib.first_state(model, optimizer, params, own), params, own
    )
    like = devices.state_like(like, config.parallel)

    def first(fit: bool = True) -> step_lib.State:
        return devices.create(init, config.parallel, like)(model.fit(data.train) if fit else {})

    return Parts(data, model, objective, optimizer, first, like)


def build_model(config: ConfigDict, spec: Spec) -> Model:
    """The model that config.model describes, for images of the given `spec`.

    Raises:
      UserError: a field of config.model has a value that is not accepted.
    """
    return component.find("model", config.model.name, "config.model.name").build(config.model, spec)


def restore(config: ConfigDict, workdir: pathlib.Path, images: bool = True) -> Run:
    """The Run of a workdir at its newest or best checkpoint (config.eval.checkpoint).

    Args:
      images: as for `of_workdir`.

    Raises:
      UserError: the workdir has no checkpoint, or was started with another config.
    """
    return at_checkpoint(of_workdir(config, workdir, images), config, workdir)


def of_workdir(config: ConfigDict, workdir: pathlib.Path, images: bool = True) -> Parts:
    """The Parts of a run that has a checkpoint.

    Args:
      images: whether to load the images. If False, they need not exist: data.json has the facts that the
        model needs.

    Raises:
      UserError: the workdir has no checkpoint, or was started with another config.
    """
    one_of("config.eval.checkpoint", config.eval.checkpoint, ("newest", "best"))
    require(workdir_lib.newest(workdir) is not None, _none_there(workdir))
    workdir_lib.check_config(workdir, config)
    known = workdir / "data.json"
    spec = None if images else fingerprint.spec_of(fingerprint.read(known), known)
    if spec is not None:
        return build(config, dataset.without_images(spec, "the images of this run were not loaded."))
    parts = build(config)
    fingerprint.check(known, parts.data, keep=False)
    return parts


def at_checkpoint(parts: Parts, config: ConfigDict, workdir: pathlib.Path) -> Run:
    """The Run of a workdir whose Parts are known, at the checkpoint that config.eval.checkpoint selects."""
    state = _state(config, workdir, parts.like)
    parts.model.verify(state.ema)
    return Run(parts.data, parts.model, state)


def _state(config: ConfigDict, workdir: pathlib.Path, like: step_lib.State) -> step_lib.State:
    """The State of the intact checkpoint that config.eval.checkpoint selects."""
    from vdm.runtime import checkpoint  # imported late, as importing Orbax is slow

    while True:
        steps = checksums.whole_steps(workdir, move=jax.process_index() == 0 and lock.is_free(workdir))
        require(steps, _none_there(workdir))
        try:
            checkpoints = checkpoint.Checkpoints(workdir, config.train.keep, read_only=True)
            step = steps[-1] if config.eval.checkpoint == "newest" else checkpoints.best(steps)
            # Each host reads the folder for itself, and training may have added a checkpoint in between.
            state, _ = checkpoints.restore(like, devices.of_first_host(step))
        except Exception:
            # Training in another process deletes old checkpoints; then there is a newer one.
            if set(steps) <= set(checksums.whole_steps(workdir, move=False)):
                raise
            continue
        checkpoints.close()
        return state


def _none_there(workdir):
    return (
        f"--workdir is {str(workdir)!r}, which has no checkpoint{damaged(workdir)}; run --mode=train first."
    )


def damaged(workdir: pathlib.Path) -> str:
    """ " that is intact; …" if some checkpoints were set aside."""
    some = any(workdir.glob("damaged/*"))
    return " that is intact; the damaged ones are in its folder damaged/" if some else ""
