"""Compares Fourier features of z: none, those at the spacing of the levels, and others.

  python -m experiments.fourier_features --workdir=runs/fourier_features --config=configs/digits.py

The levels of a value are 2/V apart. A wave of V/2 cycles per unit, or of a multiple of that, has the same
phase at each level, and so locates z between two levels. A wave of another frequency resolves z as finely,
but does not determine its distance from the next level.

A network with the field `fourier` predicts ε. For a network without it, the features are appended to the
input: with the parameterisation ε, also at other frequencies, and, if the config has it, with leave_one_out.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from vdm.arrays import Image
from vdm.data import source
from vdm.diffusion.denoiser import Eps
from vdm.methods.wiener import LeaveOneOut
from vdm.nets.layers import fourier_features
from vdm.sweep import study

COUNT = 2  # number of frequencies, as in the paper: V/2 and V/4
OFF_LATTICE = 0.84  # of the lattice's frequency: another one, of about the same resolution


@dataclasses.dataclass(frozen=True)
class EpsOfWaves(Eps):
    """ε̂ from a network whose input includes Fourier features of z_t.

    Attributes:
      highest: the highest frequency, relative to that of the lattice, V/2.
    """

    highest: float = 1.0

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        waves = with_waves(net, z_t, self.highest * vocab_size)
        return super().eps_hat(waves, z_t, gamma, params, vocab_size)


@dataclasses.dataclass(frozen=True)
class LeaveOneOutOfWaves(LeaveOneOut):
    """The Gaussian's prediction, corrected by a network whose input includes Fourier features of z_t."""

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        return super().eps_hat(with_waves(net, z_t, vocab_size), z_t, gamma, params, vocab_size)


def with_waves(net: Callable[[Image], Image], z_t: Image, levels: float) -> Callable[[Image], Image]:
    """`net`, with the Fourier features of z_t for a lattice of so many levels appended to its input."""
    waves = fourier_features(z_t, [levels / 2.0 / 2.0**n for n in range(COUNT)])[..., z_t.shape[-1] :]
    return lambda given: net(jnp.concatenate([given, waves], axis=-1))


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    if "fourier" not in config.model.net:
        of_waves = f"{__spec__.name}:EpsOfWaves"
        given = {"none_eps": "eps", "lattice_eps": of_waves, "off_the_lattice_eps": of_waves}
        if config.model.parameterisation.name == "leave_one_out":
            given |= {"none": "leave_one_out", "lattice": f"{__spec__.name}:LeaveOneOutOfWaves"}
        found: dict[str, dict[str, Any]] = {
            name: {"model.parameterisation": of} for name, of in given.items()
        }
        found["off_the_lattice_eps"]["model.parameterisation.highest"] = OFF_LATTICE
        return found
    off = {"model.parameterisation": "eps", "model.net.fourier": 0}
    on = off | {"model.net.fourier": COUNT}
    lattice = source.load(config.data).spec.vocab_size / 2.0
    return {
        "none": off,
        "lattice": on,
        "lattice_of_4": on | {"model.net.fourier": 4},
        "off_the_lattice": on | {"model.net.highest": OFF_LATTICE * lattice},
        "above_the_lattice": on | {"model.net.highest": 2.68 * lattice},
    }


if __name__ == "__main__":
    # A network that predicts ε must learn the levels, so γ(0) is low enough for z to show them (VDM sec.
    # 5.1).
    fields = study.SHORT | {"model.schedule.gamma_min": -13.3}
    study.main(__doc__, grid, study.table_and_curves, config="configs/digits.py", seeds=2, fields=fields)
