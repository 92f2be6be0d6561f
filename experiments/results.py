"""Tables and ELBO curves of variants, with error bars over their seeds."""

import csv
import math
import pathlib
import textwrap

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
import numpy as np

from experiments.workdirs import number, read_variants
from vdm.reporting import figures, report
from vdm.errors import UserError, require
from vdm.evaluation.evaluate import standard_error


def make(out):
    """The folder `out`, made where it is not there."""
    out = pathlib.Path(out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(out)!r} cannot be a folder ({error.strerror}); give another.") from error
    return out


CAPTION = """
Bits/dim of the test split and its terms, means over seeds. "± over seeds" is the standard error of that
mean by how far the n seeds are apart; it is itself known to about 1 part in √(2n − 2), and not at all from
one seed (–). It counts what a seed changes: the first parameters, the order of the data, the noise of
training and of evaluation; but not which test images were drawn, as all seeds have the same. "± of one
run" is the mean of the runs' own standard errors, which count the images and the Monte-Carlo noise of
evaluation, but not what another seed would change. Seconds are from a run's start on, compilation and
evaluations included."""


def table(variants, out, name="table", more=None, caption=""):
    """Writes NAME.md, NAME.csv (a row for each variant) and NAME_runs.csv (a row for each run).

    Args:
      variants: {variant: [workdirs, one for each seed]}.
      out: folder.
      more: further columns, {column: {variant: (mean, standard error)}}.
      caption: what they are.

    Returns:
      the Markdown.

    Raises:
      UserError: as `read_variants` and `make` do.
    """
    variants, more, out = read_variants(variants), more or {}, make(out)
    terms = figures.term_names(run.final for runs in variants.values() for run in runs)
    rows = [_variant_row(variant, runs, terms, more) for variant, runs in variants.items()]
    runs = [_run_row(variant, run, terms) for variant, runs in variants.items() for run in runs]
    columns = {"bits/dim": "bpd", "± over seeds": "bpd_se_seeds", "± of one run": "bpd_se_run"}
    for column in more:
        columns |= {column: column, f"{column} ±": f"{column}_se"}
    columns |= {term: term for term in terms}
    cells = [
        [row["variant"], *(report.fixed(row[key]) for key in columns.values()), str(row["seeds"]),
         row["step"], f"{row['seconds']:.0f}"]
        for row in rows
    ]  # fmt: skip
    text = report.markdown_table(["variant", *columns, "seeds", "step", "seconds"], cells)
    text += f"\n{CAPTION}\n" + (f"{caption}\n" if caption else "")
    (out / f"{name}.md").write_text(text)
    write_csv(out / f"{name}.csv", rows)
    write_csv(out / f"{name}_runs.csv", runs)
    return text


def _variant_row(variant, runs, terms, more):
    row = {"variant": variant}
    for name in ("bpd", *terms):
        values = np.array([number(run.final, name) for run in runs])
        own = [number(run.final, f"{name}_se") for run in runs]
        row |= {name: float(values.mean()), f"{name}_se_seeds": standard_error(values)}
        row[f"{name}_se_run"] = float(np.mean(own))
    for column, numbers in more.items():
        row[column], row[f"{column}_se"] = numbers.get(variant, (math.nan, math.nan))
    seconds = float(np.mean([number(run.newest, "seconds") for run in runs]))
    return row | {"seeds": len(runs), "step": progress(runs), "seconds": seconds}


def _run_row(variant, run, terms):
    row = {"variant": variant, "seed": run.config["seed"], "folder": run.folder}
    for name in ("bpd", *terms):
        parts = [f"{name}{part}" for part in ("", "_se", "_se_images", "_se_noise")]
        row |= {part: number(run.final, part) for part in parts}
    row |= {name: run.final.get(name, math.nan) for name in ("images", "passes", "step")}
    return row | {"steps": run.config["train"]["steps"], "seconds": number(run.newest, "seconds")}


def progress(runs):
    """The step that the final numbers are of: "500", "500–1500", "500 of 1500", or "–"."""
    if not all(run.final for run in runs):
        return "–"
    now, end = ([run.final["step"] for run in runs], [run.config["train"]["steps"] for run in runs])
    spans = ["–".join(map(str, sorted({min(steps), max(steps)}))) for steps in (now, end)]
    return spans[0] if now == end else " of ".join(spans)


def write_csv(path, rows):
    """Writes dictionaries as the rows of a CSV file; what a row lacks, and NaN, is empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v != v else v for k, v in row.items()})  # NaN is empty


# ---- curves -----------------------------------------------------------------------------

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito
DASHES = ("-", "--", ":")  # the second once all colours are taken

NOTES = {
    "band": "bands: mean ± its standard error over seeds, at their mean time",
    "pair": "bands of two seeds: from one to the other, at their mean time",
    "bar": "bars: ± s.e. of a single run's last evaluation (images and Monte-Carlo noise)",
    "thin": "thin: each seed, where they are not equally far",
    "faint": "faint: training after the last evaluation, one draw",
}


def curves(variants, out, name="curves"):
    """Draws NAME.png and NAME.pdf: bits/dim of the test split against steps and against seconds,
    and each term against steps.

    Args:
      variants: {variant: [workdirs, one for each seed]}.
      out: folder.

    Returns:
      the paths of both.

    Raises:
      UserError: as `read_variants` and `make` do, or no run has measured anything yet.
    """
    variants = read_variants(variants)
    rows = [run.newest for runs in variants.values() for run in runs]
    require(
        any("bpd" in row for row in rows),
        "no run has measured anything yet; the first comes after config.train.log_every steps.",
    )
    rows += [row for runs in variants.values() for run in runs for row in run.test[-1:]]
    terms = figures.term_names(rows)
    wide = max(1, len(terms))
    layout = [["step"] * wide + ["seconds"] * wide, [term for term in terms for _ in range(2)]]
    legend = 0.7 + 0.085 * max(len(variant) + 10 for variant in variants)  # inches
    size = (max(10.5, 3.5 * wide) + legend, 7 if terms else 4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplot_mosaic(layout if terms else layout[:1])

    lines, notes, drawn = [], set(), {panel: [] for panel in panels}
    for place, (variant, runs) in enumerate(variants.items()):
        style = style_of(place)
        for panel, axes in panels.items():
            x, y = ("step", panel) if panel in terms else (panel, "bpd")
            notes |= _draw(axes, runs, x, y, style, len(variants) <= 4, drawn[panel])
        seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        lines.append(Line2D([], [], label=variant + seeds, marker=".", **style))
    for panel, axes in panels.items():
        figures.show_end(axes, drawn[panel])
        title = figures.TERMS.get(panel, (panel,))[0] if panel in terms else "test split"
        axes.set(title=title, xlabel="seconds" if panel == "seconds" else "step")
        axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        axes.grid(alpha=0.3)
    panels["step"].set_ylabel("bits/dim")
    figure.legend(handles=lines, loc="outside right upper")
    told = "; ".join(text for note, text in NOTES.items() if note in notes)
    figure.supxlabel(textwrap.fill(told, 150), fontsize=9)
    return save(figure, out, name)


def save(figure, out, name):
    """Writes NAME.png and NAME.pdf; returns both paths."""
    files = [make(out) / f"{name}{suffix}" for suffix in (".png", ".pdf")]
    for file in files:
        figures.save(figure, file)
    return files


def style_of(place):
    """Colour and dashes of the variant at a place, for matplotlib."""
    return {"color": COLOURS[place % len(COLOURS)], "ls": DASHES[place // len(COLOURS) % len(DASHES)]}


def _draw(axes, runs, x, y, style, bar, drawn):
    """Draws a variant, with a bar for a single run if `bar`, as those of many would hide each other;
    adds the curves, lists of values, to `drawn`. Returns which NOTES it needs."""
    notes = set()
    for run in runs:
        last = run.test[-1]["step"] if run.test else 0
        late = [row for row in run.train if row["step"] > last and y in row]
        if late:
            drawn.append([number(row, y) for row in late])
            axes.plot([row[x] for row in late], drawn[-1], alpha=0.5, lw=1, **style)
            notes.add("faint")
    tested = [run.test for run in runs if run.test and y in run.test[-1]]
    if not tested:
        return notes
    seeds = [
        np.array([[number(row, name) for row in rows] for name in ("step", x, y)]) for rows in tested
    ]
    at, values = over_seeds(seeds)
    mean = values.mean(axis=0)
    axes.plot(at, mean, marker=".", **style)
    if len(seeds) == 1:
        drawn.append(mean)
        if not bar:
            return notes
        se = number(tested[0][-1], f"{y}_se")
        axes.errorbar(at[-1], mean[-1], se, color=style["color"], capsize=3)
        drawn.append([mean[-1] - se, mean[-1] + se])
        return notes | {"bar"}
    low, high = values.min(axis=0), values.max(axis=0)
    if len(seeds) > 2:
        se = values.std(axis=0, ddof=1) / math.sqrt(len(seeds))
        low, high = mean - se, mean + se
    axes.fill_between(at, low, high, color=style["color"], alpha=0.2, lw=0)
    if len({(steps[0], steps[-1]) for steps, *_ in seeds}) > 1:
        notes.add("thin")
        for _, own, value in seeds:
            axes.plot(own, value, lw=0.6, **style)
    drawn += [value for *_, value in seeds]
    return notes | {"band" if len(seeds) > 2 else "pair"}


def over_seeds(seeds):
    """Brings the curves of seeds to common steps: those at which any was evaluated, from the first
    that all have reached to the last. Between its own evaluations a seed is interpolated.

    Args:
      seeds: of each (step, x, y), [3, its evaluations].

    Returns:
      x, the mean over seeds, [n]; and y, [seeds, n].
    """
    steps = np.unique(np.concatenate([step for step, *_ in seeds]))
    first, last = max(step[0] for step, *_ in seeds), min(step[-1] for step, *_ in seeds)
    steps = steps[(first <= steps) & (steps <= last)]
    x, y = (np.stack([np.interp(steps, seed[0], seed[i]) for seed in seeds]) for i in (1, 2))
    return x.mean(axis=0), y
