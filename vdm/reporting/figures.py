"""Common parts of figures: names and colours of the terms, axes, and writing a figure."""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vdm.runtime.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# The name of each term of the ELBO in figures, and its colour.
TERMS = {
    "bpd": ("ELBO", "black"),
    "diffusion": ("diffusion (denoising matching)", "tab:blue"),
    "reconstruction": ("reconstruction", "tab:orange"),
    "prior": ("prior (matching)", "tab:green"),
    "context": ("context (matching)", "tab:purple"),
    "label": ("label", "tab:brown"),
    "likelihood": ("likelihood", "tab:red"),
}


def term_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The terms in lines of metrics.jsonl, or eval.json: those of TERMS first, then all others with a
    standard error."""
    found = {name for row in rows for name in row if name in TERMS or f"{name}_se" in row}
    known = [name for name in TERMS if name in found]
    return [name for name in (*known, *sorted(found - set(known))) if name != "bpd"]


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple["Figure", Any]:
    """A Matplotlib figure, without a display or global state, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def limit_y(axes: "Axes", curves: Sequence[Sequence[float]]) -> None:
    """Sets the limits of y so that they leave out the first steps, whose values are far above all others.

    Args:
      curves: the values of each curve. The limits include values of at most a quarter above the lowest one,
        and the last value of each curve, unless it is as far above the others as those of the first steps.
    """
    values = np.concatenate([np.asarray(curve, np.float64) for curve in curves] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    low = values.min()
    usual = np.median(values) - low
    ends = [curve[-1] for curve in curves if curve[-1] - low <= 20.0 * usual]
    high = max([min(values.max(), max(low + 5.0 * usual, 1.25 * low)), *ends])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - margin, high + margin)


def plain_ticks(axis: "Axis") -> None:
    """Shows plain numbers on a logarithmic axis: 1, 2 and 5 of each decade, or only 1 if there are many
    decades. To be called after plotting."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.axes.get_xlim() if axis is axis.axes.xaxis else axis.axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 300.0 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=10))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: "Figure", path: pathlib.Path | str, dpi: int = 110) -> None:
    """Writes a figure in the format of its suffix, .png or .pdf, atomically."""
    with atomic_path(path) as part:
        figure.savefig(part, dpi=dpi)
