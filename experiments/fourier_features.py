"""Fourier features of z: none, those of the data's lattice, and others, for a network that predicts ε.

  python -m experiments.fourier_features --workdir=runs/fourier_features --config=configs/digits.py

The levels of a value are 2/V apart, so that a wave of V/2 cycles per unit, or a multiple of it, has the
same phase at each: it tells where z is between two levels. Waves of other frequencies tell as finely
where z is, but not how far from the next level.
"""

from experiments import results, sweep


def grid(config):
    """{variant: fields}."""
    off = {"model.parameterisation": "eps", "model.net.fourier": 0}
    on = off | {"model.net.fourier": 2}
    lattice = config.data.vocab_size / 2.0
    return {
        "none": off,
        "lattice": on,
        "lattice_of_4": on | {"model.net.fourier": 4},
        "off_the_lattice": on | {"model.net.highest": 0.84 * lattice},
        "above_the_lattice": on | {"model.net.highest": 2.68 * lattice},
    }


def results_of(workdir, found):
    """Writes the table and the curves of {variant: [workdirs]}; returns their paths."""
    print(results.table(found, workdir))
    return [workdir / "table.md", workdir / "table.csv", *results.curves(found, workdir)]


if __name__ == "__main__":
    # ε must find the levels by itself: it goes down to where z tells them (VDM sec. 5.1).
    fields = sweep.SHORT | {"model.schedule.gamma_min": -13.3}
    sweep.main(__doc__, grid, results_of, config="configs/digits.py", seeds=2, fields=fields)
