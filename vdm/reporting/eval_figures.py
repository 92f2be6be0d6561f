"""The figures of --mode=eval: the ELBO over depth, the diffusion term's density, rate and distortion."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np

from vdm.reporting.figures import new_figure, plain_ticks, save

Columns = Mapping[str, Float[np.ndarray, "columns"]]  # the result of evaluation.profile.Profile.summary


def save_depth(
    path: pathlib.Path | str,
    depths: Sequence[int],
    bpd: Sequence[float],
    excess: Sequence[float],
    excess_se: Sequence[float],
) -> None:
    """Plots on the left the ELBO of chains of `depths` steps and of T → ∞, and on the right the excess over
    T → ∞.

    Args:
      bpd: bits/dim at each depth, and last for T → ∞.
      excess, excess_se: excess in bits/dim over T → ∞ at each depth, paired by image, and its standard error.
    """
    figure, (left, right) = new_figure(1, 2, (10, 4))
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
        right.plot(depths, guide, color="tab:gray", ls=":", label="proportional to 1/T")
    right.set(ylabel="bits/dim", title="above T → ∞")
    right.legend()
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="T, steps of the chain")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.grid(alpha=0.3)
    save(figure, path)


def save_density(path: pathlib.Path | str, columns: Columns, diffusion: float) -> None:
    """Plots the diffusion term, bits/dim, as a density over t and over γ."""
    figure, panels = new_figure(1, 2, (10, 4))
    for axes, name, label in zip(panels, ("t", "gamma"), ("t", "γ = −log SNR")):
        edges, density, se = (columns[key] for key in (f"{name}_edges", f"per_{name}", f"per_{name}_se"))
        axes.stairs(density, edges, color="tab:blue", fill=True, alpha=0.3)
        axes.stairs(density, edges, color="tab:blue", lw=1.2)
        middle = 0.5 * (edges[1:] + edges[:-1])
        axes.errorbar(middle, density, se, fmt="none", ecolor="tab:blue", elinewidth=1)
        area = float(np.sum(density * np.diff(edges)))
        axes.set(
            xlabel=label, ylabel=f"bits/dim per unit of {label[0]}", ylim=(0, None),
            title=f"area {area:.4f}; the diffusion term {diffusion:.4f}",
        )  # fmt: skip
        axes.grid(alpha=0.3)
    save(figure, path)


def save_distortion(
    path: pathlib.Path | str,
    columns: Columns,
    times: Float[np.ndarray, "times"],
    x_hat: Float[np.ndarray, "times images height width channels"],
    x: Float[np.ndarray, "images height width channels"],
) -> None:
    """Plots on the left the rate–distortion curve of progressive coding, and on the right x̂(z_t) of some
    images x at `times`, all in [−1, 1]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(5, 7))
    left, right = halves
    axes = left.subplots()
    axes.plot(columns["rate"], columns["rmse"], color="black", marker=".", lw=1)
    axes.set(
        xlabel="rate: bits/dim spent from t = 1 down to t", ylabel="error of x̂: RMSE in levels",
        xlim=(0, None), ylim=(0, None), title="rate and distortion",
    )  # fmt: skip
    axes.grid(alpha=0.3)

    rate = np.interp(times, columns["t_edges"], columns["rate_edges"])
    panels = right.subplots(len(x), len(times) + 1, squeeze=False)
    for row, predictions, image in zip(panels, x_hat.swapaxes(0, 1), x):
        for axes, shown in zip(row, [*predictions, image]):
            _show(axes, shown)
    for axes, t, bits in zip(panels[0], times, rate):
        axes.set_title(f"{bits:.2f}\nt = {t:.2f}", fontsize=8)
    panels[0, -1].set_title("image\nx", fontsize=8)
    right.suptitle("x̂(z_t), and the bits/dim spent by then")
    save(figure, path)


def _show(axes, image: Float[np.ndarray, "height width channels"]) -> None:
    axes.set(xticks=[], yticks=[])
    if image.shape == (1, 1, 2):
        axes.scatter(*image[0, 0], s=9, color="black")
        axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    else:
        shown = np.clip(0.5 * (image + 1.0), 0.0, 1.0)
        shown = shown[..., 0] if image.shape[2] in (1, 2) else shown[..., :3]
        axes.imshow(shown, cmap="gray", vmin=0.0, vmax=1.0)
