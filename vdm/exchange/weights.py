"""A model as a folder in the form of model hubs: model.safetensors, config.json, and a card."""

import hashlib
import json
import pathlib
from typing import Any

import jax
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vdm import parameters
from vdm.errors import UserError, require
from vdm.runtime.atomic import atomic_path

FILES = ("model.safetensors", "config.json", "README.md")
DATA = "data_set"  # the key of config.json with the contents of a workdir's data.json


def write(folder: pathlib.Path, params: Any, config: dict[str, Any], card: str) -> int:
    """Writes the folder atomically; returns the size of its weights in bytes.

    Raises:
      UserError: the folder exists, or cannot be written.
    """
    require(not folder.exists(), f"--output is {str(folder)!r}, which exists already; give a new folder.")
    try:
        with atomic_path(folder) as part:
            part.mkdir()
            save_file(parameters.named(params, "."), part / FILES[0], {"format": "flax"})
            about = config | {"sha256": _sha(part / FILES[0])}
            (part / FILES[1]).write_text(json.dumps(about, indent=2) + "\n")
            (part / FILES[2]).write_text(card)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output is {str(folder)!r}, which cannot be written: {error}.") from error
    return (folder / FILES[0]).stat().st_size


def known_data(folder: pathlib.Path) -> dict[str, Any]:
    """The statement about the data (fingerprint.about) in a folder that `write` wrote; {} if an older version
    wrote it.

    Raises:
      UserError: the statement is damaged.
    """
    path = folder / FILES[1]
    try:
        known = json.loads(path.read_text()).get(DATA, {}) if path.is_file() else {}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); take another copy.") from error
    require(isinstance(known, dict), f"{str(path)!r} is damaged: its {DATA!r} is {known!r}; copy again.")
    return known


def read(folder: pathlib.Path, like: Any, partly: bool = False) -> Any:
    """The parameters in a folder that `write` wrote, as a tree like `like`.

    Args:
      partly: whether `like` may have parts that the folder lacks, such as a learned encoder, and that the
        result then lacks, too.

    Raises:
      UserError: the parameters are missing, damaged, or those of another model.
    """
    path = folder / FILES[0]
    require(
        path.is_file(),
        f"--input is {str(folder)!r}, which has no {FILES[0]}; give a folder of --mode=export.",
    )
    try:
        found, said = load_file(path), json.loads((folder / FILES[1]).read_text())
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}); take another copy.") from error
    require(
        isinstance(said, dict) and said.get("sha256") == _sha(path),
        f"{str(path)!r} is damaged, or does not belong to its {FILES[1]}: its sha256 differs; copy it again.",
    )
    if partly:
        parts = {name.partition(".")[0] for name in found}
        lacks = lambda name, part: name not in parts and jax.tree.leaves(part)
        like = {name: part for name, part in like.items() if not lacks(name, part)}
    wanted = parameters.named(like, ".")
    for name in sorted({*found, *wanted}):
        there, here = (
            f"{tree[name].dtype} {list(tree[name].shape)}" if name in tree else "absent"
            for tree in (found, wanted)
        )
        require(
            there == here,
            f"{str(path)!r} is of another model than the config: {name} is {there} there and {here} here; "
            "leave out --config, or set the fields of config.model as they were.",
        )
    leaves = [found[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
