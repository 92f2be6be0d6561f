"""A split without its damaged examples: config.data.skip_damaged."""

import jax
import numpy as np
from tqdm import tqdm

from vdm.data.damage import Damaged
from vdm.data.dataset import Split, some_of
from vdm.errors import one_line, require
from vdm.runtime import cache

BLOCK = 64  # examples that are read at a time
SHOWN = 3  # damaged ones that are told of


def only(split: Split, name: str) -> Split:
    """The split without what its `read` raises Damaged of. It prints how many that are, and some of them.

    Args:
      name: of the split, for messages.

    Raises:
      UserError: nothing is left.
    """

    def look():
        kept, said = _look(split, name)
        return {"kept": np.array(kept, int), "said": np.array(said, str)}

    cached = split.cache_name and f"{split.cache_name}, which are whole"
    found = cache.arrays(cached, split.files, look) if cached else look()
    kept = found["kept"]
    if len(kept) == split.size:
        return split
    left_out = split.size - len(kept)
    some = " ".join(found["said"].tolist()) + " …" * (left_out > SHOWN)
    says = f"{left_out:,} of {split.size:,} {name} images are damaged"
    require(len(kept), f"{says}, and none is left: {some} Give data that are whole.")
    if jax.process_index() == 0:
        print(f"{says} and left out: {some}", flush=True)
    return some_of(split, kept, "without the damaged")


def _look(split: Split, name: str) -> tuple[list[int], list[str]]:
    """The examples that can be read, and what is said of the first few that cannot."""
    kept: list[int] = []
    said: list[str] = []
    with tqdm(total=split.size, desc=f"looking at the {name} images", leave=False, disable=None) as bar:
        for first in range(0, split.size, BLOCK):
            block = np.arange(first, min(first + BLOCK, split.size))
            try:
                split.read(block)
                kept += block.tolist()
            except Damaged:
                for one in block:
                    try:
                        split.read(np.array([one]))
                        kept.append(int(one))
                    except Damaged as error:
                        said += [one_line(error)][: SHOWN - len(said)]
            bar.update(len(block))
    return kept, said
