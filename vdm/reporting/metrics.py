"""metrics.jsonl and TensorBoard: the numbers of a run, step by step."""

from collections.abc import Mapping
import json
import pathlib
import time
from typing import Any

from jaxtyping import UInt8
import numpy as np

from vdm.reporting.loggers import Loggers
from vdm.runtime.atomic import write_text


class Writer:
    """metrics.jsonl, one JSON object per line, and TensorBoard events, in a workdir.

    A line is {"step": …, "split": "train", "test", "validation" or "final", metric: value, …}, in bits/dim
    unless named otherwise. All lines of "test" have the same passes and draws, so they form one curve.
    "final" is the estimate at the end, with more passes. "seconds" is the time spent training, including that
    before the run was resumed.
    """

    def __init__(self, workdir: pathlib.Path | str, step: int, loggers: Loggers | None = None):
        """Continues after `step`: removes what an interrupted run wrote for later steps.

        Args:
          loggers: loggers that get all numbers and images, too.

        Raises:
          OSError: a file cannot be written; the methods raise it, too.
        """
        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        keep = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in keep))
        self._file = self.path.open("a")
        self._board = Board(workdir, step)
        self._loggers = loggers

    def write(self, step: int, split: str, metrics: Mapping[str, float | str | None]) -> None:
        """Writes one line, and its numbers to TensorBoard as "split/metric"; None is a number that is not
        finite or not known."""
        self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._file.flush()
        numbers = {k: v for k, v in metrics.items() if v is not None and not isinstance(v, str)}
        self._board.scalars(step, {f"{split}/{name}": value for name, value in numbers.items()})
        if self._loggers:
            self._loggers.log(step, split, numbers)

    def image(self, step: int, name: str, path: pathlib.Path | str) -> None:
        """Shows a PNG in TensorBoard."""
        from PIL import Image

        with Image.open(path) as opened:
            self._board.image(step, name, np.asarray(opened.convert("RGB")))
        if self._loggers:
            self._loggers.image(step, name, path)

    def close(self) -> None:
        """Closes all files and ends the loggers."""
        self._file.close()
        self._board.close()
        if self._loggers:
            self._loggers.end()


class Board:
    """TensorBoard events in a folder. tensorboardX's SummaryWriter is not used: it writes in a thread, and
    its calls hang if that thread has ended, for example at a full disk."""

    def __init__(self, folder: pathlib.Path | str, step: int):
        """Continues after `step`; TensorBoard ignores what older files contain for later steps."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._file = EventsWriter(str(pathlib.Path(folder) / "events"))
        if step:
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes {name: value} to disk."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._file.flush()

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """Writes an image to disk."""
        from tensorboardX.summary import image

        self._write(step, summary=image(name, pixels, dataformats="HWC"))
        self._file.flush()

    def _write(self, step, **what):
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(step=step, wall_time=time.time(), **what))

    def close(self) -> None:
        self._file.close()


def lacks_final(workdir: pathlib.Path, step: int) -> bool:
    """Whether a run whose last checkpoint is of this step ended before its final estimate. Older versions
    wrote no line "final"; there eval.json shows that the run has its estimate."""
    rows = read_metrics(workdir / "metrics.jsonl")
    finals = [row["step"] for row in rows if row["split"] == "final"]
    return bool(rows) and (step not in finals if finals else not (workdir / "eval.json").exists())


def read_metrics(path: pathlib.Path | str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last line that is incomplete."""
    path = pathlib.Path(path)
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows
