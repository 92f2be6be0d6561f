"""A run: what training, evaluation and sampling build from a config, or restore."""

from typing import Any, Callable, NamedTuple

import jax

from vdm import model as model_lib, step as step_lib
from vdm.data import dataset as data_lib
from vdm.runtime import devices, workdir as workdir_lib
from vdm.errors import one_of, require


class Parts(NamedTuple):
    """What a config describes.

    Attributes:
      init: () → the State before the first step, replicated over the devices.
      like: its shapes, types and devices, known before it is computed.
    """

    data: data_lib.Data
    model: model_lib.Model
    optimizer: Any
    init: Callable[[], step_lib.State]
    like: step_lib.State


class Run(NamedTuple):
    """A run at one of its checkpoints. `state` is replicated over the devices."""

    data: data_lib.Data
    model: model_lib.Model
    state: step_lib.State


def build(config):
    """The Parts of a run.

    Raises:
      UserError: the config is not possible.
    """
    data = data_lib.load(config)
    model = model_lib.build(config, data.spec)
    optimizer = step_lib.make_optimizer(config.optimizer, config.train.steps)
    example = next(data_lib.eval_batches(data.train, 1))
    init = step_lib.make_init(model, optimizer, config.seed, example)
    like = devices.replicated_like(jax.eval_shape(init))
    return Parts(data, model, optimizer, lambda: devices.replicate(init()), like)


def restore(config, workdir):
    """The Run of a workdir at its newest checkpoint, or its best: config.eval.checkpoint.

    Raises:
      UserError: the workdir has no checkpoint, or was started with another config.
    """
    one_of("config.eval.checkpoint", config.eval.checkpoint, ("newest", "best"))
    newest = workdir_lib.newest(workdir)
    require(
        newest is not None,
        f"--workdir is {str(workdir)!r}, which has no checkpoint; run --mode=train first.",
    )
    workdir_lib.check_config(workdir, config)
    from vdm.runtime import checkpoint  # only now, as in train.run

    parts = build(config)
    checkpoints = checkpoint.Checkpoints(workdir, config.train.keep, read_only=True)
    step = newest if config.eval.checkpoint == "newest" else checkpoints.best()
    state, _ = checkpoints.restore(parts.like, step)
    checkpoints.close()
    return Run(parts.data, parts.model, state)
