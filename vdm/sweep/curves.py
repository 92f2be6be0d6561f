"""ELBO curves of variants, with bands over their seeds."""

from collections.abc import Sequence
import math
import pathlib
import textwrap
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np

from vdm.errors import require
from vdm.reporting import figures
from vdm.sweep.output import save_figure
from vdm.sweep.workdirs import Record, Variants, images_note, number, read_variants

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito
DASHES = ("-", "--", ":")  # the second once all colours are taken

NOTES = {
    "band": "bands: mean ± its standard error over seeds, at their mean time",
    "pair": "bands of two seeds: from one to the other, at their mean time",
    "bar": "bars of a single run: ± s.e. of its last evaluation (images and Monte-Carlo noise)",
    "final": "diamonds: final estimates, of config.eval.passes; points: of passes_in_training, "
    "with the same noise at each",
    "final_bar": "bars of diamonds: as the bands",
    "thin": "thin: each seed, where they are not equally far",
    "faint": "faint: training after the last evaluation, one draw",
}
SMALLEST = 1e-3  # bits/dim that a panel shows at least
Curve = Float[np.ndarray, "3 evaluations"]  # step, x and y of each


def plot_curves(variants: Variants, out: pathlib.Path | str, name: str = "curves") -> list[pathlib.Path]:
    """Writes NAME.png and NAME.pdf: bits/dim of the test split against steps and against seconds, and each
    term against steps. Returns their paths.

    Raises:
      UserError: as `read_variants` and `make_folder` do, or no run has measured anything yet.
    """
    found = read_variants(variants)
    rows = [record.newest for records in found.values() for record in records]
    require(
        any("bpd" in row for row in rows),
        "no run has measured anything yet; the first comes after config.train.log_every steps.",
    )
    rows += [record.final for records in found.values() for record in records]
    terms = figures.term_names(rows)
    wide = max(1, len(terms))
    layout = [["step"] * wide + ["seconds"] * wide, [term for term in terms for _ in range(2)]]
    legend = 0.7 + 0.085 * max(len(variant) + 10 for variant in found)  # inches
    size = (max(10.5, 3.5 * wide) + legend, 7 if terms else 4)
    figure = Figure(figsize=size, layout="constrained")
    panels: dict[str, Any] = figure.subplot_mosaic(layout if terms else layout[:1])  # type: ignore[arg-type]

    lines, notes = [], set()
    shown: dict[str, list[Any]] = {panel: [] for panel in panels}
    for place, (variant, records) in enumerate(found.items()):
        style = style_of(place)
        for panel, axes in panels.items():
            x, y = ("step", panel) if panel in terms else (panel, "bpd")
            plot = _Plot(axes, x, y, style, bars=len(found) <= 4)
            plot.variant(records)
            notes |= plot.notes
            shown[panel] += plot.shown
        seeds = f" ({len(records)} seeds)" if len(records) > 1 else ""
        lines.append(Line2D([], [], label=variant + seeds, marker=".", **style))
    for panel, axes in panels.items():
        figures.limit_y(axes, shown[panel])
        widen_y(axes)
        title = figures.TERMS.get(panel, (panel,))[0] if panel in terms else "test split"
        axes.set(title=title, xlabel="seconds" if panel == "seconds" else "step")
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        axes.grid(alpha=0.3)
    panels["step"].set_ylabel("bits/dim")
    figure.legend(handles=lines, loc="outside right upper")
    other = images_note(record for records in found.values() for record in records)
    texts = [other.rstrip(".")] if other else []
    caption = "; ".join(texts + [text for note, text in NOTES.items() if note in notes])
    figure.supxlabel(textwrap.fill(caption, 150), fontsize=9)
    return save_figure(figure, out, name)


def widen_y(axes: Any) -> None:
    """Shows at least SMALLEST bits/dim, so that a term near zero does not fill a panel with noise."""
    low, high = axes.get_ylim()
    if high - low < SMALLEST:
        low = max(0.0, 0.5 * (low + high - SMALLEST))
        axes.set_ylim(low, low + SMALLEST)


def style_of(place: int) -> dict[str, Any]:
    """Colour and dashes of the variant at a place, for Matplotlib."""
    return {"color": COLOURS[place % len(COLOURS)], "ls": DASHES[place // len(COLOURS) % len(DASHES)]}


class _Plot:
    """One panel with the curve of one variant.

    Attributes:
      shown: the values of each curve that the panel's limits are to show.
      notes: which of NOTES it needs.
    """

    def __init__(self, axes, x: str, y: str, style: dict[str, Any], bars: bool):
        """`bars`: whether points have error bars; those of many variants would hide each other."""
        self._axes, self._x, self._y, self._style, self._bars = axes, x, y, style, bars
        self.shown: list[Any] = []
        self.notes: set[str] = set()

    def variant(self, records: Sequence[Record]) -> None:
        """Plots a variant: its curve, the final estimates, and training after the last evaluation."""
        for record in records:
            self._training(record)
        tested = [record for record in records if record.test and self._y in record.test[-1]]
        ended = [record for record in records if record.has_own_final and self._y in record.final]
        final = len(ended) == len(records)  # a mean waits for every seed
        if final:
            self._final(ended)
        if len(tested) == 1:
            self._single(tested[0], bar=self._bars and not final)
        elif tested:
            self._seeds(tested)

    def _training(self, record):
        last = record.test[-1]["step"] if record.test else 0
        last = max(last, record.final.get("step", 0))
        late = [row for row in record.train if row["step"] > last and self._y in row]
        if late:
            self.shown.append([number(row, self._y) for row in late])
            self._axes.plot([row[self._x] for row in late], self.shown[-1], alpha=0.5, lw=1, **self._style)
            self.notes.add("faint")

    def _final(self, records):
        x = np.mean([number(record.final, self._x) for record in records])
        values = np.array([number(record.final, self._y) for record in records])
        mean, (error, _), note = values.mean(), _spread(values), "final_bar"
        if len(records) == 1:
            error, note = np.full(2, number(records[0].final, f"{self._y}_se")), "bar"
        colour = self._style["color"]
        self._axes.plot(x, mean, color=colour, marker="D", ms=5, ls="none", zorder=3)
        if self._bars:
            self._axes.errorbar(x, mean, error[:, None], color=colour, ls="none", capsize=3)
            self.shown.append([mean - error[0], mean + error[1]])
            self.notes.add(note)
        self.shown.append([mean])
        self.notes.add("final")

    def _single(self, record, bar):
        _, x, y = curve_of(record, self._x, self._y)
        self._axes.plot(x, y, marker=".", **self._style)
        self.shown.append(y)
        if bar:
            se = number(record.test[-1], f"{self._y}_se")
            self._axes.errorbar(x[-1], y[-1], se, color=self._style["color"], capsize=3)
            self.shown.append([y[-1] - se, y[-1] + se])
            self.notes.add("bar")

    def _seeds(self, records):
        curves = [curve_of(record, self._x, self._y) for record in records]
        x, values = over_seeds(curves)
        mean = values.mean(axis=0)
        self._axes.plot(x, mean, marker=".", **self._style)
        (below, above), note = _spread(values)
        self.notes.add(note)
        self._axes.fill_between(x, mean - below, mean + above, color=self._style["color"], alpha=0.2, lw=0)
        if len({(steps[0], steps[-1]) for steps, *_ in curves}) > 1:
            self.notes.add("thin")
            for _, own_x, own_y in curves:
                self._axes.plot(own_x, own_y, lw=0.6, **self._style)
        self.shown += [y for *_, y in curves]


def _spread(values):
    """How far below and above the mean over seeds, the first axis, a band goes, [2, …]; and its note."""
    mean = values.mean(axis=0)
    if len(values) > 2:
        se = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        return np.stack([se, se]), "band"
    return np.stack([mean - values.min(axis=0), values.max(axis=0) - mean]), "pair"


def curve_of(record: Record, x: str, y: str) -> Curve:
    """The curve of a run on the test split: step, x and y of each evaluation."""
    return np.array([[number(row, name) for row in record.test] for name in ("step", x, y)])


def over_seeds(
    seeds: Sequence[Curve],
) -> tuple[Float[np.ndarray, "steps"], Float[np.ndarray, "seeds steps"]]:
    """Brings the curves of seeds to common steps: those at which any was evaluated, from the first that all
    have reached to the last. Between its own evaluations a seed is interpolated.

    Returns:
      x, the mean over seeds; and y of each seed.
    """
    steps = np.unique(np.concatenate([step for step, *_ in seeds]))
    first, last = max(step[0] for step, *_ in seeds), min(step[-1] for step, *_ in seeds)
    steps = steps[(first <= steps) & (steps <= last)]
    x, y = (np.stack([np.interp(steps, seed[0], seed[i]) for seed in seeds]) for i in (1, 2))
    return x.mean(axis=0), y
