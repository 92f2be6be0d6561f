"""Trains variants of a config with several seeds each, and writes tables and figures.

  python -m vdm.sweep --config=configs/digits.py --workdir=runs/schedules --seeds=3 \\
      --vary=config.model.schedule.name=fixed_linear,cosine,mine:Power
  python -m vdm.sweep --workdir=runs/schedules --variant='slow: config.optimizer.learning_rate=3e-4'
  python -m vdm.sweep --workdir=runs/schedules --status
  python -m vdm.sweep --workdir=runs/schedules --figures

The variants are every combination of the values of --vary, and those of --variant='NAME: FIELD=VALUE …'.
Without --vary, the config itself is a variant too, "base". --config.FIELD=VALUE sets a field of all variants.
Differences are taken from --baseline, or from the first variant.

Each run is a `python -m vdm.main` in a separate workdir, WORKDIR/VARIANT-SEED. The same command resumes an
interrupted study; more variants or seeds extend it.
"""

import pathlib

from ml_collections import ConfigDict

from vdm.sweep import saved, study, variants


def grid(config: ConfigDict) -> dict[str, variants.Fields]:
    """The config itself, if no flag defines variants."""
    kept = saved.read(pathlib.Path(study.FLAGS.workdir).expanduser())
    with_base = "base" in kept.names if kept else not study.FLAGS.vary
    return {"base": {}} if with_base else {}


if __name__ == "__main__":
    study.main(__doc__, grid, study.table_and_curves, config="", seeds=study.SEEDS)
