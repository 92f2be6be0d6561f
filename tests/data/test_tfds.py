"""TFDS sets prepared as array_record, written here record by record, without TensorFlow."""

import io
import json
import sys

import numpy as np
from PIL import Image
import pytest

from data_helpers import section
from vdm.data import source
from vdm.data.dataset import Spec
from vdm.errors import UserError


def load(name, root):
    return source.load(section(name, data_dir=str(root)))


def prepare(root, file_format="array_record", damaged=(), side="28"):
    """Writes a "mnist" of 12 training and 5 test images, random, in the files of the official builder; images
    whose number is in `damaged` are truncated. `side` is that of images in the features; -1: not stated."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    random, images, splits = np.random.default_rng(0), {}, []
    for split, count in (("train", 12), ("test", 5)):
        images[split] = random.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        path = folder / f"mnist-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number, image in enumerate(images[split]):
            png = io.BytesIO()
            Image.fromarray(image[..., 0]).save(png, "PNG")
            example = tf_example_pb2.Example()
            data = png.getvalue()[: 200 if number in damaged else None]
            example.features.feature["image"].bytes_list.value.append(data)
            example.features.feature["label"].int64_list.value.append(number % 10)
            writer.write(example.SerializeToString())
        writer.close()
        splits.append(
            {
                "name": split,
                "shardLengths": [str(count)],
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    info = {"fileFormat": file_format, "name": "mnist", "version": "3.0.1", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    module = "tensorflow_datasets.core.features."
    shape = {"dtype": "uint8", "shape": {"dimensions": [side, side, "1"]}}
    features = {
        "image": {"image": shape, "pythonClassName": module + "image_feature.Image"},
        "label": {
            "classLabel": {"numClasses": "10"},
            "pythonClassName": module + "class_label_feature.ClassLabel",
        },
    }
    text = {
        "pythonClassName": module + "features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(text))
    return images


def test_a_shape_that_the_features_do_not_state_is_that_of_the_first_whole_image(tmp_path):
    prepare(tmp_path, side="-1", damaged=(0,))
    data = source.load(section("mnist", data_dir=str(tmp_path), skip_damaged=True))
    assert data.spec.shape == (28, 28, 1)
    # What decides whether the images fit into memory.
    assert (data.train.nbytes, data.test.nbytes) == (11 * 28 * 28, 4 * 28 * 28)


def test_reads_prepared_files_without_tensorflow(tmp_path):
    images = prepare(tmp_path)
    data = load("mnist", tmp_path)
    assert data.spec == Spec((28, 28, 1), 256, 10)
    for name, split in (("train", data.train), ("test", data.test)):
        read = split.read(np.arange(split.size))
        np.testing.assert_array_equal(read["image"], images[name])
        np.testing.assert_array_equal(read["label"], np.arange(split.size) % 10)
    assert "tensorflow" not in sys.modules


def test_a_damaged_record_is_named_and_can_be_left_out(tmp_path, capsys):
    images = prepare(tmp_path, damaged=(3,))
    with pytest.raises(UserError, match="record 3 of '.*mnist-train.*' cannot be read as an image"):
        load("mnist", tmp_path).train.read(np.arange(12))
    data = source.load(section("mnist", data_dir=str(tmp_path), skip_damaged=True))
    assert (data.train.size, data.test.size) == (11, 4)
    assert "1 of 12 training images are damaged and left out" in capsys.readouterr().out
    np.testing.assert_array_equal(
        data.train.read(np.arange(11))["image"], np.delete(images["train"], 3, axis=0)
    )


def test_unprepared_set_names_the_command(tmp_path):
    with pytest.raises(UserError, match=f"tfds build cifar10 --data_dir={tmp_path} --file_format"):
        load("cifar10", tmp_path)


def test_wrong_file_format_names_the_command(tmp_path):
    prepare(tmp_path, "tfrecord")
    with pytest.raises(UserError, match="prepared as tfrecord.*--file_format=array_record"):
        load("mnist", tmp_path)


def test_unknown_set_suggests_a_name(tmp_path):
    accepted = "'cifer10'; accepted: 'digits'.*'module:Class'.*Did you mean 'cifar10'"
    with pytest.raises(UserError, match=accepted):
        load("cifer10", tmp_path)
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        load("digit", tmp_path)
