"""ELBO curves of variants, with bands over their seeds."""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

from jaxtyping import Float
from matplotlib.lines import Line2D
import numpy as np

from vdm.errors import one_of, require
from vdm.reporting import figures
from vdm.sweep import budget, look as look_lib, workdirs
from vdm.sweep.density import density
from vdm.sweep.look import Look
from vdm.sweep.workdirs import Record, Variants, images_note, kept, number, read_variants

AGAINST = {
    "step": "step",
    "images": "images seen",
    "seconds": "seconds",
    "operations": "floating-point operations",
}
OTHER = {
    "variance": "variance of a draw,\n(bits/dim)²",
    "gamma": "γ = −log SNR",
    "density": "bits/dim per unit of γ",
}
NOTES = {
    "points": "Points: bits/dim of the test split, with the same noise at each point.",
    "fewer": "The number of passes is {}; the tables' estimates have more, and differ by the noise of "
    "evaluation.",
    "band": "Bands: mean ± its standard error over seeds.",
    "pair": "Bands: the range of two seeds.",
    "bar": "Bar: ± the standard error of the last evaluation of a single run, over images and noise.",
    "final": "Diamonds: the estimate at the end of a run without a curve.",
    "thin": "Thin lines: single seeds, if some have trained further than others.",
    "faint": "Faint lines: training loss after the last evaluation, one draw.",
    "seconds": "Seconds count from a run's start, and include evaluations and compilation, which is shorter "
    "for programs that an earlier run has compiled.",
    "variance": "Variance: the square of the mean standard deviation of the losses in a training batch, over "
    "images, times and noise.",
    "widths": "Later variants have thinner lines, so that equal curves do not hide each other.",
}
NO_OPERATIONS = "--panels has operations, which only studies with --minutes measure; leave it out."
SMALLEST = 1e-3  # bits/dim: least height of a panel, and least difference of curves in an informative panel
Curve = Float[np.ndarray, "3 evaluations"]  # step, x and y of each evaluation


def plot_curves(
    variants: Variants, out: pathlib.Path | str, name: str = "curves", look: Look | None = None
) -> list[pathlib.Path]:
    """Writes NAME.png, NAME.pdf and the caption NAME.txt: bits/dim of the test split against steps and
    seconds, and the informative terms; or the panels of the look. Returns their paths.

    Args:
      look: by default that of the study in `out`, or Look().

    Raises:
      UserError: `read_variants` or `make_folder` raises it, or no run has measurements yet.
    """
    found = read_variants(variants)
    every = [record for records in found.values() for record in records]
    require(
        any("bpd" in one.newest for one in every),
        "no run has measurements yet; the first comes after config.train.log_every steps.",
    )
    look = look or look_lib.of_study(out)
    terms = figures.term_names([row for one in every for row in (one.newest, one.final)])
    spent = operations(pathlib.Path(out), found)
    for panel in look.panels:
        one_of("--panels", panel, [*AGAINST, *terms, *OTHER])
    require("operations" not in look.panels or spent, NO_OPERATIONS)
    panels = look.panels or ("step", "seconds", *(term for term in terms if says_something(found, term)))

    styles = look_lib.styles(list(found), out)
    notes = {"widths"} if len(found) > 1 else set()
    with look.drawing():
        figure, axes_of = look.figure(panels)
        for panel, axes in axes_of.items():
            if panel in ("gamma", "density"):
                _of_schedule(axes, panel, found, styles)
            elif panel == "variance":
                notes |= plot_variance(axes, found, styles)
            else:
                notes |= _panel(axes, panel, found, styles, spent, look)
            axes.grid(alpha=0.3, lw=0.4)
        lines = []
        for variant, records in found.items():
            seeds = f" ({len(records)} seeds)" if len(records) > 1 else ""
            lines.append(Line2D([], [], label=variant + seeds, marker=".", **styles[variant]))
        look_lib.legend_above(figure, lines, look.width)
        return look_lib.save(figure, out, name, caption(found, notes))


def check_panels(
    panels: Sequence[str], workdir: pathlib.Path, done: Sequence[pathlib.Path], minutes: float | None
) -> None:
    """Raises UserError if a study cannot have one of the panels, as far as its finished runs show.

    Args:
      done: the workdirs of the finished runs.
    """
    own = figures.term_names([workdirs.read(folder).final for folder in done]) if panels else []
    known = [*AGAINST, *(name for name in figures.TERMS if name != "bpd"), *own, *OTHER]
    for panel in panels:
        one_of("--panels", panel, dict.fromkeys(known))
    require("operations" not in panels or minutes or budget.read(workdir), NO_OPERATIONS)


def caption(found: Mapping[str, Sequence[Record]], notes: set[str]) -> str:
    """The caption of a figure of curves."""
    every = [record for records in found.values() for record in records]
    passes = sorted({str(row["passes"]) for one in every for row in one.test if "passes" in row})
    texts = [images_note(every)]
    if "points" in notes:
        texts.append(NOTES["points"])
        if passes and any(one.has_own_final for one in every):
            texts.append(NOTES["fewer"].format(" or ".join(passes)))
    texts += [text for note, text in NOTES.items() if note in notes and note not in ("points", "fewer")]
    return " ".join(text for text in texts if text)


def says_something(found: Mapping[str, Sequence[Record]], term: str) -> bool:
    """Whether a term is informative: the term, and the ELBO without it, differ between evaluations or
    variants by more than SMALLEST."""
    rows = [
        row for records in found.values() for one in records for row in (*one.test, one.final) if term in row
    ]
    values = np.array([number(row, term) for row in rows])
    rest = np.array([number(row, "bpd") for row in rows]) - values
    return values.size > 0 and _range(values) > SMALLEST and _range(rest) > SMALLEST


def _range(values):
    return np.nanmax(values) - np.nanmin(values)


def operations(out: pathlib.Path, found: Mapping[str, Any]) -> dict[str, float]:
    """Floating-point operations of a step of each variant, if the study has measured them (--minutes)."""
    costs = budget.read(out)
    return {name: costs[name][0].operations for name in found} if all(name in costs for name in found) else {}


def _panel(axes, panel, found, styles, spent, look):
    """Draws a panel of bits/dim, or of a term against steps; returns the keys of NOTES that it needs."""
    shown: list[Any] = []
    notes: set[str] = set()
    x, y = (panel, "bpd") if panel in AGAINST else ("step", panel)
    for variant, records in found.items():
        scale = {"images": records[0].config.train.batch_size, "operations": spent.get(variant, 1.0)}.get(
            x, 1.0
        )
        plot = _Plot(axes, "seconds" if x == "seconds" else "step", y, styles[variant], scale)
        plot.variant(records)
        notes |= plot.notes
        shown += plot.shown
    figures.limit_y(axes, shown)
    widen_y(axes)
    label = "bits/dim" if y == "bpd" else f"{figures.TERMS.get(y, (y,))[0]}, bits/dim"
    axes.set(xlabel=AGAINST[x], ylabel=label)
    if "y" in look.log:
        axes.set_yscale("log")
        figures.plain_ticks(axes.yaxis)
    elif y != "bpd":
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    if "x" in look.log:
        axes.set_xscale("log")
    return notes | ({"seconds"} if x == "seconds" else set())


def plot_variance(
    axes: Any, found: Mapping[str, Sequence[Record]], styles: Mapping[str, Mapping[str, Any]]
) -> set[str]:
    """Draws the variance of a draw of the loss during training; returns the keys of NOTES that it needs."""
    for variant, records in found.items():
        rows = [[row for row in one.train if row.get("draw_sd") is not None] for one in records]
        steps = sorted(
            {row["step"] for row in rows[0]}.intersection(*({r["step"] for r in some} for some in rows))
        )
        if steps:
            by_step = [{row["step"]: row["draw_sd"] ** 2 for row in some} for some in rows]
            values = np.mean([[one[step] for step in steps] for one in by_step], axis=0)
            axes.plot(steps, values, label=variant, **styles[variant])
    axes.set(xlabel="step", ylabel=OTHER["variance"], yscale="log")
    figures.plain_ticks(axes.yaxis)
    return {"variance"}


def _of_schedule(axes, panel, found, styles):
    """Draws γ(t) of the first seed of each variant, or the density of its bits over γ."""
    for variant, records in found.items():
        of = kept(records[0].folder, "density", density)
        gamma = np.array(of["gamma"])
        if panel == "gamma":
            axes.plot(np.linspace(0.0, 1.0, len(gamma)), gamma, **styles[variant])
        else:
            axes.stairs(of["per_gamma"], gamma, **styles[variant])
    axes.set(xlabel="t" if panel == "gamma" else OTHER["gamma"], ylabel=OTHER[panel])


def widen_y(axes: Any) -> None:
    """Shows at least SMALLEST bits/dim, so that a term near zero does not fill a panel with noise."""
    low, high = axes.get_ylim()
    if high - low < SMALLEST:
        low = max(0.0, 0.5 * (low + high - SMALLEST))
        axes.set_ylim(low, low + SMALLEST)


class _Plot:
    """A panel with the curve of one variant.

    Attributes:
      shown: the values of each curve, from which the limits of the panel are set.
      notes: the keys of NOTES that the panel needs.
    """

    def __init__(self, axes, x: str, y: str, style: dict[str, Any], scale: float):
        """`scale` multiplies x."""
        self._axes, self._x, self._y, self._style, self._scale = axes, x, y, style, scale
        self.shown: list[Any] = []
        self.notes: set[str] = set()

    def variant(self, records: Sequence[Record]) -> None:
        """Plots a variant: its curve, or else its final estimates, and training after the last evaluation."""
        for record in records:
            self._training(record)
        tested = [record for record in records if record.test and self._y in record.test[-1]]
        ended = [record for record in records if self._y in record.final]
        if tested:
            self.notes.add("points")
            self._single(tested[0]) if len(tested) == 1 else self._seeds(tested)
        elif ended and len(ended) == len(records):  # a mean needs every seed
            self._final(ended)

    def _training(self, record):
        last = record.test[-1]["step"] if record.test else 0
        last = max(last, record.final.get("step", 0))
        late = [row for row in record.train if row["step"] > last and self._y in row]
        if late:
            self.shown.append([number(row, self._y) for row in late])
            x = [self._scale * row[self._x] for row in late]
            self._axes.plot(x, self.shown[-1], alpha=0.5, **{**self._style, "lw": 0.8})
            self.notes.add("faint")

    def _final(self, records):
        x = self._scale * np.mean([number(record.final, self._x) for record in records])
        values = np.array([number(record.final, self._y) for record in records])
        self._axes.plot(x, values.mean(), color=self._style["color"], marker="D", ls="none", zorder=3)
        self.shown.append([values.mean()])
        self.notes.add("final")

    def _single(self, record):
        _, x, y = curve_of(record, self._x, self._y)
        x = self._scale * x
        self._axes.plot(x, y, marker=".", **self._style)
        se = number(record.test[-1], f"{self._y}_se")
        self._axes.errorbar(x[-1], y[-1], se, color=self._style["color"], capsize=2, lw=0.8)
        self.shown += [y, [y[-1] - se, y[-1] + se]]
        self.notes.add("bar")

    def _seeds(self, records):
        curves = [curve_of(record, self._x, self._y) for record in records]
        x, values = over_seeds(curves)
        x, mean = self._scale * x, values.mean(axis=0)
        self._axes.plot(x, mean, marker=".", **self._style)
        (below, above), note = _spread(values)
        self.notes.add(note)
        self._axes.fill_between(x, mean - below, mean + above, color=self._style["color"], alpha=0.2, lw=0)
        if len({(steps[0], steps[-1]) for steps, *_ in curves}) > 1:
            self.notes.add("thin")
            for _, own_x, own_y in curves:
                self._axes.plot(self._scale * own_x, own_y, **{**self._style, "lw": 0.5})
        self.shown += [y for *_, y in curves]


def _spread(values):
    """How far a band reaches below and above the mean over seeds, the first axis, [2, …]; and its note."""
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
    """Interpolates the curves of seeds at common steps: all steps of their evaluations, from the first to the
    last that every seed has reached.

    Returns:
      x, the mean over seeds; and y of each seed.
    """
    steps = np.unique(np.concatenate([step for step, *_ in seeds]))
    first, last = max(step[0] for step, *_ in seeds), min(step[-1] for step, *_ in seeds)
    steps = steps[(first <= steps) & (steps <= last)]
    x, y = (np.stack([np.interp(steps, seed[0], seed[i]) for seed in seeds]) for i in (1, 2))
    return x.mean(axis=0), y
