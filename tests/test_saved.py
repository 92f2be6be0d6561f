"""Files of an earlier version still work: a workdir with its checkpoint, and an export, of November 2026."""

import json
import signal
import tarfile

import pytest

from conftest import ROOT, cli

SAVED = ROOT / "tests" / "saved" / "version_0.1.tar.gz"
pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """run/: six steps of a small network on the digits, with a learned schedule, importance-sampled times and
    the Gaussian start, then called "gaussian"; and export/: its weights."""
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(SAVED) as file:
        file.extractall(folder, filter="data")
    return folder


def bits(folder):
    return json.loads((folder / "eval.json").read_text())["bpd"]


@pytest.mark.slow
def test_an_export_is_imported_to_the_same_bits(saved):
    new = saved / "imported"
    assert cli(f"--workdir={new}", "--mode=import", f"--input={saved / 'export'}") == 0
    assert cli(f"--workdir={new}", "--mode=eval") == 0
    assert bits(new) == pytest.approx(bits(saved / "run"), rel=1e-5)


def test_a_workdir_has_the_same_bits_and_is_trained_on(saved, capsys):
    workdir = saved / "run"
    before = bits(workdir)
    assert cli(f"--workdir={workdir}", "--mode=eval") == 0
    assert bits(workdir) == pytest.approx(before, rel=1e-5)
    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    assert cli(f"--workdir={workdir}", "--config.train.steps=8") == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert "resuming at step 6 of 8" in capsys.readouterr().out
