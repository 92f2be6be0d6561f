"""An exported run of a second or two, for tests."""

from conftest import TINY_FIELDS, make_config
from vdm import train
from vdm.exchange import exporting

FEW = TINY_FIELDS | {
    "train.steps": 4,
    "train.eval_every": 0,
    "train.sample_every": 0,
    "train.checkpoint_every": 0,
    "train.log_every": 2,
}


def exported(path, fields):
    """Trains on the digits and exports the run: (config, workdir, folder of the export)."""
    config = make_config(fields, "configs/digits.py")
    (path / "W").mkdir()
    train.run(config, path / "W")
    exporting.run(config, path / "W", str(path / "model"))
    return config, path / "W", path / "model"
