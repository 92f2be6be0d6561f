"""A data set of TensorFlow Datasets that was prepared as array_record; it is read without TensorFlow."""

import dataclasses
import os
from typing import Any

import numpy as np

from vdm.data.damaged import Damaged, decoding
from vdm.data.dataset import Data, Spec, Split
from vdm.data.source import Source, UnknownName
from vdm.errors import UserError


@dataclasses.dataclass(frozen=True)
class TFDS(Source):
    """The data set of TensorFlow Datasets with the name config.data.name, such as mnist:3.0.1 or
    downsampled_imagenet/32x32, with 256 levels and prepared as array_record; its split test, or otherwise
    validation, is held out.

    Attributes:
      data_dir: the folder in which the data set was prepared; '' for ~/tensorflow_datasets.
    """

    data_dir: str = ""

    def load(self) -> Data:
        """The data set (Source.load).

        Raises:
          UserError: the data set is not prepared as array_record, or has no images.
          UnknownName: TFDS has no data set of this name.
        """
        root = self.data_dir or os.path.join("~", "tensorflow_datasets")
        builder = self._builder(root)
        info = builder.info
        test = next((key for key in ("test", "validation") if key in info.splits), None)
        if "train" not in info.splits or test is None or "image" not in info.features:
            raise UserError(
                f"config.data.name is {self.name!r}, which has the splits {sorted(info.splits)} and the "
                f"features {sorted(info.features)}; accepted: a data set with 'train', with 'test' or "
                "'validation', and with 'image'."
            )
        label = info.features["label"] if "label" in info.features else None
        shape: Any = tuple(info.features["image"].shape)

        def split(key: str) -> Split:
            with decoding(f"the TFDS data set {self.name!r} in {root!r} cannot be read"):
                source = builder.as_data_source(split=key)

            def read(indices):
                records = _records(source, info.splits[key], indices)
                labels = [record["label"] if label else 0 for record in records]
                return {
                    "image": np.stack([record["image"] for record in records]),
                    "label": np.array(labels, np.int32),
                }

            nbytes = len(source) * int(np.prod([side or 1 for side in shape]))
            return Split(len(source), read, nbytes, tuple(map(str, info.splits[key].filepaths)))

        if None in shape:  # the features do not state it: the first image that is whole determines it
            shape = _shape_of_first(split("train"))
        return Data(split("train"), split(test), Spec(shape, 256, label.num_classes if label else 0))

    def _builder(self, root: str) -> Any:
        import tensorflow_datasets as tfds  # imported late, as the import is slow

        with decoding(f"the TFDS data set {self.name!r} in {root!r} cannot be read"):
            try:
                builder = tfds.core.read_only_builder.builder_from_files(self.name, data_dir=root)
            except tfds.core.registered.DatasetNotFoundError as error:
                found = error
            else:
                found = None
        if found is not None:
            known = tfds.list_builders(with_community_datasets=False)
            if self.name.split("/")[0].split(":")[0] not in known:
                raise UnknownName(self.name, known) from found
            raise _unprepared(self.name, root, "is not prepared") from found
        file_format = builder.info.file_format
        if file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise _unprepared(self.name, root, f"is prepared as {file_format.value}, not as array_record,")
        return builder


def _shape_of_first(split: Split) -> tuple[int, ...]:
    for index in range(split.size):
        try:
            return split.read(np.array([index]))["image"].shape[1:]
        except Damaged:
            if index == split.size - 1:
                raise
    return ()  # of no image


def _records(source: Any, split: Any, indices: np.ndarray) -> list[dict[str, Any]]:
    """The records of a data source of TFDS.

    Raises:
      Damaged: a record cannot be read, or has another shape than the other records; the message states its
        index and file.
    """
    try:
        records = source.__getitems__([int(i) for i in indices])
        if len({record["image"].shape for record in records}) == 1:
            return records
    except Exception:  # Riegeli, Protobuf and Pillow raise many types; the records are read again below
        pass
    records = []
    for index in map(int, indices):
        with decoding(f"{_place(split, index)} cannot be read as an image"):
            records += source.__getitems__([index])
            shape, first = records[-1]["image"].shape, records[0]["image"].shape
            if shape != first:
                raise ValueError(f"it is {list(shape)}, but others are {list(first)}")
    return records


def _place(split: Any, index: int) -> str:
    """The record and the file that hold the example at an index of a split."""
    ends = np.cumsum(split.shard_lengths)
    shard = int(np.searchsorted(ends, index, "right"))
    return f"record {index - int(ends[shard - 1]) * (shard > 0)} of {str(split.filepaths[shard])!r}"


def _unprepared(name: str, root: str, state: str) -> UserError:
    return UserError(
        f"the TFDS data set {name!r} {state} in {root!r}. On a machine with TensorFlow, run "
        f"'tfds build {name} --data_dir={root} --file_format=array_record', or set "
        "config.data.data_dir to the folder in which it was prepared."
    )
