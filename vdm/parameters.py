"""The role of a parameter for the optimiser: whether it is decayed, a matrix, or a schedule's interior.

Each component declares the roles of its parameters (`roles`), so that a parameter's name matters only in the
file that defines it.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jaxtyping import PyTree
import numpy as np


@dataclasses.dataclass(frozen=True)
class Role:
    """The role of one parameter.

    Attributes:
      decayed: whether weight decay draws the parameter towards zero.
      matrix: the axes over which a matrix sums, and the axes of its result; any other axis indexes matrices.
        None for a parameter that Muon should leave to its second optimiser.
      interior: whether the parameter changes a noise schedule only between the end points. Its gradient is
        clipped separately.
      fixed: whether the parameter is never updated.
    """

    decayed: bool = True
    matrix: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    interior: bool = False
    fixed: bool = False


def alike(params: PyTree, role: Role) -> PyTree[Role]:
    """The same role for every parameter."""
    return jax.tree.map(lambda _: role, params)


def by_path(params: PyTree, role_of: Callable[[list[str], Any], Role]) -> PyTree[Role]:
    """The role of each parameter, as a function of its path of names and its value."""

    def one(path, value):
        return role_of([getattr(key, "key", str(key)) for key in path], value)

    return jax.tree_util.tree_map_with_path(one, params)


def named(tree: PyTree, separator: str = "/") -> dict[str, Any]:
    """{path of names: leaf}, in the order of the leaves."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=separator): value for path, value in flat}


def first_difference(found: PyTree, wanted: PyTree) -> str:
    """The first array, by its path of names, that differs in shape, such as "net/bias is [2] there and absent
    here"; "" if all are alike."""
    there, here = named(found), named(wanted)

    def shape(arrays, name):
        return list(np.shape(arrays[name])) if name in arrays else "absent"

    for name in sorted({*there, *here}):
        if shape(there, name) != shape(here, name):
            return f"{name} is {shape(there, name)} there and {shape(here, name)} here"
    return ""


def matrices_of_loops(params: PyTree, *loops: str) -> PyTree[Role]:
    """Roles for scanned layers, whose dense kernels are matrices: the parameters called "kernel",
    [layers, in, …, out], below one of the names in `loops`. Axes between in and out are batch axes."""

    def role_of(names, value):
        stacked = names[-1] == "kernel" and value.ndim >= 3 and not set(names).isdisjoint(loops)
        return Role(matrix=((1,), (value.ndim - 1,)) if stacked else None)

    return by_path(params, role_of)
