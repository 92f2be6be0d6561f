"""The look of a study's figures: width, fonts and colours; and the writing of figures and captions."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import textwrap
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from vdm.errors import require
from vdm.runtime.atomic import write_text
from vdm.sweep import saved
from vdm.sweep.output import make_folder, save_figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito
DASHES = ("-", "--", ":", "-.")  # the next style is used after all colours
DPI = 220  # resolution of a PNG


@dataclasses.dataclass(frozen=True)
class Look:
    """The look of all figures of a study.

    Attributes:
      width: width in inches: 5.5 for a page, 3.25 for one of two columns.
      panels: names of the panels; () for those that are informative.
      log: names of the logarithmic axes: x, y.
    """

    width: float = 5.5
    panels: tuple[str, ...] = ()
    log: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises UserError if a value is not accepted."""
        require(2.0 <= self.width <= 20.0, f"--width is {self.width}; accepted: 2 to 20 inches.")
        twice = sorted({panel for panel in self.panels if self.panels.count(panel) > 1})
        require(not twice, f"--panels has {', '.join(twice)} twice; give each once.")
        wrong = sorted({*self.log} - {"x", "y"})
        require(not wrong, f"--log has {', '.join(wrong)}; accepted: x, y, or both as x,y.")

    @property
    def columns(self) -> int:
        """Number of panels side by side."""
        return 1 if self.width < 4.0 else 2 if self.width < 8.0 else 3

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Within the context, figures have font sizes for a page, and thin lines."""
        size = 7.0 if self.width < 4.0 else 8.0
        small: Any = {name: size - 1.0 for name in ("xtick.labelsize", "ytick.labelsize", "legend.fontsize")}
        with rc_context(
            {"font.size": size, "axes.titlesize": size, "axes.labelsize": size, "axes.linewidth": 0.6,
             "lines.linewidth": 1.2, "lines.markersize": 3.0, "pdf.fonttype": 42, **small}
        ):  # fmt: skip
            yield

    def figure(self, panels: Sequence[str], height: float = 0.62) -> tuple[Figure, dict[str, Any]]:
        """A figure with a panel for each name, and {name: panel}; `height` is that of a panel, as a share of
        its width."""
        columns = min(self.columns, len(panels))
        rows = -(-len(panels) // columns)
        names = [*panels, *["."] * (rows * columns - len(panels))]
        figure = Figure(figsize=(self.width, rows * height * self.width / columns), layout="constrained")
        mosaic: Any = [names[row * columns : (row + 1) * columns] for row in range(rows)]
        return figure, figure.subplot_mosaic(mosaic)


def styles(names: Sequence[str], out: pathlib.Path | str) -> dict[str, dict[str, Any]]:
    """Colour, dashes and line width of each variant for Matplotlib, by its place in the study in the folder
    `out`. Later lines are thinner, so that equal curves do not hide each other."""
    kept = saved.read(pathlib.Path(out).expanduser())
    order = saved.in_order(names, kept.names if kept else [])
    widths = {name: 2.2 - 1.2 * order.index(name) / max(1, len(order) - 1) for name in names}
    return {name: {**style_of(order.index(name)), "lw": widths[name]} for name in names}


def style_of(place: int) -> dict[str, Any]:
    """Colour and line style of the variant number `place`, for Matplotlib."""
    return {"color": COLOURS[place % len(COLOURS)], "ls": DASHES[place // len(COLOURS) % len(DASHES)]}


def legend_above(figure: Figure, handles: Sequence[Any], width: float) -> None:
    """Adds a legend above the panels, in as many columns as fit."""
    longest = max(len(handle.get_label()) for handle in handles) + 6
    columns = max(1, min(len(handles), int(width / (0.053 * longest))))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def save(figure: Figure, out: pathlib.Path | str, name: str, caption: str) -> list[pathlib.Path]:
    """Writes NAME.png, NAME.pdf and the caption as NAME.txt; returns their paths."""
    text = make_folder(out) / f"{name}.txt"
    write_text(text, textwrap.fill(caption, 100) + "\n")
    return [*save_figure(figure, out, name, DPI), text]


def of(settings: Mapping[str, Any]) -> Look:
    """The Look of the settings in study.json."""
    usual = dataclasses.asdict(Look())
    width, panels, log = (settings.get(name, usual[name]) for name in ("width", "panels", "log"))
    return Look(width, tuple(panels), tuple(log))


def of_study(out: pathlib.Path | str) -> Look:
    """The Look of the study in a folder; Look() if there is no study."""
    kept = saved.read(pathlib.Path(out).expanduser())
    return of(kept.look) if kept else Look()
