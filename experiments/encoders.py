"""Compares encoders at equal training steps: a VDM's, one that fades the image, and a learned one (DiffEnc).

  python -m experiments.encoders --workdir=runs/encoders --config=configs/digits.py

The network predicts v, as in DiffEnc; the learned encoder is a network of half the depth. `plain_deeper` is a
VDM with about as many parameters as the two networks together.
"""

from typing import Any

from ml_collections import ConfigDict

from vdm.sweep import study


def grid(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The fields of each variant."""
    line: dict[str, Any] = {
        "model.schedule.name": "fixed_linear",
        "model.parameterisation": "v",
        "objective.name": "elbo",
    }
    if "fourier" in config.model.net:
        line["model.net.fourier"] = 2  # chosen among 0 and 2, on held-out training images of the digits
    depth = config.model.net.depth
    net = {f"model.encoder.net.{name}": value for name, value in config.model.net.items()}
    learned = {
        "model.name": "diffenc",
        "model.encoder.name": "learned",
        **net,
        "model.encoder.net.depth": depth // 2,
    }
    learned["model.sampler"] = "ancestral"  # the only sampler for a learned encoder
    return {
        "plain": line,
        "plain_deeper": line | {"model.net.depth": depth + depth // 2},
        "scaled": line | {"model.name": "diffenc", "model.encoder.name": "scaled"},
        "learned": line | learned | {"model.encoder.net.dropout": 0.0},
    }


if __name__ == "__main__":
    study.main(__doc__, grid, study.table_and_curves, config="configs/digits.py", seeds=3, fields=study.SHORT)
