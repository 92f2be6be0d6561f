"""Every source, the order of training, augmentation, and evaluation's batches."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from configs import default
from vdm.data import augment, dataset as data
from vdm.runtime import cache
from vdm.errors import UserError


def config(**changes):
    made = default.get_config()
    made.update_from_flattened_dict(changes)
    return made


def test_digits_are_all_there_and_apart():
    made = data.load(config())
    assert (made.train.size, made.test.size) == (1437, 360)
    assert made.spec == data.Spec((8, 8, 1), 17, 10)
    everything = np.concatenate(
        [split.read(np.arange(split.size))["image"] for split in (made.train, made.test)]
    )
    from sklearn.datasets import load_digits

    want = np.sort(load_digits().images.reshape(1797, -1).astype(np.uint8), axis=0)
    np.testing.assert_array_equal(np.sort(everything.reshape(1797, -1), axis=0), want)


def test_swirl():
    made = data.load(config(**{"data.name": "swirl", "data.vocab_size": 256}))
    assert made.spec == data.Spec((1, 1, 2), 256, 0)
    points = made.train.read(np.arange(1000))["image"]
    assert points.std() > 30 and 0 < points.min() and points.max() < 255


def write_images(root, count, size=(6, 4), mode="RGB", seed=0):
    root.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    images = draw.integers(0, 256, (count, *shape)).astype(np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / f"{i:03d}.png")
    return images.reshape(count, *size[::-1], -1)


def folder(path, **changes):
    changes = {"data.name": "folder", "data.data_dir": str(path), "data.vocab_size": 256} | changes
    return data.load(config(**changes))


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_folder_with_splits_reads_every_pixel(tmp_path, mode, channels):
    train = write_images(tmp_path / "train" / "cat", 3, mode=mode)
    write_images(tmp_path / "train" / "dog", 2, mode=mode)
    test = write_images(tmp_path / "test" / "dog", 2, mode=mode, seed=1)
    made = folder(tmp_path)
    assert made.spec == data.Spec((4, 6, channels), 256, 2)
    read = made.train.read(np.arange(5))
    np.testing.assert_array_equal(read["image"][:3], train)
    np.testing.assert_array_equal(read["label"], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(made.test.read(np.arange(2))["image"], test)
    np.testing.assert_array_equal(made.test.read(np.arange(2))["label"], [1, 1])


def test_folder_without_splits_holds_a_tenth_out(tmp_path):
    images = write_images(tmp_path / "flat", 30)
    made = folder(tmp_path / "flat")
    assert (made.train.size, made.test.size, made.spec.classes) == (27, 3, 0)
    read = [split.read(np.arange(split.size))["image"] for split in (made.train, made.test)]
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
    made = folder(tmp_path, **{"data.image_size": 5})
    assert made.train.read(np.arange(4))["image"].shape == (4, 5, 5, 3)


def test_images_that_are_kept_are_those_of_the_files(tmp_path, monkeypatch):
    """Each split and size, the first time and again; and after a label's folder has another name."""
    monkeypatch.setattr(cache, "_folder", tmp_path / "cache")
    root = tmp_path / "images"
    for number, label in enumerate("bc"):
        write_images(root / "train" / label, 3, seed=number)
    write_images(root / "test" / "b", 6, seed=9)

    def check(size):
        changes = {"data.name": "folder", "data.data_dir": str(root), "data.image_size": size}
        made = data.load(config(**changes | {"data.vocab_size": 256}))
        for name in ("train", "test"):
            split = getattr(made, name)
            found, want = data.everything(split, config(**changes), name), split.read(np.arange(split.size))
            assert found.keys() == want.keys()
            for key, value in want.items():
                np.testing.assert_array_equal(found[key], value)
        return data.everything(made.train, config(**changes), "train")["label"].tolist()

    for size in (0, 5, 0, 5):
        assert check(size) == [0, 0, 0, 1, 1, 1]
    (root / "train" / "c").rename(root / "train" / "a")
    assert check(0) == [0, 0, 0, 1, 1, 1]
    (root / "test" / "b").rename(root / "test" / "0")
    assert check(0) == [1, 1, 1, 2, 2, 2]


def npz(path, **changes):
    changes = {"data.name": "npz", "data.data_dir": str(path), "data.vocab_size": 256} | changes
    return data.load(config(**changes))


def test_npz_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(40) % 3)
    made = npz(tmp_path / "a.npz")
    assert made.spec == data.Spec((4, 5, 1), 256, 3)
    assert (made.train.size, made.test.size) == (36, 4)
    np.savez(tmp_path / "b.npz", image=images, test_image=images[:7])
    made = npz(tmp_path / "b.npz")
    assert (made.train.size, made.test.size, made.spec.classes) == (40, 7, 0)


def test_published_imagenet_batches(tmp_path):
    """data [n, 3072], channels first; labels from 1; train_data_batch_*.npz and val_data.npz."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    flat = pictures.transpose(0, 3, 1, 2).reshape(7, -1)
    for name, part in (
        ("train_data_batch_1", slice(0, 3)),
        ("train_data_batch_2", slice(3, 5)),
        ("val_data", slice(5, 7)),
    ):
        labels = np.arange(1, 8)[part]
        np.savez(tmp_path / f"{name}.npz", data=flat[part], labels=labels, mean=flat.mean(0))
    made = npz(tmp_path)
    assert made.spec.shape == (32, 32, 3)
    read = made.train.read(np.arange(5))
    np.testing.assert_array_equal(read["image"], pictures[:5])
    np.testing.assert_array_equal(read["label"], np.arange(5))
    np.testing.assert_array_equal(made.test.read(np.arange(2))["image"], pictures[5:])


def test_order_is_a_permutation_each_epoch_and_a_function_of_position():
    whole = data.order(3, np.arange(25), 10)
    for epoch in range(2):
        assert sorted(whole[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert list(whole[:10]) != list(whole[10:20])
    np.testing.assert_array_equal(data.order(3, np.arange(7, 19), 10), whole[7:19])
    assert list(data.order(4, np.arange(10), 10)) != list(whole[:10])


def test_hosts_share_a_batch():
    parts = [data.host_positions(5, 12, 3, host) for host in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), 60 + np.arange(12))


def test_streamed_and_resident_batches_are_the_same_examples():
    made = data.load(config())
    chunks = [(7, 2), (9, 3)]
    stays = config(**{"train.batch_size": 16})
    streams = config(**{"train.batch_size": 16, "data.on_device_gib": 0.0})
    held = data.resident(made.train, stays)
    assert data.resident(made.train, streams) == {}
    resident = list(data.train_chunks(made.train, stays, 7, chunks))
    streamed = list(data.train_chunks(made.train, streams, 7, chunks))
    for index, batch, (_, count) in zip(resident, streamed, chunks):
        devices = jax.local_device_count()
        assert batch["image"].shape == (devices, count, 16 // devices, 8, 8, 1)
        for name in ("image", "label"):
            np.testing.assert_array_equal(held[name][index["index"]], batch[name])


def test_evaluation_sees_each_image_once():
    made = data.load(config())
    seen, short = [], 0
    for batch in data.eval_batches(made.test, 100):
        assert batch["image"].shape == (100, 8, 8, 1)
        seen += list(batch["index"][batch["real"]])
        short += int((~batch["real"]).sum())
        np.testing.assert_array_equal(batch["augmented"], 0.0)
    assert seen == list(range(360)) and short == 40
    assert sum(batch["real"].sum() for batch in data.eval_batches(made.test, 100, 150)) == 150


# ---- augmentation ----------------------------------------------------------------------


def test_augmentation_draws_every_change_and_flags_it():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    keys = jax.random.split(jax.random.key(0), 6000)
    images, flags = augment.augment(keys, jnp.tile(image, (6000, 1, 1, 1)), augment.KINDS)
    found, counts = np.unique(np.asarray(images).reshape(6000, -1), axis=0, return_counts=True)

    flips = [image, image[:, ::-1]]
    turned = [np.rot90(one, turns) for one in flips for turns in range(4)]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    every = {one[..., list(order)].tobytes() for one in turned for order in orders}
    assert {row.reshape(3, 3, 3).tobytes() for row in found} == every
    same = (np.asarray(images) == image).all((1, 2, 3))
    assert np.all(same[np.asarray(flags) == 0]), "what is not flagged is not changed"
    # Each of the three is left alone half the time.
    assert abs(np.mean(np.asarray(flags) == 0) - 1 / 8) < 4 * np.sqrt(1 / 8 * 7 / 8 / 6000)


def test_no_augmentation_changes_nothing():
    images = jnp.arange(32, dtype=jnp.uint8).reshape(2, 4, 4, 1)
    out, flags = augment.augment(jax.random.split(jax.random.key(0), 2), images, ())
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(flags, 0.0)
