"""What a run leaves behind to read: scalars and tables."""

import json
import pathlib

import numpy as np


class Writer:
    """metrics.jsonl, one JSON object a line, and TensorBoard events, in a workdir.

    A line is {"step": …, "split": "train" or "test", metric: value, …}; bits/dim, except
    what is named otherwise. "seconds" is the time spent training, over all starts.
    """

    def __init__(self, workdir, step):
        """Goes on after `step`: what an interrupted run wrote beyond it is taken out."""
        from tensorboardX import SummaryWriter

        self.path = pathlib.Path(workdir) / "metrics.jsonl"
        keep = [row for row in read_metrics(self.path) if row["step"] <= step]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in keep))
        part.replace(self.path)
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(workdir), purge_step=step + 1 if step else None)

    def write(self, step, split, metrics):
        """Writes one line, and the same to TensorBoard as "split/metric"."""
        self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if value is not None:
                self._board.add_scalar(f"{split}/{name}", value, step)

    def image(self, step, name, path):
        """Shows a PNG in TensorBoard."""
        from PIL import Image

        with Image.open(path) as image:
            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self):
        """Flushes both."""
        self._file.close()
        self._board.close()


def read_metrics(path):
    """The lines of a metrics.jsonl as dictionaries; a last line cut off is left out."""
    path = pathlib.Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def parameter_table(params):
    """A table of the parameters: name, shape, count, and the total, as text."""
    import jax

    rows = []
    for path, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/").replace("/params/", "/")
        rows.append((name, " × ".join(map(str, value.shape)) or "scalar", f"{value.size:,}"))
    total = f"{sum(value.size for value in jax.tree.leaves(params)):,}"
    rows = [("parameter", "shape", "count"), *rows, ("total", "", total)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}"
        for name, shape, count in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def estimate_table(estimate):
    """Terms and total in bits/dim, with standard errors and their two parts, as text."""
    names = [name for name in estimate.mean if name != "bpd"] + ["bpd"]
    lines = [f"{'':<16}{'bits/dim':>10}{'s.e.':>10}{'= images':>10}{'& noise':>10}"]
    for name in names:
        numbers = (part[name] for part in (estimate.mean, estimate.se, estimate.images_se, estimate.noise))
        label = f"total ({'exact' if estimate.exact else 'ELBO'})" if name == "bpd" else name
        lines.append(f"{label:<16}" + "".join(f"{fixed(number):>10}" for number in numbers))
    lines.insert(-1, "-" * len(lines[0]))
    lines.append(f"images: {estimate.images}, each evaluated {estimate.passes} times")
    return "\n".join(lines)


def fixed(number):
    """Four digits after the point; a dash for what is not known."""
    return "–" if np.isnan(number) else f"{number:.4f}"


def markdown_table(header, rows):
    """A Markdown table that reads well as text too: cells are strings, the first column to the
    left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]

    def line(cells):
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths))
        return " | ".join(["| " + first.strip().ljust(widths[0]), *others]) + " |"

    rule = ["-" * width for width in widths]
    rule[1:] = [dashes[:-1] + ":" for dashes in rule[1:]]
    return "\n".join(map(line, [header, rule, *rows]))
