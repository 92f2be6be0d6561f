"""The base of all data sources: a component that loads a data set.

One's own source is a subclass, named "module:Class" in config.data.name; see examples/stripes.py.
"""

import dataclasses
import os.path
import pathlib

from vdm.component import Component, accept
from vdm.data import augment
from vdm.data.dataset import Data
from vdm.errors import require


@dataclasses.dataclass(frozen=True)
class Source(Component):
    """Where pictures come from.

    Attributes:
      name: what config.data.name says.

    The fields with a default are fields of config.data, in each source.
    """

    name: str
    augment: str = ""  # changes to the training images: any of flip, rotate, channels, joined by commas
    on_device_gib: float = 1.0  # a training split up to this size is kept on the devices
    hold_out: float = 0.0  # share of the training images to test by, in place of the test split; 0: none
    validation: float = (
        0.0  # share of the training images to choose the best checkpoint by; 0: by the test split
    )
    skip_damaged: bool = False  # leave out what cannot be read, for which all images are looked at once

    def check(self) -> None:
        for kind in augment.kinds(self.augment):
            accepted = f"any of {', '.join(augment.KINDS)}, joined by commas; {kind!r} is none of them"
            accept("augment", kind in augment.KINDS, accepted)
        accept("on_device_gib", self.on_device_gib >= 0, "0 (never) or more")
        for name in ("hold_out", "validation"):
            accept(name, 0 <= getattr(self, name) < 1, "0 (use the test split) up to, but not, 1")

    def load(self) -> Data:
        """The data set. `read` of its splits raises Damaged (vdm/data/damage.py) where an example cannot be
        read.

        Raises:
          UserError: it is not there, or not readable.
        """
        raise NotImplementedError


def check_levels(vocab_size: int) -> None:
    """Raises Refused where a source with the field `vocab_size` does not accept its value."""
    accept("vocab_size", 2 <= vocab_size <= 256, "2 to 256, the levels of a uint8")


def existing_path(data_dir: str, name: str, what: str) -> pathlib.Path:
    """The path that config.data.data_dir says; `what` says what it must be for the source `name`."""
    path = pathlib.Path(os.path.expanduser(data_dir))
    require(
        data_dir and os.path.exists(path),  # pathlib's own raises where a name is too long
        f"config.data.data_dir is {f'{data_dir!r}, which does not exist' if data_dir else 'not set'}; for "
        f"config.data.name = {name!r} it must be {what}.",
    )
    return path
