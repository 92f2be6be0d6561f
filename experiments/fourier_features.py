"""Fourier features of z: none, those of the data's lattice, and others, for a network that predicts ε.

  python -m experiments.fourier_features --workdir=runs/fourier_features --config=configs/digits.py

The levels of a value are 2/V apart. A wave of V/2 cycles per unit, or of a multiple of that, has the same
phase at each level, and so shows where z lies between two levels. A wave of another frequency resolves z as
finely, but not its distance from the next level.
"""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from vdm.data import source
from vdm.sweep import study, tables, workdirs
from vdm.sweep.curves import plot_curves


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    off = {"model.parameterisation": "eps", "model.net.fourier": 0}
    on = off | {"model.net.fourier": 2}
    lattice = source.load(config.data).spec.vocab_size / 2.0
    return {
        "none": off,
        "lattice": on,
        "lattice_of_4": on | {"model.net.fourier": 4},
        "off_the_lattice": on | {"model.net.highest": 0.84 * lattice},
        "above_the_lattice": on | {"model.net.highest": 2.68 * lattice},
    }


def results_of(workdir: pathlib.Path, found: workdirs.Variants) -> list[pathlib.Path]:
    """Writes the table and the curves; returns their paths."""
    print(tables.write_table(found, workdir))
    return [workdir / "table.md", workdir / "table.csv", *plot_curves(found, workdir)]


if __name__ == "__main__":
    # A network that predicts ε must find the levels by itself: so γ starts where z shows them (VDM sec. 5.1).
    fields = study.SHORT | {"model.schedule.gamma_min": -13.3}
    study.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=fields)
