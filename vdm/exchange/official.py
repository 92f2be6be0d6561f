"""Reads checkpoints of google-research/vdm (`ckpt-N.flax`) as parameters of Diffusion.

The file is a flax msgpack of a train state: `step`, `params`, `ema_params`, `opt_state`. Its U-Net computes
the same function as that of configs/cifar10.py, but has another order of Fourier features, three separate
matrices in its attention, and blocks that are not stacked.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

from flax import serialization
from jaxtyping import Float
import numpy as np

from vdm.errors import UserError, require

Tree = Mapping[str, Any]

SCHEDULES = {
    frozenset(): "fixed_linear",
    frozenset(("b", "w")): "learned_linear",
    frozenset(("l1", "l2", "l3")): "moving_net",
}
NORM_GROUPS = 32
STORED = "Fourier features in another order, q, k and v in one matrix, equal blocks stacked"


class Checkpoint(NamedTuple):
    """A file of the official code.

    Attributes:
      step: the training step.
      ema: the averaged parameters; `params` and `opt_state` are not read.
      fields: the fields of config.model that the shapes of the parameters determine.
    """

    step: int
    ema: Tree
    fields: dict[str, Any]


def read(path: str) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
      UserError: the file does not exist, is not a checkpoint of google-research/vdm, or holds a model that
        this code does not implement.
    """
    file = pathlib.Path(path).expanduser()
    require(
        file.is_file(),
        f"--input is {path!r}, which is not a file; give a ckpt-N.flax of google-research/vdm.",
    )
    wrong = f"--input is {path!r}, which is not a checkpoint of google-research/vdm: "
    try:
        found = serialization.msgpack_restore(file.read_bytes())
    except Exception as error:  # msgpack raises many types
        raise UserError(f"{wrong}it is no complete flax msgpack ({type(error).__name__}).") from error
    require(isinstance(found, dict) and "ema_params" in found, f"{wrong}it has no 'ema_params'.")
    ema = found["ema_params"]
    try:
        return Checkpoint(int(found["step"]), ema, _fields(ema))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{wrong}its 'ema_params' are of another model ({error!r}).") from error


def _fields(ema: Tree) -> dict[str, Any]:
    net = ema["score_model"]
    channels, width = net["conv_in"]["kernel"].shape[2:]
    colours = net["conv_out"]["kernel"].shape[3]
    schedule = SCHEDULES[frozenset(ema.get("gamma", {}))]
    fields = {
        "name": "diffusion",
        "parameterisation.name": "eps",
        "condition": "augmented",
        "schedule.name": schedule,
        "net.name": "unet",
        "net.depth": sum(name.startswith("down.block_") for name in net),
        "net.width": width,
        "net.heads": 1,
        "net.attention": "everywhere" if "down.attn_0" in net else "middle",
        "net.fourier": (channels // colours - 1) // 2,
    }
    if schedule == "moving_net":
        fields["schedule.hidden"] = ema["gamma"]["l2"]["kernel"].shape[1]
    if fields["net.fourier"]:
        fields["net.highest"] = 0.0
    if width % (4 * NORM_GROUPS):
        raise ValueError(f"width {width}, for which the group norms here do not have {NORM_GROUPS} groups")
    return fields


def parameters(ema: Tree) -> dict[str, Any]:
    """The parameters {"schedule": …, "net": …} of the Diffusion that computes the same function."""
    net = ema["score_model"]
    depth = sum(name.startswith("down.block_") for name in net)
    down = [_layer(net, "down", i) for i in range(depth)]
    up = [_layer(net, "up", j) for j in range(depth + 1)]
    found = {
        "Embedding_0": {f"Dense_{i}": net[f"dense{i}"] for i in range(2)},
        "GroupNorm_0": net["GroupNorm_0"],
        "conv_in": net["conv_in"] | {"kernel": _in_our_order(net["conv_in"]["kernel"], net)},
        "conv_out": net["conv_out"],
        "down": _stacked(down),
        "middle_0": _block(net["mid.block_1"]),
        "middle_1": _block(net["mid.block_2"]),
        "middle_attention": _attention(net["mid.attn_1"]),
        "up_first": up[0],
        # Here a block on the way up has the index of the block on the way down whose input it receives.
        "up": _stacked(up[:0:-1]),
    }
    gamma = _schedule(ema.get("gamma", {}))
    return {"schedule": {"params": gamma} if gamma else {}, "net": {"params": found}}


def _schedule(gamma: Tree) -> dict[str, Any]:
    if "b" in gamma:
        return {"start": gamma["b"].reshape(()), "width": gamma["w"].reshape(())}
    if not gamma:
        return {}
    line, bends, heights = gamma["l1"], gamma["l2"], gamma["l3"]
    return {
        "start": line["bias"].reshape(()),
        "width": line["kernel"].reshape(()),
        "steep": bends["kernel"][0],
        "bias": bends["bias"],
        "height": heights["kernel"][:, 0],
    }


def _in_our_order(kernel: Float[np.ndarray, "3 3 inputs width"], net: Tree) -> np.ndarray:
    """Reorders the inputs. The official order after the colours is sin and then cos, each by colour and then
    by increasing frequency; here, each is by decreasing frequency and then by colour."""
    colours = net["conv_out"]["kernel"].shape[3]
    count = (kernel.shape[2] // colours - 1) // 2
    place = np.arange(2 * colours * count).reshape(2, colours, count)
    order = colours + place.transpose(0, 2, 1)[:, ::-1].ravel()
    return kernel[:, :, np.concatenate([np.arange(colours), order]).astype(int)]


def _layer(net: Tree, way: str, number: int) -> dict[str, Any]:
    found = {"Block_0": _block(net[f"{way}.block_{number}"])}
    attention = net.get(f"{way}.attn_{number}")
    return found | ({"AttentionBlock_0": _attention(attention)} if attention else {})


def _block(block: Tree) -> dict[str, Any]:
    found = {
        "Conv_0": block["conv1"],
        "Conv_1": block["conv2"],
        "Dense_0": block["cond_proj"],
        "GroupNorm_0": block["GroupNorm_0"],
        "GroupNorm_1": block["GroupNorm_1"],
    }
    mixed = block.get("nin_shortcut")
    return found | ({"shortcut": mixed["kernel"], "shortcut_bias": mixed["bias"]} if mixed else {})


def _attention(attention: Tree) -> dict[str, Any]:
    qkv = {
        part: np.concatenate([attention[name][part] for name in ("q", "k", "v")], axis=-1)
        for part in ("kernel", "bias")
    }
    return {
        "Attention_0": {"qkv": qkv, "out": attention["proj_out"]},
        "GroupNorm_0": attention["GroupNorm_0"],
    }


def _stacked(layers: Sequence[Tree]) -> dict[str, Any]:
    first = layers[0]
    return {
        name: _stacked([layer[name] for layer in layers])
        if isinstance(value, Mapping)
        else np.stack([layer[name] for layer in layers])
        for name, value in first.items()
    }
