"""Images as an Archive, and back, bit for bit."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
from typing import Any, NamedTuple

import jax
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np
from tqdm import tqdm

import vdm
from vdm.codec import coder as coder_lib
from vdm.codec.archive import Archive
from vdm.codec.coder import Coder
from vdm.codec.pictures import Pictures
from vdm.codec.stack import Damaged, Stack
from vdm.contract import Ability
from vdm.errors import UserError, require
from vdm.run import Run

# Fields of config.model that change no distribution.
OTHER = ("sampler", "sample_steps", "guidance")


class Compressed(NamedTuple):
    """An Archive, and what became of the bits.

    Attributes:
      bits: that each image added to its stack.
      initial: random bits at the bottoms of the stacks.
    """

    archive: Archive
    bits: Float[np.ndarray, "images"]
    initial: int


def compress(config: ConfigDict, run: Run, given: Pictures) -> Compressed:
    """The images as an Archive; shows how far it is, and the rate.

    Raises:
      UserError: a field of config.codec is not accepted; or the model has no codec, or needs labels.
    """
    check(config, run)
    codec, size = config.codec, len(given.image)
    lanes = min(codec.lanes, size)
    header = {
        "model": fingerprint(config, run),
        "images": size,
        "shape": list(run.data.spec.shape),
        "sha": _sha(given),
        "lanes": lanes,
        "timesteps": codec.timesteps,
        "fineness": codec.fineness,
        "seed": codec.seed,
        "made": made_by(),
    }
    if given.names is not None:
        header["names"] = given.names
    if run.model.given_label:
        require(
            given.label is not None,
            "the model is of images given their labels, and --input has no labels; give an .npz file with "
            "'label', or 'test'.",
        )
        header["labels"] = np.asarray(given.label).tolist()
    coder = _coder(run, codec.timesteps, codec.fineness)
    stacks = [Stack(codec.seed, number) for number in range(lanes)]
    bits = np.zeros(size)
    with tqdm(total=size, desc="compress", unit="image", disable=None) as bar:
        for first, count in _rounds(size, lanes):
            before = [stack.bits for stack in stacks[:count]]
            coder.push(stacks[:count], _batch(run, lanes, first, count, given.label, given.image))
            bits[first : first + count] = np.subtract([stack.bits for stack in stacks[:count]], before)
            rate = bits[: first + count].mean() / given.image[0].size
            bar.set_postfix_str(f"{rate:.3f} bits/dim")
            bar.update(count)
    words, initial = zip(*(stack.words() for stack in stacks))
    header["initial"] = list(initial)
    return Compressed(Archive(header, list(words)), bits, 32 * sum(initial))


def decompress(config: ConfigDict, run: Run, given: Archive, path: str) -> Pictures:
    """The images of an Archive, checked.

    Args:
      path: for messages.

    Raises:
      UserError: it is of another model, or of a machine whose numbers may differ and not
        config.codec.anywhere; or the images are not those that were compressed.
    """
    check(config, run)
    header = given.header
    require(
        header["model"] == fingerprint(config, run),
        f"{path!r} was compressed by another model, {header['model']}; this is {fingerprint(config, run)}. "
        "Give the --workdir of that run, at the same checkpoint (--config.eval.checkpoint).",
    )
    here, there = made_by(), header["made"]
    differ = [
        f"{name} {there.get(name)}, here {here[name]}" for name in here if here[name] != there.get(name)
    ]
    require(
        not differ or config.codec.anywhere,
        f"{path!r} was compressed with {'; '.join(differ)}: numbers may differ in their last digit, and then "
        "nothing can be read. To try it, add --config.codec.anywhere=True; what is wrong will not pass.",
    )
    size, lanes = header["images"], header["lanes"]
    labels = np.asarray(header["labels"]) if "labels" in header else None
    coder = _coder(run, header["timesteps"], header["fineness"])
    stacks = [Stack(header["seed"], number, words) for number, words in enumerate(given.stacks)]
    image = np.zeros((size, *header["shape"]), np.uint8)
    wrong = f"{path!r} cannot be decompressed here: the images are not those that were compressed" + (
        f" ({'; '.join(differ)})." if differ else "."
    )
    with tqdm(total=size, desc="decompress", unit="image", disable=None) as bar:
        for first, count in reversed(_rounds(size, lanes)):
            try:
                found = coder.pop(stacks[:count], _batch(run, lanes, first, count, labels))
            except Damaged as error:
                raise UserError(wrong) from error
            image[first : first + count] = found[:count]
            bar.update(count)
    result = Pictures(image, labels, header.get("names"))
    empty = all(stack.is_bottom(initial) for stack, initial in zip(stacks, header["initial"]))
    require(empty and _sha(result) == header["sha"], wrong)
    return result


def check(config: ConfigDict, run: Run) -> None:
    """Raises UserError where config.codec has a number that is not accepted, or the model no codec."""
    check_config(config)
    require(
        Ability.CODE in run.model.abilities,
        f"config.model.name is {config.model.name!r}, which has no codec: that needs {Ability.CODE.value}.",
    )
    require(jax.process_count() == 1, "a codec runs on one host; start a single process.")


def check_config(config: ConfigDict) -> None:
    """Raises UserError where config.codec has a number that is not accepted."""
    for name in ("timesteps", "lanes"):
        value = config.codec[name]
        require(value >= 1, f"config.codec.{name} is {value}; accepted: 1 or more.")
    fineness = config.codec.fineness
    require(1 <= fineness <= 1024, f"config.codec.fineness is {fineness}; accepted: 1 to 1024.")


def made_by() -> dict[str, str]:
    """What the last digits of a network's output may depend on."""
    device = jax.devices()[0]
    kind = _processor() if device.platform == "cpu" else device.device_kind
    versions = {name: importlib.metadata.version(name) for name in ("jax", "constriction")}
    return {"vdm": vdm.__version__, **versions, "device": kind}


def fingerprint(config: ConfigDict, run: Run) -> str:
    """Of the model: its config, and each bit of its parameters."""
    found = hashlib.sha256()
    section = {name: value for name, value in config.model.to_dict().items() if name not in OTHER}
    found.update(json.dumps([section, run.data.spec], sort_keys=True, default=vars).encode())
    for path, value in jax.tree_util.tree_leaves_with_path(run.state.ema):
        value = np.asarray(value)
        found.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        found.update(value.tobytes())
    return found.hexdigest()[:16]


def _coder(run: Run, timesteps: int, fineness: float) -> Coder:
    params = jax.device_get(run.state.ema)
    return coder_lib.make(run.model, params, run.data.spec.shape, timesteps, fineness)


def _rounds(size: int, lanes: int) -> list[tuple[int, int]]:
    """(first image, how many) of each round, in which every stack gets one."""
    return [(first, min(lanes, size - first)) for first in range(0, size, lanes)]


def _batch(run: Run, lanes: int, first: int, count: int, labels: Any, images: Any = None) -> dict[str, Any]:
    """The batch of a round, always of the same size, so that one compiled program does both ways."""
    batch = {"label": np.zeros(lanes, np.int32), "augmented": np.zeros(lanes, np.float32)}
    if labels is not None and run.model.given_label:
        batch["label"][:count] = labels[first : first + count]
    if images is not None:
        batch["image"] = np.zeros((lanes, *run.data.spec.shape), np.uint8)
        batch["image"][:count] = images[first : first + count]
    return batch


def _sha(given: Pictures) -> str:
    found = hashlib.sha256(repr(given.image.shape).encode())
    found.update(given.image.tobytes())
    return found.hexdigest()[:16]


def _processor() -> str:
    """The processor, and those of its instructions that XLA uses where they are."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {name.strip(): value.strip() for name, value in known.items()}
    flags = known.get("flags", known.get("Features", "")).split()
    used = [flag for flag in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]
    return " ".join([known.get("model name", platform.machine()), *used])
