"""Tiny runs of the models of configs/, as training leaves them, made in this process on one device."""

import json

import jax.numpy as jnp

from conftest import TINY_FIELDS, make_config, perturbed
from record_helpers import line
from vdm import run as run_lib, workdir as workdir_lib
from vdm.estimate import write_json
from vdm.evaluation.elbo import make_elbo
from vdm.runtime import devices
from vdm.runtime.checkpoint import Checkpoints


def tiny_config(name, **fields):
    """The config of a model with TINY_FIELDS, except the name of the network and the sampling steps."""
    tiny = dict(TINY_FIELDS)
    del tiny["model.net.name"], tiny["model.sample_steps"]
    return make_config(tiny | fields, f"configs/{name}.py")


def save_run(folder, config):
    """Writes a workdir as training leaves it; in place of training, noise is added to the parameters."""
    parts = run_lib.build(config)
    state = parts.init()
    params = perturbed(state.params)
    step = config.train.steps
    state = devices.replicate(state._replace(step=jnp.int32(step), params=params, ema=params))
    folder.mkdir()
    workdir_lib.write_config(folder, config)
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(step, state, {"running": {"count": 0}, "seconds": 1.0})
    checkpoints.close()
    estimate, _ = make_elbo(parts.model, config, parts.data)(state.ema, config.eval.passes)
    write_json(folder / "eval.json", estimate, step)
    rows = [{**line(step, 3.0, split="train"), "draw_sd": 2.0}, line(step, 3.0)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
