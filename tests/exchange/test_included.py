"""The weights that come with the project have the likelihoods that their cards state."""

import math
import os
import pathlib
import re

import numpy as np
import pytest

from conftest import ROOT
import vdm
from vdm.data import source

IMAGES = pathlib.Path(os.environ.get("VDM_TFDS", ROOT.parent / "shared" / "tfds"))

pytestmark = pytest.mark.usefixtures("single")


def card(name):
    """The bits/dim, standard error, images and passes that the card states."""
    text = (ROOT / "weights" / name / "README.md").read_text()
    stated = r"\*\*([\d.]+) ± ([\d.]+) bits/dim\*\*.* on (\d+) test images.* each evaluated (\d+) times"
    bpd, se, images, passes = re.search(stated, text).groups()
    return float(bpd), float(se), int(images), int(passes)


def test_the_digits():
    """The same images and draws, so that only rounding differs."""
    bpd, _, count, passes = card("digits")
    model = vdm.load(ROOT / "weights" / "digits")
    test = source.load(model.config.data).test
    assert test.size == count
    found = model.bits_per_dim(test.read(np.arange(count))["image"], passes=passes, seed=model.config.seed)
    assert found.mean["bpd"] == pytest.approx(bpd, abs=5e-4)


@pytest.mark.skipif(not IMAGES.exists(), reason="CIFAR-10 is not prepared here: set VDM_TFDS to its data_dir")
@pytest.mark.parametrize("name", ["cifar10", "cifar10_hour"])
def test_photographs(name):
    """On 16 of the images, within the error of such a small sample."""
    bpd, se, count, _ = card(name)
    model = vdm.load(ROOT / "weights" / name, data__data_dir=str(IMAGES))
    test = source.load(model.config.data).test
    if test.size != count:
        pytest.skip("the card is for another part of CIFAR-10")
    some = 16
    found = model.bits_per_dim(test.read(np.arange(some))["image"], passes=2)
    error = math.hypot(found.noise["bpd"], se * math.sqrt(count / some))
    assert abs(found.mean["bpd"] - bpd) < 3.0 * error < 1.0
