"""The caches of compiled programs and of images."""

import os

import jax
import numpy as np
import pytest

from vdm.runtime import cache


@pytest.fixture
def told(monkeypatch):
    """The JAX settings that are updated, by name, without a cache folder in the environment."""
    seen = {}
    monkeypatch.setattr(cache, "_folder", None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", seen.__setitem__)
    return seen


def test_each_kind_of_cpu_has_a_folder_of_its_own(told, monkeypatch, tmp_path):
    folders = set()
    for cpu in ("one", "other", "one"):
        monkeypatch.setattr(cache, "_cpu", lambda cpu=cpu: cpu)
        cache.enable(str(tmp_path))
        folders.add(told["jax_compilation_cache_dir"])
    assert len(folders) == 2 and all(folder.startswith(str(tmp_path)) for folder in folders)


def test_none_is_kept_where_none_is_wanted(told, monkeypatch, tmp_path):
    cache.enable("")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    cache.enable(str(tmp_path))
    assert not told


@pytest.fixture
def source(told, tmp_path):
    """(a file, a function that "reads" it to arrays of its length, a list with one item per read)."""
    cache.enable(str(tmp_path / "cache"))
    file, reads = tmp_path / "file", []
    file.write_text("four")

    def read():
        reads.append(1)
        return {"image": np.full((2, 3), file.stat().st_size, np.uint8), "label": np.arange(2)}

    return file, lambda name="one": cache.arrays(name, [str(file)], read), reads


def test_images_are_read_once(source):
    _, get, reads = source
    first, again = get(), get()
    assert len(reads) == 1
    assert {name: (v.dtype, v.tolist()) for name, v in again.items()} == {
        name: (v.dtype, v.tolist()) for name, v in first.items()
    }
    get("two")
    assert len(reads) == 2


def test_images_are_read_again_where_a_file_has_changed(source):
    file, get, reads = source
    get()
    file.write_text("of another size")
    assert get()["image"].max() == len("of another size") and len(reads) == 2
    os.utime(file, ns=(0, 0))
    get()
    assert len(reads) == 3
    get()
    assert len(reads) == 3


def test_what_was_kept_and_is_damaged_is_read_again(source, tmp_path):
    _, get, reads = source
    want = get()["image"]
    (kept,) = (tmp_path / "cache" / "images").iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2]):
        kept.write_bytes(damaged)
        np.testing.assert_array_equal(get()["image"], want)
    assert len(reads) == 4


def test_images_are_not_kept_where_nothing_is(source, tmp_path):
    _, get, reads = source
    cache.enable("")
    get(), get()
    assert len(reads) == 2 and not (tmp_path / "cache").exists()
