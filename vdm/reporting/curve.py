"""The curve of a run: bits/dim of each term against steps."""

from collections.abc import Mapping, Sequence
import math
import pathlib
import statistics
from typing import Any

from vdm.reporting import figures
from vdm.reporting.metrics import read_metrics

Rows = Sequence[Mapping[str, Any]]


def save_curve(path: pathlib.Path | str, metrics: pathlib.Path | str, total_name: str = "ELBO") -> None:
    """Plots a metrics.jsonl; does nothing if it has no line yet.

    Left: the total in training and on the test split, and the final estimate if the run has ended. Right: its
    terms on the test split, or in training before the first evaluation, on a logarithmic axis.
    """
    rows = read_metrics(metrics)
    if not rows:
        return
    splits = ("train", "test", "final")
    train, test, final = ([row for row in rows if row["split"] == split] for split in splits)
    # A run that was resumed to train for longer still has the final estimate of its first end.
    final = [row for row in final[-1:] if row["step"] == rows[-1]["step"]]
    figure, (left, right) = figures.new_figure(1, 2, (10, 4.4))
    _plot_total(left, train, test, final)
    left.set(xlabel="step", ylabel=f"{total_name}, bits/dim")
    _plot_terms(right, test or train, total_name)
    right.set(xlabel="step", ylabel="its terms, " + ("test" if test else "training"))
    for axes, columns in ((left, 1), (right, 2)):
        axes.grid(alpha=0.3)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, frameon=False)
    figures.save(figure, path)


def _series(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Steps and values; NaN for an unknown value."""
    return [row["step"] for row in rows], [math.nan if row[name] is None else row[name] for row in rows]


def _plot_total(axes, train: Rows, test: Rows, final: Rows) -> None:
    if train:
        axes.plot(*_series(train, "bpd"), color="tab:gray", lw=1, label="training, one draw")
    if test:
        steps, values = _series(test, "bpd")
        _, errors = _series(test, "bpd_se")
        last = f", last {values[-1]:.3f} ± {errors[-1]:.3f}" if not final else ""
        axes.errorbar(
            steps, values, errors, color="black", marker="o", ms=3, lw=1.5, capsize=2,
            label=f"test (EMA), {_passes(test)}{last}",
        )  # fmt: skip
    if final:
        steps, (value,) = _series(final, "bpd")
        _, (error,) = _series(final, "bpd_se")
        axes.errorbar(
            steps, value, error, color="tab:red", marker="D", ms=5, ls="none", capsize=4, zorder=3,
            label=f"final, {_passes(final)} with independent noise, {value:.3f} ± {error:.3f}",
        )  # fmt: skip
    figures.limit_y(axes, [_series(rows, "bpd")[1] for rows in (train, test, final) if rows])


def _passes(rows):
    """The most frequent number of passes of the lines, in words."""
    count = statistics.mode(row["passes"] for row in rows)
    return f"{count} pass" + "es" * (count > 1)


def _plot_terms(axes, rows: Rows, total_name: str) -> None:
    names = figures.term_names(rows[-1:])
    for place, name in enumerate((*["bpd"] * (len(names) > 1), *names)):
        label, colour = figures.TERMS.get(name, (name, None))
        label, style = total_name if name == "bpd" else label, "-" if colour else "--"
        # The total lies next to its largest term: a wide band below the terms' lines.
        width = {"lw": 6, "alpha": 0.3} if name == "bpd" else {"marker": "."}
        axes.plot(*_series(rows, name), color=colour or f"C{place}", ls=style, label=label, **width)
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.set_ylim(bottom=0)
