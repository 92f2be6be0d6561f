"""Fingerprints: what changes them, what does not, and a run whose data changed."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from conftest import make_config
from vdm.data import fingerprint, source
from vdm.data.dataset import Data, Spec, in_memory
from vdm.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 5, (3000, 2, 2, 1)).astype(np.uint8)
SPEC = Spec((2, 2, 1), 5, 0)


def test_it_is_the_hash_of_shape_levels_and_values():
    want = hashlib.sha256(b"((3000, 2, 2, 1), 5)" + IMAGES.tobytes()).hexdigest()[:16]
    assert fingerprint.of_images(IMAGES, 5) == fingerprint.of_split(in_memory(IMAGES), SPEC, 3000) == want
    changed = IMAGES.copy()
    changed[2999, 1, 1, 0] ^= 1
    others = [changed, IMAGES[::-1], IMAGES[:2999], IMAGES.reshape(3000, 4, 1, 1)]
    found = {fingerprint.of_images(other, 5) for other in others} | {fingerprint.of_images(IMAGES, 6)}
    assert len(found) == 5 and want not in found


@pytest.mark.parametrize("name", ["digits", "swirl"])
def test_known_images_have_a_name(name):
    data = source.load(make_config({"data.name": name}).data)
    found = fingerprint.of_split(data.test, data.spec, data.test.size)
    assert name in fingerprint.named(found) and found in fingerprint.named(found)
    assert fingerprint.named("0" * 16) == "0" * 16


def test_a_run_is_not_gone_on_with_on_other_data(tmp_path):
    path, data = tmp_path / "data.json", Data(in_memory(IMAGES), in_memory(IMAGES[:100]), SPEC)
    fingerprint.check(path, data, keep=False)
    assert not path.exists()
    for _ in range(2):
        fingerprint.check(path, data, keep=True)
    assert json.loads(path.read_text())["train"].startswith("3000 images, ")
    for name, split in (("train", IMAGES[:2999]), ("test", IMAGES[1:101])):
        other = dataclasses.replace(data, **{name: in_memory(split)})
        with pytest.raises(UserError, match=f"the {name} images are not those .* then, .* now .*--workdir"):
            fingerprint.check(path, other, keep=True)
    labelled = dataclasses.replace(data, spec=Spec((2, 2, 1), 5, 3))
    with pytest.raises(UserError, match="the shape, levels and classes are not .*'classes': 0.* then, .* 3"):
        fingerprint.check(path, labelled, keep=True)
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        fingerprint.check(path, data, keep=True)


def test_what_an_older_version_wrote_is_compared_and_completed(tmp_path):
    path, data = tmp_path / "data.json", Data(in_memory(IMAGES), in_memory(IMAGES[:100]), SPEC)
    fingerprint.check(path, data, keep=True)
    known = fingerprint.read(path)
    assert fingerprint.spec_of(known, path) == SPEC
    older = {name: known[name] for name in ("train", "test")}
    fingerprint.write(path, older)
    assert fingerprint.spec_of(older, path) is None
    with pytest.raises(UserError, match="the test images are not those"):
        fingerprint.check(path, dataclasses.replace(data, test=in_memory(IMAGES[1:101])), keep=True)
    fingerprint.check(path, data, keep=False)
    assert fingerprint.read(path) == older
    fingerprint.check(path, data, keep=True)
    assert fingerprint.read(path) == known
