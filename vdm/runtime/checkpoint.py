"""Checkpoints by orbax: written in the background, the newest few and the best kept.

A checkpoint holds the State (step, parameters, EMA, optimiser) and, as JSON, the position
in the data and the sums of the metrics since they were last written out. A checkpoint that
was cut off while it was written does not count: orbax renames it when it is whole.
"""

import pathlib
from typing import TYPE_CHECKING, Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from vdm.errors import UserError

if TYPE_CHECKING:
    from vdm.step import State


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: pathlib.Path, newest: int, read_only: bool = False):
        """Keeps the `newest` newest, and the one with the lowest "bpd"."""
        self._path = pathlib.Path(workdir).absolute() / "checkpoints"
        policy = keep.AnyPreservationPolicy(
            [
                keep.LatestN(newest),
                keep.BestN(
                    get_metric_fn=lambda metrics: metrics["bpd"],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics["bpd"],
                best_mode="min",
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "rest": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, state: "State", rest: dict[str, Any], bpd: float | None = None) -> None:
        """Saves in the background. `rest` is a JSON dictionary, `bpd` chooses the best."""
        self._manager.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(_parts(state)), rest=ocp.args.JsonSave(rest)),
            metrics=None if bpd is None else {"bpd": float(bpd)},
        )

    def steps(self) -> list[int]:
        """All steps that are kept, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest `bpd`, or None where none was evaluated."""
        return self._manager.best_step()

    def restore(self, like: "State", step: int | None) -> tuple["State", dict[str, Any]]:
        """The State and the rest of a step.

        Args:
          like: a State whose arrays have the shapes, types and devices to restore to.
          step: one of `steps`; or as `best` gives it.

        Raises:
          UserError: there is no checkpoint, or it is one of another model.
        """
        if step is None:
            raise UserError(
                f"no checkpoint in {str(self._path)!r} was evaluated; set config.eval.checkpoint to 'newest'."
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _parts(like))
        self._check(step, abstract)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), rest=ocp.args.JsonRestore()),
        )
        return type(like)(**restored.state), restored.rest

    def _check(self, step, abstract):
        """Raises UserError where the saved arrays are not those of `abstract`."""
        saved = self._manager.item_metadata(step).state

        def shapes(tree):
            flat, _ = jax.tree_util.tree_flatten_with_path(tree)
            return {jax.tree_util.keystr(path, simple=True, separator="/"): v for path, v in flat}

        saved, wanted = shapes(saved), shapes(abstract)
        for name in sorted({*saved, *wanted}):
            have, want = (tuple(tree[name].shape) if name in tree else "absent" for tree in (saved, wanted))
            if have != want:
                raise UserError(
                    f"the checkpoint of step {step} in {str(self._path)!r} is one of another "
                    f"model: {name} is {have} there and {want} under this config. Give the "
                    "config that it was trained with, or another --workdir."
                )

    def preempted(self, step: int) -> bool:
        """Whether the cluster has asked any process to end; all of them agree."""
        return self._manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until all that was saved is on disk, and lets go of the threads."""
        self._manager.close()


def _parts(state):
    """The parts of a State that it has."""
    return {name: part for name, part in state._asdict().items() if part is not None}
