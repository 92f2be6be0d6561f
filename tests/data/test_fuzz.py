"""Randomly damaged files and random field values are accepted or raise a UserError, never another error.

Each test tries 15 examples; FUZZ=100000 tries that many.
"""

import contextlib
import io
import json
import os
import pathlib

from hypothesis import HealthCheck, example, given, settings, strategies as st
from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from conftest import make_config
from vdm import commandline, config as config_lib, workdir as workdir_lib
from vdm.codec import archive, header
from vdm.codec.stack import Damaged, Stack
from vdm.data import fingerprint, source
from vdm.data.dataset import Data, Spec, in_memory
from vdm.errors import UserError
from vdm.reporting.metrics import read_metrics
from vdm.run import Run
from vdm.runtime import checksums

COUNT = int(os.environ.get("FUZZ", "15"))
FUZZED = settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=COUNT == 15,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# (position, number of bytes removed, bytes inserted): replaces, deletes, inserts or truncates.
CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40) | st.just(10**6), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


def changed(data, changes):
    for where, length, new in changes:
        place = int(where * len(data))
        data = data[:place] + new + data[place + length :]
    return data


def ends_well(function):
    """Calls the function; a UserError with a message is accepted too."""
    try:
        return function()
    except UserError as error:
        assert str(error)
    return None


def load(name, folder):
    data = source.load(make_config({"data.name": name, "data.data_dir": folder}).data)
    for split in (data.train, data.test):
        split.read(np.arange(split.size))


def npz():
    file = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), np.uint8)
    np.savez_compressed(file, image=images, label=np.arange(6))
    return file.getvalue()


def image(kind):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@FUZZED
@given(changes=CHANGES)
def test_npz(changes, folder):
    path = folder / "x.npz"
    path.write_bytes(changed(npz(), changes))
    ends_well(lambda: load("npz", path))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "gif"])
def test_images(kind, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.{kind}").write_bytes(image(kind))
    load("folder", tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.{kind}").unlink()

    @FUZZED
    @given(changes=CHANGES)
    def fuzz(changes):
        for name in "abc":
            (tmp_path / f"{name}.{kind}").write_bytes(changed(image(kind), changes))
        ends_well(lambda: load("folder", tmp_path))

    fuzz()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
TEXT = json.dumps(make_config(file="configs/digits.py").to_dict()).encode()


@FUZZED
@given(changes=CHANGES)
def test_config_json(changes, folder):
    (folder / "config.json").write_bytes(changed(TEXT, changes))
    ends_well(lambda: workdir_lib.read_config(folder))


@FUZZED
@given(data=st.data(), value=JSON)
def test_a_field_of_config_json(data, value, folder):
    found = json.loads(TEXT)
    section = found
    for _ in range(data.draw(st.integers(0, 2))):
        inner = [part for part in section.values() if isinstance(part, dict) and part]
        section = data.draw(st.sampled_from(inner)) if inner else section
    section[data.draw(st.sampled_from(sorted(section)))] = value
    (folder / "config.json").write_text(json.dumps(found))
    ends_well(lambda: workdir_lib.read_config(folder))


HEADER = {
    "model": "0123456789abcdef", "images": 3, "shape": [2, 2, 1], "sha": "0", "timesteps": 20,
    "fineness": 16.0, "seed": 0, "made": {"vdm": "0.1.0", "jax": "0.10.2"}, "initial": [5, 7],
    "plain": [[0, 4]],
    "names": ["a.png", "b.png", "c.png"],
}  # fmt: skip
WORDS = [np.array([1, 2**32 - 1, 7], np.uint32), np.array([5], np.uint32)]


@FUZZED
@given(changes=CHANGES)
def test_compressed_files(changes):
    data = archive.to_bytes(archive.Archive(HEADER, WORDS))
    ends_well(lambda: archive.from_bytes(changed(data, changes), "x"))


@FUZZED
@given(field=st.sampled_from(sorted(HEADER)), value=JSON | st.lists(st.integers(-5, 5), max_size=3))
def test_a_field_of_the_header_of_a_compressed_file(field, value):
    """The checksums are right, as if the header had been written with this value."""
    given = archive.from_bytes(archive.to_bytes(archive.Archive(HEADER | {field: value}, WORDS)), "x")
    split = in_memory(np.zeros((3, 2, 2, 1), np.uint8))
    run = Run(Data(split, split, Spec((2, 2, 1), 256, 0)), None, None)

    def use():
        header.check(given.header, len(given.stacks), run, "x")
        header.differences(given.header["made"])
        for number, words in enumerate(given.stacks):
            with contextlib.suppress(Damaged):
                Stack(given.header["seed"], number, words).lowest(given.header["initial"][number])

    ends_well(use)


FIELDS = sorted(config_lib.flat(make_config(file="configs/digits.py")))


@FUZZED
@given(
    field=st.sampled_from(FIELDS) | st.text(max_size=12), value=st.text(max_size=12) | st.floats().map(str)
)
@example(field="train.steps", value="1e3")
def test_a_field_of_the_command_line(field, value):
    raw = config_lib.load("configs/digits.py") if pathlib.Path("configs").is_dir() else ConfigDict()
    ends_well(lambda: commandline.apply(raw, commandline.split(["", f"--config.{field}={value}"]).args))


@FUZZED
@given(changes=CHANGES)
@example(changes=[(0.0, 36, b""), (0.0, 37, b""), (0.5, 5, b"")])  # only an integer is left
def test_small_files_of_a_workdir(changes, folder):
    split = in_memory(np.zeros((3, 2, 2, 1), np.uint8))
    data = Data(split, split, Spec((2, 2, 1), 256, 0))
    path = folder / "data.json"
    path.unlink(missing_ok=True)
    fingerprint.check(path, data, keep=True)
    path.write_bytes(changed(path.read_bytes(), changes))
    ends_well(lambda: fingerprint.check(path, data, keep=False))
    lines = b'{"step": 1, "split": "train", "bpd": 2.5}\n{"step": 2, "split": "test", "bpd": 2.25}\n'
    (folder / "metrics.jsonl").write_bytes(changed(lines, changes))
    ends_well(lambda: read_metrics(folder / "metrics.jsonl"))
    checkpoint = folder / "checkpoints" / "1"
    for name in ("state", "rest"):
        (checkpoint / name).mkdir(parents=True, exist_ok=True)
        (checkpoint / name / "x").write_bytes(b"1")
    (checkpoint / "_CHECKPOINT_METADATA").write_bytes(changed(b'{"commit_timestamp_nsecs": 1}', changes))
    checksums.write(checkpoint)
    sums = checkpoint / "checksums.json"
    sums.write_bytes(changed(sums.read_bytes(), changes))
    checksums.damage(checkpoint)
