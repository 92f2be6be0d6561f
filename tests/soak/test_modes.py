"""--mode=compress and --mode=decompress, each in a separate process."""

import numpy as np
import pytest

from conftest import TINY, cli, command, only, run

SMALL = {"config.codec.timesteps": 3, "config.codec.lanes": 4}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = run(folder / "a", **TINY | {"config.train.steps": 2, "config.train.eval_every": 0})
    assert done.returncode == 0, done.stderr
    return folder / "a"


def test_there_and_back_in_two_processes(workdir, tmp_path):
    image = np.random.default_rng(0).integers(0, 17, (6, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "in.npz", image=image)
    files = {"input": tmp_path / "in.npz", "output": tmp_path / "x.vdm"}
    done = run(workdir, **only(mode="compress", **files, **SMALL))
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "x.vdm").stat().st_size
    assert f"6 images, {size:,} bytes" in done.stdout and "initial " in done.stdout
    files = {"input": tmp_path / "x.vdm", "output": tmp_path / "out.npz"}
    done = run(workdir, **only(mode="decompress", **files))
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["image"], image)


@pytest.mark.parametrize(
    "flags, texts",
    [
        ({"mode": "compress", "output": "x"}, ["--input is missing; --mode=compress needs it"]),
        ({"mode": "compress", "input": "test"}, ["--output is missing"]),
        ({"mode": "eval", "input": "test"}, ["--input is 'test', which --mode=eval does not take"]),
        ({"mode": "compress", "input": "test", "output": "/none/x"}, ["the folder '/none' does not exist"]),
        ({"mode": "compress", "input": "test", "output": "/"}, ["--output is '/', which is a folder"]),
        ({"mode": "decompress", "input": "/none", "output": "x"}, ["'/none', which cannot be read"]),
        ({"mode": "decompres", "input": "x", "output": "y"}, ["Did you mean 'decompress'"]),
    ],
)
def test_bad_flags_are_one_line(workdir, flags, texts, capfd):
    line, _ = command(workdir, **only(cache="", **flags))
    assert cli(*line[3:]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    for text in texts:
        assert text in error
