"""What a run leaves behind to read and to look at: scalars, pictures, curves."""

import json
import math
import pathlib

import numpy as np

from vdm import encoder

# What one term of the ELBO is called in a figure, and its colour, the same everywhere.
TERMS = {
    "bpd": ("ELBO", "black"),
    "diffusion": ("diffusion (denoising matching)", "tab:blue"),
    "reconstruction": ("reconstruction", "tab:orange"),
    "prior": ("prior (matching)", "tab:green"),
}


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
    """Terms and total in bits/dim with standard errors, as text."""
    rows = [("", "bits/dim", "s.e.")]
    names = [name for name in estimate.mean if name != "bpd"] + ["bpd"]
    for name in names:
        label = "total (ELBO)" if name == "bpd" else name
        rows.append((label, f"{estimate.mean[name]:.4f}", f"{estimate.se[name]:.4f}"))
    lines = [f"{name:<16}{mean:>10}{se:>10}" for name, mean, se in rows]
    lines.insert(-1, "-" * len(lines[0]))
    lines.append(f"{estimate.images} images, each {estimate.passes} times")
    return "\n".join(lines)


def save_samples(path, samples, vocab_size):
    """Draws samples: a grid of pictures, or a scatter where a picture is one 2-D point.

    Args:
      samples: uint8 [n, height, width, channels], values below vocab_size.
    """
    if samples.shape[1:] == (1, 1, 2):
        _save_points(path, samples[:, 0, 0], vocab_size)
    else:
        _save_grid(path, samples, vocab_size)


def _save_grid(path, samples, vocab_size):
    from PIL import Image

    count, height, width, channels = samples.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    # A dark line between pictures, and small pictures enlarged, so that a person can see them.
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 40, np.uint8)
    grays = np.round(samples * (255.0 / (vocab_size - 1))).astype(np.uint8)
    for i, picture in enumerate(grays):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = picture
    shown = {1: grid[..., 0], 2: np.pad(grid, ((0, 0), (0, 0), (0, 1)))}.get(
        channels, grid[..., :3]
    )
    image = Image.fromarray(shown)
    enlarge = max(1, 640 // max(image.size))
    image.resize([side * enlarge for side in image.size], Image.Resampling.NEAREST).save(path)


def _save_points(path, points, vocab_size):
    figure, axes = _figure(1, 1, (5, 5))
    axes.scatter(*encoder.scale(points, vocab_size).T, s=4, alpha=0.5, linewidths=0)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", title=f"{len(points)} samples")
    figure.savefig(path, dpi=120)


def save_curve(path, metrics, title=""):
    """Draws the ELBO curve of a metrics.jsonl: bits/dim of each term against steps.

    Left the total, training and test; right the three terms of the test split, or of the
    training split before there is any test, on a logarithmic axis.
    """
    rows = read_metrics(metrics)
    if not rows:
        return
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    figure, (total, terms) = _figure(1, 2, (10, 4))

    if train:
        total.plot(*_series(train, "bpd"), color="tab:gray", lw=1, label="training, one draw")
    if test:
        steps, values = _series(test, "bpd")
        errors = [row["bpd_se"] for row in test]
        total.errorbar(
            steps, values, errors, color="black", marker="o", ms=3, lw=1.5, capsize=2,
            label=f"test (EMA), last {values[-1]:.3f} ± {errors[-1]:.3f}",
        )  # fmt: skip
    finite = [v for row in rows if (v := row.get("bpd")) is not None]
    if finite:
        # The first steps are far above all others; the axis is for what comes after them.
        low, high = min(finite), np.quantile(finite, 0.95)
        total.set_ylim(low - 0.05 * (high - low) - 0.02, high + 0.1 * (high - low) + 0.02)
    total.set(xlabel="step", ylabel="bits/dim", title=title or "ELBO")
    total.grid(alpha=0.3)
    total.legend()

    shown = test or train
    for name, (label, colour) in TERMS.items():
        if name in shown[-1]:
            terms.plot(*_series(shown, name), color=colour, marker=".", label=label)
    for name in shown[-1]:
        if f"{name}_se" in shown[-1] and name not in TERMS:
            terms.plot(*_series(shown, name), marker=".", label=name)
    terms.set_yscale("symlog", linthresh=1e-3)
    terms.set_ylim(bottom=0)
    terms.set(xlabel="step", title="its terms, " + ("test" if test else "training"))
    terms.grid(alpha=0.3)
    terms.legend()
    part = pathlib.Path(path).with_suffix(".part.png")
    figure.savefig(part, dpi=110)
    part.replace(path)


def _series(rows, name):
    return [row["step"] for row in rows], [
        math.nan if row[name] is None else row[name] for row in rows
    ]


def _figure(rows, columns, size):
    """A matplotlib figure that needs no screen and leaves no global state behind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)
