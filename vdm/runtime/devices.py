"""Maps a function of one device over all devices of all hosts, along the axis "batch".

`pmap`, and `shard_map` over a global mesh, give the same bits: shared values (the state, the data set) are
one replicated array without a device axis, and split values (batches, results per example) have a leading
axis of devices. With `fsdp` each device holds a share of the state (ZeRO stage 3, Rajbhandari et al. 2020):
XLA's partitioner gathers the parameters of a layer before their use, and sends each device its share of the
gradient. The results agree up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import math
from typing import Any

import jax
from jax import flatten_util
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
import numpy as np

from vdm.errors import one_of

AXIS = "batch"
KINDS = ("pmap", "shard_map", "fsdp")
SMALL = 2**14  # number of values below which an array is replicated on every device


_described: Sequence[jax.Device] | None = None
_cutting = False  # whether the present trace is for the partitioner


@contextlib.contextmanager
def described(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Within the context, functions are mapped over these devices of a topology description
    (jax.experimental.topologies): they can be lowered and compiled, but not called."""
    global _described
    before, _described = _described, devices
    try:
        yield
    finally:
        _described = before


def every() -> Sequence[jax.Device]:
    """The devices over which functions are mapped."""
    return jax.devices() if _described is None else _described


def count() -> int:
    """The number of these devices."""
    return len(every())


def multiple(size: int) -> int:
    """`size`, rounded up to a multiple of the number of devices."""
    return -(-size // count()) * count()


def platform() -> str:
    """The platform of these devices: "cpu", "gpu" or "tpu"."""
    kind = every()[0].platform
    return "gpu" if kind in ("cuda", "rocm") else kind


def _sharding(*spec):
    mesh = jax.sharding.Mesh(every(), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*spec))


def over_devices(
    function: Callable[..., tuple],
    kind: str,
    split_in: Sequence[bool],
    split_out: Sequence[bool],
    donate: Sequence[int] = (),
    batch_axis: int = 0,
) -> Any:
    """Maps `function` over the devices.

    Args:
      function: a function of one device's arrays, which may use the axis name "batch".
      kind: "pmap", "shard_map" or "fsdp".
      split_in: for each argument, whether it is split over devices; otherwise it is shared.
      split_out: the same for each result.
      donate: the positions of arguments whose memory the result may reuse.
      batch_axis: the axis of a device's split arguments that counts examples; used by "fsdp".

    Raises:
      UserError: `kind` is unknown.
    """
    one_of("config.parallel", kind, KINDS)
    if kind == "pmap":
        axes_in, axes_out = (
            tuple(0 if split else None for split in splits) for splits in (split_in, split_out)
        )
        return jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=axes_in,
            out_axes=axes_out,
            donate_argnums=donate,
            devices=_described,
        )

    if kind == "fsdp":
        return _placing(_partitioned(function, split_in, split_out, donate, batch_axis), split_in)
    specs_in, specs_out = (
        tuple(PartitionSpec(AXIS) if split else PartitionSpec() for split in splits)
        for splits in (split_in, split_out)
    )

    def on_shard(*args):
        args = [jax.tree.map(lambda v: v[0], arg) if split else arg for arg, split in zip(args, split_in)]
        results = function(*args)
        return tuple(
            jax.tree.map(lambda v: v[None], result) if split else result
            for result, split in zip(results, split_out)
        )

    mapped = jax.jit(
        jax.shard_map(
            on_shard,
            mesh=_sharding().mesh,
            in_specs=specs_in,
            out_specs=specs_out,
            check_vma=False,
        ),
        donate_argnums=donate,
    )

    return _placing(mapped, split_in)


def _partitioned(function, split_in, split_out, donate, batch_axis):
    """`function` of the whole batch, for one virtual device that the partitioner splits."""
    place = jax.lax.with_sharding_constraint

    def whole(v):
        """Turns [devices, …, share of the batch, …] into [1, …, batch, …]."""
        v = jnp.moveaxis(v, 0, batch_axis)
        v = v.reshape(*v.shape[:batch_axis], -1, *v.shape[batch_axis + 2 :])
        return place(v, _sharding(*[None] * batch_axis, AXIS))[None]

    def shares(v):
        """Turns [batch, …] into [devices, share of the batch, …]."""
        return place(v.reshape(count(), -1, *v.shape[1:]), _sharding(AXIS))

    def on_all(*args):
        global _cutting
        args = [jax.tree.map(whole, arg) if split else arg for arg, split in zip(args, split_in)]
        axes = tuple(0 if split else None for split in split_in)
        _cutting = True
        try:
            results = jax.vmap(function, axes, axis_name=AXIS, axis_size=1)(*args)
        finally:
            _cutting = False
        results = jax.tree.map(lambda v: v[0], results)
        return tuple(
            jax.tree.map(shares if split else lambda v: place(v, _sharding(*_share(v.shape))), result)
            for result, split in zip(results, split_out)
        )

    return jax.jit(on_all, donate_argnums=donate)


def mean(tree: PyTree) -> PyTree[Array]:
    """The mean over the axis "batch", inside a function of `over_devices`.

    On CPUs all arrays are sent as one: between processes, each transfer takes milliseconds. The compilers for
    TPUs and GPUs combine transfers by themselves.
    """
    if platform() != "cpu":
        return jax.lax.pmean(tree, AXIS)
    values, tree_of = flatten_util.ravel_pytree(tree)
    return tree_of(jax.lax.pmean(values, AXIS))


def by_batch(h: Array) -> Array:
    """Marks h [batch, …] as split over devices by example under "fsdp". A network applies it to the
    activations between layers; otherwise the partitioner would split them as it splits the parameters."""
    return jax.lax.with_sharding_constraint(h, _sharding(AXIS)) if _cutting else h


def _share(shape):
    """The partition of an array of the state: along the largest axis that the number of devices divides."""
    axes = [axis for axis, size in enumerate(shape) if size % count() == 0]
    if math.prod(shape) < SMALL or not axes:
        return ()
    largest = max(axes, key=lambda axis: (shape[axis], axis))
    return (*[None] * largest, AXIS)


def _placing(mapped, split_in):
    """`mapped`, with host arrays accepted as split arguments."""

    def placed(args):
        return [split(arg) if is_split else arg for arg, is_split in zip(args, split_in)]

    def call(*args):
        return mapped(*placed(args))

    # The functions that jit and pmap return have this method.
    call.lower = lambda *args: mapped.lower(*placed(args))  # type: ignore[attr-defined]
    return call


def replicate(tree: PyTree) -> PyTree[Array]:
    """Places a tree that has the same values on every host on all devices, each leaf as one array."""
    if jax.process_count() == 1:
        return jax.device_put(tree, _sharding())
    return as_global(jax.tree.map(jnp.asarray, tree))


def replicated_like(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes and types of the result of `replicate`."""
    return state_like(tree, "pmap")


def state_like(tree: PyTree, kind: str) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes, types and shardings of a state."""

    def one(v):
        sharding = _sharding(*(_share(v.shape) if kind == "fsdp" else ()))
        return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def create(init: Callable[..., PyTree], kind: str, like: PyTree) -> Callable[..., PyTree[Array]]:
    """`init`, with its state placed as in `state_like`; no device ever holds more than this."""
    if kind == "fsdp":
        return jax.jit(init, out_shardings=jax.tree.map(lambda shape: shape.sharding, like))
    return lambda *args: replicate(init(*args))


def compile_ahead(function: Any, *args: PyTree) -> Callable[[], Any]:
    """Traces a function of `over_devices`, and starts to compile it in another thread. The process does not
    end before that thread.

    Args:
      *args: the arguments of the first call, or their shapes if they are replicated (`replicated_like`).

    Returns:
      a function () → None that waits until the compilation has finished.

    Raises:
      Exception: what the call itself would raise, here or while waiting.
    """
    if jax.process_count() > 1:  # with several processes, pmap cannot be lowered from shapes alone
        return lambda: None
    lowered = function.lower(*args)
    pool = ThreadPoolExecutor(1)
    compiled = pool.submit(lowered.compile)
    pool.shutdown(wait=False)
    return compiled.result


def as_global(tree: PyTree) -> PyTree:
    """Replicated results as arrays over the devices of all hosts, as checkpoints require: the results of pmap
    span only the devices of their host."""

    def one(value):
        if jax.process_count() == 1 or not value.is_fully_addressable:
            return value
        return multihost_utils.host_local_array_to_global_array(value, _sharding().mesh, PartitionSpec())

    return jax.tree.map(one, tree)


def split(tree: PyTree) -> PyTree[Array]:
    """Host arrays with a leading axis of local devices, or their shapes, as one array over all devices."""
    sharding = _sharding(AXIS)

    def one(v):
        if isinstance(v, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding)
        return jax.make_array_from_process_local_data(sharding, v)

    return jax.tree.map(one, tree)


def per_device(tree: PyTree) -> PyTree:
    """Splits the leading axis of host arrays over this host's devices: [devices, …]."""
    devices = jax.local_device_count()
    return jax.tree.map(lambda v: np.asarray(v).reshape(devices, -1, *v.shape[1:]), tree)


def local(tree: PyTree[Array]) -> PyTree:
    """This host's part of split results, as NumPy arrays with the axis of devices flattened."""

    def one(value):
        shards = sorted(value.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        values = np.concatenate([np.asarray(shard.data) for shard in shards])
        return values.reshape(-1, *values.shape[2:])

    return jax.tree.map(one, tree)


def to_host(tree: PyTree) -> PyTree:
    """Whole arrays as NumPy arrays, those that are split over hosts, too. Every host must call it."""

    def one(value):
        split = isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated)
        return multihost_utils.process_allgather(value, tiled=True) if split else np.asarray(value)

    return jax.tree.map(one, tree)


def of_first_host(number: int | None) -> int | None:
    """The number, 0 or more, or None that the first host gives, on all hosts."""
    if jax.process_count() == 1:
        return number
    found = int(multihost_utils.broadcast_one_to_all(np.int64(-1 if number is None else number)))
    return None if found < 0 else found


def gather(values: PyTree) -> PyTree:
    """NumPy arrays of every host, concatenated."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values, tiled=True)
