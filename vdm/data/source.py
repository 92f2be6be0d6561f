"""Data sources: components that load a data set; `load` uses the one that config.data selects.

A custom source is a subclass, named "module:Class" in config.data.name; see examples/stripes.py.
"""

import dataclasses
import inspect
import os.path
import pathlib

from ml_collections import ConfigDict
import numpy as np

from vdm.component import REGISTRIES, Component, accept, blamed, build
from vdm.data import augment, image_files
from vdm.data.damaged import without_damaged
from vdm.data.dataset import Data, Examples, Spec, Split, held_out
from vdm.errors import UserError, did_you_mean, require


@dataclasses.dataclass(frozen=True)
class Source(Component):
    """Loads a data set.

    Attributes:
      name: the value of config.data.name.
      augment: changes to the training images: any of flip, rotate, channels, separated by commas.
      on_device_gib: size in GiB up to which a training split is kept on the devices.
      hold_out: share of the training images that replaces the test split; 0: keep the test split.
      validation: share of the training images to select the best checkpoint on; 0: select on the test split.
      skip_damaged: omit images that cannot be read; all images are read once to find them.

    The fields with a default are fields of config.data for every source.
    """

    name: str
    augment: str = ""
    on_device_gib: float = 1.0
    hold_out: float = 0.0
    validation: float = 0.0
    skip_damaged: bool = False

    def check(self) -> None:
        for kind in augment.kinds(self.augment):
            accepted = f"any of {', '.join(augment.KINDS)}, separated by commas; {kind!r} is none of them"
            accept("augment", kind in augment.KINDS, accepted)
        accept("on_device_gib", self.on_device_gib >= 0, "0 (never) or more")
        for name in ("hold_out", "validation"):
            accept(name, 0 <= getattr(self, name) < 1, "at least 0 (use the test split) and below 1")

    def load(self) -> Data:
        """The data set. `read` of its splits raises Damaged (vdm/data/damaged.py) if an example cannot be
        read.

        Raises:
          UserError: the data are missing, or cannot be read.
        """
        raise NotImplementedError


class UnknownName(Exception):
    """A source has no data set of this name. `known` are the names of its data sets."""

    def __init__(self, name: str, known: list[str]):
        super().__init__(name)
        self.known = known


def check_levels(vocab_size: int) -> None:
    """Raises Refused if a source does not accept the value of its field `vocab_size`."""
    accept("vocab_size", 2 <= vocab_size <= 256, "2 to 256, the levels of a uint8")


def existing_path(data_dir: str, name: str, what: str) -> pathlib.Path:
    """The path config.data.data_dir; `what` describes what the source `name` requires there."""
    path = pathlib.Path(os.path.expanduser(data_dir))
    require(
        data_dir and os.path.exists(path),  # pathlib's exists raises if a name is too long
        f"config.data.data_dir is {f'{data_dir!r}, which does not exist' if data_dir else 'not set'}; for "
        f"config.data.name = {name!r} it must be {what}.",
    )
    return path


def load(section: ConfigDict) -> Data:
    """The data set that config.data describes; `section` has its name and all fields of its source.

    Raises:
      UserError: the data set is unknown, not prepared, not readable, or does not fit the config.
    """
    source = build("source", section, "config.data", name=section.name)
    try:
        with blamed(source, f"load() of data set {section.name!r}"):
            data = source.load()
    except UnknownName as unknown:
        builtin = REGISTRIES["source"].builtin
        base = section.name.split("/")[0].split(":")[0]
        raise UserError(
            f"config.data.name is {section.name!r}; accepted: {', '.join(map(repr, builtin))}, the "
            "name of a TFDS data set, or the import path of a custom source, 'module:Class'."
            + did_you_mean(base, [*builtin, *unknown.known])
        ) from unknown
    require(
        isinstance(data, Data),
        f"load() of data set {section.name!r} returns a {type(data).__name__}; accepted: a Data of "
        "vdm/data/dataset.py.",
    )
    train, test = _cached(data.train, "train", source), _cached(data.test, "test", source)
    if source.skip_damaged:
        train, test = without_damaged(train, "training"), without_damaged(test, "test")
    _check(Data(train, test, data.spec), source)
    train, test = (_watched(split, data.spec, source.name) for split in (train, test))
    if source.hold_out:
        train, test = _part("hold_out", source.hold_out, train)
    validation = None
    if source.validation:
        train, validation = _part("validation", source.validation, train)
    return Data(train, test, data.spec, validation)


def _part(field: str, share: float, train: Split) -> tuple[Split, Split]:
    """Divides the training images into those that remain and a held-out share."""
    count = round(share * train.size)
    require(
        0 < count < train.size,
        f"config.data.{field} is {share}, which is {count} of {train.size} training images; "
        "accepted: a share that is neither empty nor all of them.",
    )
    return held_out(train, count)


def _check(data: Data, source: Source) -> None:
    """Raises UserError if the images do not fit the spec."""
    name, spec = source.name, data.spec
    require(data.train.size > 0 and data.test.size > 0, f"data set {name!r} has an empty split.")
    levels = spec.vocab_size
    field = "vocab_size" in source.config_fields()
    says = ("config.data.vocab_size" if field else f"the vocab_size of data set {name!r}") + f" is {levels}"
    require(2 <= levels <= 256, f"{says}; accepted: 2 to 256, the levels of a uint8.")

    # Checking some images finds most misfits before hours of training; 256 levels always fit.
    count = 256 if levels < 256 else 1
    for split in (data.train, data.test):
        some = split.read(np.unique(np.linspace(0, split.size - 1, count).astype(int)))["image"]
        require(
            some.dtype == np.uint8 and some.shape[1:] == tuple(spec.shape),
            f"data set {name!r} has images of {some.dtype} {list(some.shape[1:])}; accepted: uint8 "
            f"{list(spec.shape)}, as its spec says.",
        )
        top = int(some.max())
        has = f"{name!r} has" if field else "it has"
        require(top < levels, f"{says}, but {has} values up to {top}; accepted: {top + 1} or more.")


def _watched(split: Split, spec: Spec, name: str) -> Split:
    """The split, with a check of each image as it is read: a value above the levels would have a probability
    above 1, and a label above the classes has no embedding."""

    def read(indices: np.ndarray) -> Examples:
        found = split.read(indices)
        for what, values, count, field in (
            ("a value", found["image"], spec.vocab_size, "vocab_size"),
            ("the label", found["label"], spec.classes or 1, "classes"),
        ):
            each = values.reshape(len(values), -1)
            # A uint8 always lies within 256 levels.
            if what == "a value" and count == 256 or not each.size:
                continue
            if each.max() >= count or each.min() < 0:
                wrong = ((each >= count) | (each < 0)).any(axis=1)
                worst = int(wrong.argmax())
                bad = each[worst].max() if each[worst].max() >= count else each[worst].min()
                raise UserError(
                    f"image {indices[worst]} of data set {name!r} has {what} {bad}, and its "
                    f"{field} is {count if what == 'a value' else spec.classes}; accepted: 0 to {count - 1}."
                )
        return found

    return dataclasses.replace(split, read=read)


def _cached(split: Split, part: str, source: Source) -> Split:
    """The split with everything that determines its images, for the cache: its files, the code that reads
    them, and the fields that only its source has."""
    if not split.files:
        return split
    code = [inspect.getfile(cls) for cls in type(source).__mro__ if issubclass(cls, Source)]
    code.append(image_files.__file__)
    own = sorted(source.config_fields().keys() - Source.config_fields().keys())
    name = repr((part, source.name, [(field, getattr(source, field)) for field in own]))
    return dataclasses.replace(split, files=(*split.files, *code), cache_name=name)
