"""Whether a program fits on a device; if not, what takes the memory and which field to change."""

from collections.abc import Callable, Sequence
import math
import re

import jax
from jaxtyping import PyTree

from experiments.accelerators.targets import Target
from vdm.errors import UserError

UNITS = {"M": 2**20, "G": 2**30, "T": 2**40}  # bytes, in messages of a TPU's compiler


def of_error(message: str) -> float | None:
    """The bytes that a compiler could not allocate, from its message; None if it failed for another
    reason."""
    found = re.search(r"temporaries \(([\d.]+)([MGT])\)|Used ([\d.]+)([MGT]) of", message)
    if not found:
        return None
    number, unit = found.group(1, 2) if found[1] else found.group(3, 4)
    return float(number) * UNITS[unit]


def require_room(
    target: Target,
    field: str,
    args: Sequence[PyTree],
    split: Sequence[bool],
    batch: int,
    temporary: float,
    text: Callable[[], str] = str,
) -> None:
    """Raises UserError if a device has less memory than the arguments and `temporary` bytes need.

    Args:
      field: the section of the config whose batch_size is meant, such as "train".
      args: shapes of the program's arguments.
      split: whether each argument is split over devices.
      text: returns the program as StableHLO, to find the largest array; returns "" if shapes in the program
        are those of all devices together.
    """

    def size(leaf, shared):
        sharding = getattr(leaf, "sharding", None)
        shape = sharding.shard_shape(leaf.shape) if sharding else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize / (target.count if shared and not sharding else 1)

    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): size(leaf, shared)
        for arg, shared in zip(args, split)
        for path, leaf in jax.tree_util.tree_flatten_with_path(arg)[0]
    }
    arguments = sum(sizes.values())
    free = target.chip.memory - arguments
    if free >= temporary:
        return
    gb = lambda size: f"{size / 1e9:.1f} GB"
    if free <= 0:
        largest = max(sizes, key=sizes.__getitem__)
        what = f"the arguments alone take {gb(arguments)}, of which {largest} takes {gb(sizes[largest])}"
        mend = (
            "set config.parallel=fsdp, by which the devices share the state, take more of them, or make the "
        )
        mend += "network smaller"
    else:
        images = batch // target.count
        what = f"{images:,} images take {gb(temporary)}, and the arguments {gb(arguments)}"
        name, bytes_of_largest = largest_array(text())
        what += f"; the largest array is {name}, of {gb(bytes_of_largest)}" if name else ""
        fits = int(batch * free / temporary)
        mend = f"lower config.{field}.batch_size, to about {fits:,}, or take more devices"
        mend += ", or take the batch in parts by config.train.accumulate" if field == "train" else ""
    has, missing = gb(target.chip.memory), gb(temporary - free)
    raise UserError(f"{target.name} has {has} a device, and {missing} are missing: {what}; {mend}.")


def largest_array(text: str) -> tuple[str, int]:
    """The largest array in a StableHLO program, such as 64x32x32x128xbf16, and its bytes; ("", 0) without
    arrays."""
    found = {"": 0}
    for sizes, kind, bits in set(re.findall(r"tensor<((?:\d+x)+)([a-z]+)(\d+)\w*>", text)):
        size = math.prod(map(int, sizes.rstrip("x").split("x")))
        found[sizes + kind + bits] = size * max(1, int(bits) // 8)
    name = max(found, key=found.__getitem__)
    return name, found[name]
