"""What a run leaves behind to look at: samples, curves, and where the bits go."""

import math
import pathlib

import numpy as np

from vdm.diffusion import encoder
from vdm.reporting.report import read_metrics

# What one term of the ELBO is called in a figure, and its colour, the same everywhere.
TERMS = {
    "bpd": ("ELBO", "black"),
    "diffusion": ("diffusion (denoising matching)", "tab:blue"),
    "reconstruction": ("reconstruction", "tab:orange"),
    "prior": ("prior (matching)", "tab:green"),
    "context": ("context (matching)", "tab:purple"),
    "label": ("label", "tab:brown"),
    "likelihood": ("likelihood", "tab:red"),
}


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


def save_curve(path, metrics, total_name="ELBO"):
    """Draws the curve of a metrics.jsonl: bits/dim of each term against steps.

    Left the total, training and test; right its terms on the test split, or of the
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
        _, errors = _series(test, "bpd_se")
        total.errorbar(
            steps, values, errors, color="black", marker="o", ms=3, lw=1.5, capsize=2,
            label=f"test (EMA), last {values[-1]:.3f} ± {errors[-1]:.3f}",
        )  # fmt: skip
    show_end(total, [_series(split, "bpd")[1] for split in (train, test) if split])
    total.set(xlabel="step", ylabel="bits/dim", title=total_name)
    total.grid(alpha=0.3)
    total.legend()

    shown = test or train
    names = term_names(shown[-1:])
    for place, name in enumerate((*["bpd"] * (len(names) > 1), *names)):
        label, colour = TERMS.get(name, (name, None))
        label, style = total_name if name == "bpd" else label, "-" if colour else "--"
        terms.plot(*_series(shown, name), color=colour or f"C{place}", ls=style, marker=".", label=label)
    terms.set_yscale("symlog", linthresh=1e-3)
    terms.set_ylim(bottom=0)
    terms.set(xlabel="step", title="its terms, " + ("test" if test else "training"))
    terms.grid(alpha=0.3)
    terms.legend()
    save(figure, path)


def term_names(rows):
    """Names of the terms that lines of metrics.jsonl, or eval.json, hold: those of TERMS first, then
    what else has a standard error."""
    found = {name for row in rows for name in row if name in TERMS or f"{name}_se" in row}
    known = [name for name in TERMS if name in found]
    return [name for name in (*known, *sorted(found - set(known))) if name != "bpd"]


def show_end(axes, curves):
    """Sets the limits of y for what comes after the first steps, which are far above all others.

    Args:
      curves: the values of each curve, [[n], …]. The last of each is shown too, unless it is as far
        above the rest as first steps are; and so is all that is at most a quarter above the lowest.
    """
    values = np.concatenate([np.asarray(curve, np.float64) for curve in curves] or [[]])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low = values.min()
    usual = np.median(values) - low
    ends = [curve[-1] for curve in curves if curve[-1] - low <= 20.0 * usual]
    high = max([min(values.max(), max(low + 5.0 * usual, 1.25 * low)), *ends])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - margin, high + margin)


def _series(rows, name):
    return [row["step"] for row in rows], [
        math.nan if row[name] is None else row[name] for row in rows
    ]


def _figure(rows, columns, size):
    """A matplotlib figure that needs no screen and leaves no global state behind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def save_depth(path, depths, bpd, excess, excess_se):
    """Draws the ELBO of chains of `depths` steps and of T → ∞, left; how far they are above it,
    image by image, right.

    Args:
      bpd: bits/dim, [depths + 1], T → ∞ the last; excess, excess_se: [depths].
    """
    figure, (left, right) = _figure(1, 2, (10, 4))
    left.plot(depths, bpd[:-1], color="black", marker="o", ms=4, lw=1.2, label="a chain of T steps")
    left.axhline(bpd[-1], color="tab:blue", lw=1, label=f"T → ∞: {bpd[-1]:.4f}")
    left.set(ylabel="bits/dim", title="ELBO of one model at finite depth")
    left.legend()
    right.errorbar(
        depths, excess, excess_se, color="black", marker="o", ms=4, lw=1.2, capsize=2,
        label="± 1 s.e., image by image",
    )  # fmt: skip
    if excess[-1] > 0:
        guide = excess[-1] * depths[-1] / np.asarray(depths)
        right.plot(depths, guide, color="tab:gray", ls=":", label="in proportion to 1/T")
    right.set(ylabel="bits/dim", title="above T → ∞")
    right.legend()
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="T, steps of the chain")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.grid(alpha=0.3)
    save(figure, path)


def plain_ticks(axis):
    """Plain numbers on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=10))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save_density(path, columns, estimate):
    """Draws the diffusion term as a density over t and over γ, of Profile.summary's columns."""
    figure, panels = _figure(1, 2, (10, 4))
    term = estimate.mean["diffusion"]
    for axes, name, label in zip(panels, ("t", "gamma"), ("t", "γ = −log SNR")):
        edges, density, se = (
            columns[key] for key in (f"{name}_edges", f"per_{name}", f"per_{name}_se")
        )
        axes.stairs(density, edges, color="tab:blue", fill=True, alpha=0.3)
        axes.stairs(density, edges, color="tab:blue", lw=1.2)
        middle = 0.5 * (edges[1:] + edges[:-1])
        axes.errorbar(middle, density, se, fmt="none", ecolor="tab:blue", elinewidth=1)
        area = float(np.sum(density * np.diff(edges)))
        axes.set(
            xlabel=label, ylabel=f"bits/dim per unit of {label[0]}", ylim=(0, None),
            title=f"area {area:.4f}; the diffusion term {term:.4f}",
        )  # fmt: skip
        axes.grid(alpha=0.3)
    save(figure, path)


def save_distortion(path, columns, times, x_hat, x, spec):
    """Draws the rate–distortion curve of progressive coding, and x̂(z_t) on the way.

    Args:
      columns: of Profile.summary.
      times: [n]; x_hat: [n, images, …] at these times; x: [images, …], both in [−1, 1].
      spec: data.Spec.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(5, 7))
    axes = left.subplots()
    axes.plot(columns["rate"], columns["rmse"], color="black", marker=".", lw=1)
    axes.set(
        xlabel="rate: bits/dim spent from t = 1 down to t", ylabel="error of x̂: RMSE in levels",
        xlim=(0, None), ylim=(0, None), title="rate and distortion",
    )  # fmt: skip
    axes.grid(alpha=0.3)

    rate = np.interp(times, columns["t_edges"], columns["rate_edges"])
    panels = right.subplots(len(x), len(times) + 1, squeeze=False)
    for row, original in zip(panels, range(len(x))):
        for axes, picture in zip(row, [*x_hat[:, original], x[original]]):
            axes.set(xticks=[], yticks=[])
            if spec.shape == (1, 1, 2):
                axes.scatter(*picture[0, 0], s=9, color="black")
                axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
            else:
                shown = np.clip(0.5 * (picture + 1.0), 0.0, 1.0)
                shown = shown[..., 0] if spec.shape[2] in (1, 2) else shown[..., :3]
                axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0)
    for axes, t, bits in zip(panels[0], times, rate):
        axes.set_title(f"{bits:.2f}\nt = {t:.2f}", fontsize=8)
    panels[0, -1].set_title("image\nx", fontsize=8)
    right.suptitle("x̂(z_t), and the bits/dim spent by then")
    save(figure, path)


def save(figure, path):
    """Writes a figure as what its suffix says, .png or .pdf, whole or not at all."""
    path = pathlib.Path(path)
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    figure.savefig(part, dpi=110)
    part.replace(path)
