"""A run: what training, evaluation and sampling build from a config, or restore."""

from typing import Any, NamedTuple

from vdm import checkpoint, data as data_lib, model as model_lib, parallel, step as step_lib
from vdm.errors import one_of, require


class Run(NamedTuple):
    """The parts of a run. `state` is replicated over the devices."""

    data: data_lib.Data
    model: model_lib.Model
    optimizer: Any
    state: step_lib.State


def build(config):
    """The Run that a config describes, before its first step.

    Raises:
      UserError: the config is not possible.
    """
    data = data_lib.load(config)
    model = model_lib.build(config, data.spec)
    optimizer = step_lib.make_optimizer(config.optimizer, config.train.steps)
    example = next(data_lib.eval_batches(data.train, 1))
    state = step_lib.init(model, optimizer, config.seed, example)
    return Run(data, model, optimizer, parallel.replicate(state))


def restore(config, workdir):
    """The Run of a workdir at its newest checkpoint, or its best: config.eval.checkpoint.

    Raises:
      UserError: the workdir has no checkpoint, or was started with another config.
    """
    one_of("config.eval.checkpoint", config.eval.checkpoint, ("newest", "best"))
    require(
        checkpoint.begun(workdir),
        f"--workdir is {str(workdir)!r}, which has no checkpoint; run --mode=train first.",
    )
    checkpoint.check_config(workdir, config)
    run = build(config)
    checkpoints = checkpoint.Checkpoints(workdir, config.train.keep, read_only=True)
    step = checkpoints.latest() if config.eval.checkpoint == "newest" else checkpoints.best()
    state, _ = checkpoints.restore(run.state, step)
    checkpoints.close()
    return run._replace(state=state)
