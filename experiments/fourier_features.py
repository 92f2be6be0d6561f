"""Fourier features of z: none, those of the data's lattice, and others.

  python -m experiments.fourier_features --workdir=runs/fourier_features --config=configs/digits.py

The levels of a value are 2/V apart. A wave of V/2 cycles per unit, or of a multiple of that, has the same
phase at each level, and so shows where z lies between two levels. A wave of another frequency resolves z as
finely, but not its distance from the next level.

A network that has the features as a field predicts ε. One that has not is given them beside z: under ε, and
under the config's own parameterisation where that knows the levels by itself.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from vdm.arrays import Image
from vdm.data import source
from vdm.diffusion.denoiser import Eps
from vdm.methods.wiener import LeaveOneOut
from vdm.nets.layers import fourier_features
from vdm.sweep import study, tables, workdirs
from vdm.sweep.curves import plot_curves

COUNT = 2  # frequencies of a network that is given them, as in the paper: V/2 and half of it


@dataclasses.dataclass(frozen=True)
class EpsOfWaves(Eps):
    """ε̂ by a network that is given Fourier features of z_t too."""

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        return super().eps_hat(with_waves(net, z_t, vocab_size), z_t, gamma, params, vocab_size)


@dataclasses.dataclass(frozen=True)
class LeaveOneOutOfWaves(LeaveOneOut):
    """The Gaussian's prediction, changed by a network that is given Fourier features of z_t too."""

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        return super().eps_hat(with_waves(net, z_t, vocab_size), z_t, gamma, params, vocab_size)


def with_waves(net: Callable[[Image], Image], z_t: Image, vocab_size: int) -> Callable[[Image], Image]:
    """`net`, given the Fourier features of z_t beside its own input."""
    waves = fourier_features(z_t, [vocab_size / 2.0 / 2.0**n for n in range(COUNT)])[..., z_t.shape[-1] :]
    return lambda given: net(jnp.concatenate([given, waves], axis=-1))


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    if "fourier" not in config.model.net:
        given = {"none_eps": "eps", "lattice_eps": f"{__spec__.name}:EpsOfWaves"}
        if config.model.parameterisation.name == "leave_one_out":
            given |= {"none": "leave_one_out", "lattice": f"{__spec__.name}:LeaveOneOutOfWaves"}
        return {name: {"model.parameterisation": of} for name, of in given.items()}
    off = {"model.parameterisation": "eps", "model.net.fourier": 0}
    on = off | {"model.net.fourier": COUNT}
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
