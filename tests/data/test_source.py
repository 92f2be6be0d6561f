"""Every source except TFDS: its data, and what it refuses."""

import dataclasses

from ml_collections import ConfigDict
import numpy as np
import pytest

from data_helpers import section, write_images
from vdm.data.dataset import Data, Spec, in_memory
from vdm.data.source import Source, load
from vdm.errors import UserError


def test_digits_are_all_there_and_apart():
    data = load(section("digits"))
    assert (data.train.size, data.test.size) == (1437, 360)
    assert data.spec == Spec((8, 8, 1), 17, 10)
    from sklearn.datasets import load_digits

    def rows(image, label):
        return sorted((image.tobytes(), int(number)) for image, number in zip(image, label))

    found = [rows(**split.read(np.arange(split.size))) for split in (data.train, data.test)]
    digits = load_digits()
    assert sorted(found[0] + found[1]) == rows(digits.images.astype(np.uint8), digits.target)


def test_training_images_are_held_out_to_choose_settings_by():
    """A tenth of the training images, the same each time, replaces the test images."""
    read = lambda split: split.read(np.arange(split.size))
    whole, apart, again = (load(section("digits", hold_out=share)) for share in (0.0, 0.1, 0.1))
    assert (apart.train.size, apart.test.size) == (1293, 144)
    assert apart.train.nbytes == 1293 * 64 and apart.test.nbytes == 144 * 64
    np.testing.assert_array_equal(read(apart.test)["image"], read(again.test)["image"])
    train, test, want = read(apart.train), read(apart.test), read(whole.train)
    found = {name: np.concatenate([train[name], test[name]]) for name in want}
    order = lambda values: np.lexsort((values["label"], *values["image"].reshape(1437, -1).T))
    for name in want:
        np.testing.assert_array_equal(found[name][order(found)], want[name][order(want)])


def test_validation_images_are_neither_trained_on_nor_tested_by():
    """A fifth of the training images, beside the test split or the images held out in its place."""
    read = lambda split: {image.tobytes() for image in split.read(np.arange(split.size))["image"]}
    for held in (0.0, 0.1):
        data = load(section("digits", hold_out=held, validation=0.2))
        before = load(section("digits", hold_out=held))
        assert before.validation is None and data.validation.size == round(0.2 * before.train.size)
        assert read(data.test) == read(before.test)
        assert read(data.train) | read(data.validation) == read(before.train)
        assert not read(data.validation) & (read(data.train) | read(data.test))


@pytest.mark.parametrize("levels", [256, 16])
def test_swirl(levels):
    data = load(section("swirl", vocab_size=levels))
    assert data.spec == Spec((1, 1, 2), levels, 0)
    points = data.train.read(np.arange(1000))["image"] * (256 // levels)
    assert points.std() > 30 and 0 < points.min() and points.max() < 255


# ---- folder ----------------------------------------------------------------------------


def folder(path, **fields):
    return load(section("folder", data_dir=str(path), **fields))


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_folder_with_splits_reads_every_pixel(tmp_path, mode, channels):
    train = write_images(tmp_path / "train" / "cat", 3, mode=mode)
    write_images(tmp_path / "train" / "dog", 2, mode=mode)
    test = write_images(tmp_path / "test" / "dog", 2, mode=mode, seed=1)
    data = folder(tmp_path)
    assert data.spec == Spec((4, 6, channels), 256, 2)
    assert data.train.nbytes == 5 * 4 * 6 * channels
    read = data.train.read(np.arange(5))
    np.testing.assert_array_equal(read["image"][:3], train)
    np.testing.assert_array_equal(read["label"], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(data.test.read(np.arange(2))["image"], test)
    np.testing.assert_array_equal(data.test.read(np.arange(2))["label"], [1, 1])


def test_folder_without_splits_holds_a_tenth_out(tmp_path):
    images = write_images(tmp_path / "flat", 30)
    data = folder(tmp_path / "flat")
    assert (data.train.size, data.test.size, data.spec.classes) == (27, 3, 0)
    read = [split.read(np.arange(split.size))["image"] for split in (data.train, data.test)]
    rows = np.concatenate(read).reshape(30, -1)
    np.testing.assert_array_equal(
        rows[np.lexsort(rows.T)], images.reshape(30, -1)[np.lexsort(images.reshape(30, -1).T)]
    )


def test_folder_of_different_sizes_is_refused_or_resized(tmp_path):
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "train" / "large", 1, size=(9, 9))
    write_images(tmp_path / "test", 1)
    with pytest.raises(UserError, match="000.png.*9 × 9.*6 × 4.*image_size"):
        folder(tmp_path).train.read(np.arange(4))
    data = folder(tmp_path, image_size=5)
    assert data.spec.shape == (5, 5, 3)
    assert data.train.read(np.arange(4))["image"].shape == (4, 5, 5, 3)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="too few images.*'?.png"):
        folder(tmp_path)
    with pytest.raises(UserError, match="'/nowhere', which does not exist.*a folder of images"):
        folder("/nowhere")


# ---- npz -------------------------------------------------------------------------------


def npz(path, **fields):
    return load(section("npz", data_dir=str(path), **fields))


def test_npz_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(40) % 3)
    data = npz(tmp_path / "a.npz")
    assert data.spec == Spec((4, 5, 1), 256, 3)
    assert (data.train.size, data.test.size) == (36, 4)
    np.savez(tmp_path / "b.npz", image=images, test_image=images[:7])
    data = npz(tmp_path / "b.npz")
    assert (data.train.size, data.test.size, data.spec.classes) == (40, 7, 0)


def test_published_imagenet_batches(tmp_path):
    """data [n, 3072], channels first; labels from 1; train_data_batch_*.npz and val_data.npz."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    flat = images.transpose(0, 3, 1, 2).reshape(7, -1)
    for name, part in (
        ("train_data_batch_1", slice(0, 3)),
        ("train_data_batch_2", slice(3, 5)),
        ("val_data", slice(5, 7)),
    ):
        labels = np.arange(1, 8)[part]
        np.savez(tmp_path / f"{name}.npz", data=flat[part], labels=labels, mean=flat.mean(0))
    data = npz(tmp_path)
    assert data.spec == Spec((32, 32, 3), 256, 7)
    read = data.train.read(np.arange(5))
    np.testing.assert_array_equal(read["image"], images[:5])
    np.testing.assert_array_equal(read["label"], np.arange(5))
    np.testing.assert_array_equal(data.test.read(np.arange(2))["image"], images[5:])


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(UserError, match="a.npz' cannot be read as an .npz file"):
        npz(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UserError, match="b.npy' is a single array; accepted: an .npz file"):
        npz(tmp_path / "b.npy")
    np.savez(tmp_path / "c.npz", photos=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UserError, match="c.npz' has the arrays photos; accepted: 'image'"):
        npz(tmp_path / "c.npz")


# ---- what is refused -------------------------------------------------------------------


@pytest.fixture
def seventeen(tmp_path):
    """An .npz file with values up to 16."""
    np.savez(tmp_path / "a.npz", image=np.tile(np.arange(17, dtype=np.uint8), (20, 4, 1)))
    return str(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"vocab_size": 16}, r"config.data.vocab_size is 16, but 'npz' has values up to 16; .* 17 or more"),
        ({"vocab_size": 300}, "config.data.vocab_size is 300; accepted: 2 to 256"),
        ({"augment": "flip,mirror"}, "'flip,mirror'; accepted: any of flip, rotate, channels.*'mirror'"),
        ({"on_device_gib": -1.0}, "config.data.on_device_gib is -1.0; accepted: 0"),
        ({"hold_out": 1.0}, "config.data.hold_out is 1.0; accepted: at least 0"),
        ({"hold_out": 0.01}, "config.data.hold_out is 0.01, which is 0 of 18 training images; accepted:"),
    ],
)
def test_bad_fields_are_refused(fields, text, seventeen):
    assert load(section("npz", data_dir=seventeen, vocab_size=17)).spec.vocab_size == 17
    with pytest.raises(UserError, match=text):
        load(section("npz", data_dir=seventeen, **fields))


# ---- custom sources --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Own(Source):
    """A source whose spec may be wrong."""

    top: int = 3
    side: int = 4
    levels: int = 4
    size: int = 5
    dtype: str = "uint8"

    def load(self):
        part = in_memory(np.full((self.size, 4, self.side, 1), self.top, self.dtype))
        return Data(part, part, Spec((4, 4, 1), self.levels, 0))


NAME = f"{__name__}:Own"


@pytest.mark.parametrize(
    "fields, text",
    [
        (
            {"top": 4},
            f"the vocab_size of data set '{NAME}' is 4, but it has values up to 4; accepted: 5 or more",
        ),
        ({"levels": 300}, "the vocab_size of data set .* is 300; accepted: 2 to 256"),
        ({"side": 3}, r"images of uint8 \[4, 3, 1\]; accepted: uint8 \[4, 4, 1\]"),
        ({"dtype": "float32"}, r"images of float32 \[4, 4, 1\]; accepted: uint8"),
        ({"size": 0}, "empty split"),
        ({"augment": "turn"}, "config.data.augment is 'turn'"),
    ],
)
def test_a_source_whose_spec_is_wrong_is_refused(fields, text):
    assert load(section(NAME)).spec == Spec((4, 4, 1), 4, 0)
    with pytest.raises(UserError, match=text):
        load(section(NAME, **fields))


@dataclasses.dataclass(frozen=True)
class Late(Source):
    """One image of many is wrong, and not among those that are checked on loading."""

    value: int = 0
    label: int = 0

    def load(self):
        images, labels = np.zeros((3_000, 2, 2, 1), np.uint8), np.zeros(3_000, np.int32)
        images[2_901], labels[2_901] = self.value, self.label
        part = in_memory(images, labels)
        return Data(part, part, Spec((2, 2, 1), 4, 3))


@pytest.mark.parametrize(
    "fields, text",
    [
        ({"value": 4}, r"image 2901 .* has a value 4, and its vocab_size is 4; accepted: 0 to 3"),
        ({"label": 3}, r"image 2901 .* has the label 3, and its classes is 3; accepted: 0 to 2"),
        ({"label": -1}, r"image 2901 .* has the label -1, and its classes is 3; accepted: 0 to 2"),
    ],
)
def test_an_image_beyond_the_levels_is_refused_where_it_is_read(fields, text):
    """Its probability would be above 1, and the likelihood of the whole set too high."""
    data = load(section(f"{__name__}:Late", **fields))
    assert len(data.test.read(np.arange(2_900))["image"]) == 2_900
    with pytest.raises(UserError, match=text):
        data.test.read(np.arange(2_850, 2_950))


@pytest.mark.parametrize("labels", [np.zeros(2, int), np.zeros((3, 1), int), np.zeros(3)])
def test_labels_that_are_not_one_integer_for_each_image_are_refused(labels):
    with pytest.raises(UserError, match=r"the labels of 3 images are .*; accepted: integers \[3\]"):
        in_memory(np.zeros((3, 2, 2, 1), np.uint8), labels)


def test_the_example_of_a_source():
    data = load(section("examples.stripes:Stripes", noise=0.0))
    assert data.spec == Spec((8, 8, 1), 16, 2) and data.train.size == 1800
    read = data.train.read(np.arange(100))
    stand = read["label"] == 1
    assert 30 < stand.sum() < 70
    assert np.all(np.ptp(read["image"][stand], axis=1) == 0)
    assert np.all(np.ptp(read["image"][~stand], axis=2) == 0)


def test_an_own_source_that_is_not_there():
    with pytest.raises(UserError, match="no module 'my_data'"):
        load(ConfigDict({"name": "my_data:Mine"}))
    with pytest.raises(UserError, match="Did you mean 'Stripes'"):
        load(ConfigDict({"name": "examples.stripes:Stripe"}))
