"""Checkpoints by orbax: written in the background with checksums; the newest few and the best are kept.

A checkpoint holds the State (step, parameters, EMA, optimiser) and, as JSON, the sums of the metrics since
they were last written. orbax renames a checkpoint when it is complete, so that one whose writing was
interrupted does not count.
"""

import asyncio
from collections.abc import Sequence
import contextlib
import pathlib
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from vdm import parameters
from vdm.errors import Failed, UserError, one_line, require
from vdm.runtime import checksums, hosts

State = Any  # step.State, or another NamedTuple of trees of arrays


class Checksummed(AtomicRenameTemporaryPath):
    """The temporary folder in which orbax writes a checkpoint. Adds the checksums before orbax renames it."""

    async def finalize(self) -> None:
        if self.get_final().name.isdigit():  # not for its parts, which orbax renames first
            await asyncio.to_thread(checksums.write, pathlib.Path(self.get()))
        await super().finalize()


class Checkpoints:
    """The checkpoints of one workdir. Damaged ones must be set aside first (checksums.whole_steps)."""

    def __init__(self, workdir: pathlib.Path, newest: int, read_only: bool = False):
        """Keeps the `newest` newest checkpoints, and the one with the lowest "bpd"."""
        self._path = pathlib.Path(workdir).absolute() / "checkpoints"
        self._newest, self._read_only = newest, read_only
        self._saving: int | None = None  # the step that is being written
        self._lost: int | None = None  # the newest step, if it could not be written
        self._manager = self._open()

    def _open(self):
        policy = keep.AnyPreservationPolicy(
            [
                keep.LatestN(self._newest),
                keep.BestN(
                    get_metric_fn=lambda metrics: metrics["bpd"],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        return ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics["bpd"],
                best_mode="min",
                cleanup_tmp_directories=not self._read_only,
                read_only=self._read_only,
                temporary_path_class=Checksummed,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "rest": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, state: State, rest: dict[str, Any], bpd: float | None = None) -> None:
        """Saves in the background. `rest` is a JSON dictionary; `bpd` selects the best checkpoint.

        If the previous checkpoint or this one cannot be written, prints one line; the older ones stay.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(_parts(state)), rest=ocp.args.JsonSave(rest))
        metrics = None if bpd is None else {"bpd": float(bpd)}
        self.settle()
        self._saving, self._lost = step, None
        try:
            self._manager.save(step, args=args, metrics=metrics)
        except Exception as error:
            self._give_up(error)

    def settle(self) -> None:
        """Waits for the save in progress."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._give_up(error)
        self._saving = None

    def _give_up(self, error):
        if hosts.is_of_peer(error):
            raise error
        print(
            f"the checkpoint of step {self._saving} could not be written ({reason(error)}); the older ones "
            "are kept, and the next save will be attempted",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(Exception):  # closing raises the same error again
            self._manager.close()
        self._saving, self._lost = None, self._saving
        self._manager = self._open()

    def steps(self) -> list[int]:
        """All steps that are kept, in order."""
        return sorted(self._manager.all_steps())

    def best(self, among: Sequence[int]) -> int | None:
        """The step with the lowest `bpd` of the intact steps `among`, or None if none of them was
        evaluated."""
        metrics = {step: self._manager.metrics(step) for step in among}
        found = {step: of["bpd"] for step, of in metrics.items() if of}
        return min(found, key=lambda step: (found[step], -step)) if found else None

    def restore(self, like: State, step: int | None) -> tuple[State, dict[str, Any]]:
        """The State and the `rest` of the checkpoint of a step.

        Args:
          like: a State whose arrays have the shapes, types and devices to restore to.
          step: a kept step; or the result of `best`.

        Raises:
          UserError: there is no checkpoint, or it is that of another model.
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
        """Raises UserError if the saved arrays do not have the shapes of `abstract`."""
        differs = parameters.first_difference(self._manager.item_metadata(step).state, abstract)
        require(
            not differs,
            f"the checkpoint of step {step} in {str(self._path)!r} is that of another model: {differs}. Give "
            "the config with which it was trained, or another --workdir.",
        )

    def close(self) -> None:
        """Waits until all checkpoints are on disk, and ends the threads.

        Raises:
          Failed: the last checkpoint could not be written.
        """
        self.settle()
        self._manager.close()
        if self._lost is not None:
            raise Failed(
                f"the checkpoint of step {self._lost}, the last, could not be written; with room in "
                f"{str(self._path)!r} the same command resumes from the newest intact checkpoint."
            )


def reason(error: BaseException) -> str:
    """Why something could not be written or read, in a few words: the operating system's, if the error
    contains them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = one_line(error)
    for words in (
        "No space left on device",
        "Disk quota exceeded",
        "Read-only file system",
        "Too many open files",
    ):
        if words in line:
            return words
    return line[:200] or type(error).__name__


def _parts(state):
    """The parts of a State that are not empty."""
    return {name: part for name, part in state._asdict().items() if part is not None}
