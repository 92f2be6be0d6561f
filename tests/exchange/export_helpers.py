"""A run that is exported in the tests, of a second or two."""

from conftest import TINY

FEW = {name.removeprefix("config."): value for name, value in TINY.items() if "config." in name}
FEW |= {"train.steps": 4, "train.eval_every": 0, "train.sample_every": 0, "train.checkpoint_every": 0}
