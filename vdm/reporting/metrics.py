"""metrics.jsonl and TensorBoard: the numbers of a run, step by step."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import numpy as np


class Writer:
    """metrics.jsonl, one JSON object a line, and TensorBoard events, in a workdir.

    A line is {"step": …, "split": "train", "test", "validation" or "final", metric: value, …}, in bits/dim
    but for what is named otherwise. All lines of "test" have the same passes and draws, so they make one
    curve. "final" is the estimate at the end, of more passes. "seconds" is the time spent training, over all
    starts.
    """

    def __init__(self, workdir: pathlib.Path | str, step: int):
        """Goes on after `step`: what an interrupted run wrote beyond it is taken out."""
        from tensorboardX import SummaryWriter

        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        keep = [row for row in read_metrics(self.path) if row["step"] <= step]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in keep))
        part.replace(self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(workdir), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, metrics: Mapping[str, float | str | None]) -> None:
        """Writes one line, and its numbers to TensorBoard as "split/metric"; None is a number that is not
        finite or not known."""
        self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if value is not None and not isinstance(value, str):
                self._board.add_scalar(f"{split}/{name}", value, step)

    def image(self, step: int, name: str, path: pathlib.Path | str) -> None:
        """Shows a PNG in TensorBoard."""
        from PIL import Image

        with Image.open(path) as image:
            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._board.close()


def read_metrics(path: pathlib.Path | str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that is cut off is left out."""
    path = pathlib.Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
