"""Numbers and tables as text."""

from collections.abc import Sequence
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from vdm.data import fingerprint

if TYPE_CHECKING:  # this module does not import JAX, so that studies start quickly
    from vdm.estimate import Estimate


def fixed(number: float) -> str:
    """Four decimal places; a dash for NaN, an unknown value."""
    return "–" if np.isnan(number) else f"{number:.4f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also legible as text: the first column left-aligned, the others
    right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]

    def line(cells):
        first, *others = (cell.rjust(width) for cell, width in zip(cells, widths))
        return " | ".join(["| " + first.strip().ljust(widths[0]), *others]) + " |"

    rule = ["-" * width for width in widths]
    rule[1:] = [dashes[:-1] + ":" for dashes in rule[1:]]
    return "\n".join(map(line, [header, rule, *rows]))


def print_to_pipe(text: str) -> None:
    """Prints a text whose reader may close the pipe early, as in `--help | head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for LaTeX, with the rules of the package booktabs."""
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$", "–": "--"}
    signs |= {sign: "\\" + sign for sign in "&%$#_{}"}

    def line(cells):
        return " & ".join("".join(signs.get(sign, sign) for sign in cell) for cell in cells) + r" \\"

    body = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule", line(header), r"\midrule"]
    return "\n".join([*body, *map(line, rows), r"\bottomrule", r"\end{tabular}"])


def parameter_table(params: Any) -> str:
    """A table of the parameters, a tree of arrays: name, shape, count, and the total."""
    import jax

    rows = []
    for path, value in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/").replace("/params/", "/")
        rows.append((name, " × ".join(map(str, value.shape)) or "scalar", f"{value.size:,}"))
    total = f"{sum(value.size for value in jax.tree.leaves(params)):,}"
    rows = [("parameter", "shape", "count"), *rows, ("total", "", total)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}" for name, shape, count in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def estimate_table(estimate: "Estimate") -> str:
    """Each term and the total in bits/dim, with the standard error and its two parts."""
    names = [name for name in estimate.mean if name != "bpd"] + ["bpd"]
    lines = [f"{'':<16}{'bits/dim':>10}{'s.e.':>10}{'= images':>10}{'& noise':>10}"]
    for name in names:
        numbers = (part[name] for part in (estimate.mean, estimate.se, estimate.images_se, estimate.noise))
        label = f"total ({'exact' if estimate.exact else 'ELBO'})" if name == "bpd" else name
        lines.append(f"{label:<16}" + "".join(f"{fixed(number):>10}" for number in numbers))
    lines.insert(-1, "-" * len(lines[0]))
    data = f" of {fingerprint.named(estimate.data)}" if estimate.data else ""
    lines.append(f"images: {estimate.images}{data}, each evaluated {estimate.passes} times")
    return "\n".join(lines)
