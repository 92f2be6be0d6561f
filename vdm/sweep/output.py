"""The output of a study: its folder, tables as CSV files, figures."""

from collections.abc import Mapping, Sequence
import csv
import json
import pathlib
from typing import Any

from matplotlib.figure import Figure

from vdm.errors import UserError
from vdm.reporting import figures
from vdm.runtime.atomic import write_text


def make_folder(out: pathlib.Path | str) -> pathlib.Path:
    """The folder `out`, made if it does not exist.

    Raises:
      UserError: the folder cannot be made.
    """
    out = pathlib.Path(out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(out)!r} cannot be a folder ({error.strerror}); give another.") from error
    return out


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes dictionaries as the rows of a CSV file; missing values and NaN are empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v != v else v for k, v in row.items()})  # NaN ≠ NaN


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def save_figure(figure: Figure, out: pathlib.Path | str, name: str, dpi: int = 110) -> list[pathlib.Path]:
    """Writes NAME.png and NAME.pdf; returns both paths."""
    files = [make_folder(out) / f"{name}{suffix}" for suffix in (".png", ".pdf")]
    for file in files:
        figures.save(figure, file, dpi)
    return files
