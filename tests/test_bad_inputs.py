"""Bad input of every kind: one line that says what is wrong, exit code 2, no traceback, nothing written."""

import json
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from conftest import cli, run

DIGITS = "--config=configs/digits.py"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run of 4 steps."""
    folder = tmp_path_factory.mktemp("run")
    few = {"config.train.steps": 4, "config.train.log_every": 2, "config.sample.batch_size": 8}
    done = run(folder, **few)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def compressed(workdir):
    file = workdir.parent / "images.vdm"
    np.savez(workdir.parent / "few.npz", image=np.zeros((2, 8, 8, 1), np.uint8))
    line = [f"--workdir={workdir}", "--mode=compress", f"--input={workdir.parent / 'few.npz'}"]
    assert cli("--cache=", *line, f"--output={file}") == 0
    return file


def refused(capsys, words, *args):
    """Asserts that a command exits with 2 and prints one line that contains these words."""
    capsys.readouterr()
    code = cli("--cache=", *args)
    line = capsys.readouterr().err
    assert code == 2, line
    assert line.startswith("error: ") and line.count("\n") == 1, line
    for word in words.split("|"):
        assert word in line, line


# ---- flags ---------------------------------------------------------------------------------

FLAGS = {
    "no workdir": ([DIGITS], "--workdir is missing"),
    "an unknown flag": ([DIGITS, "--workdri=W"], "--workdri is not a flag|'--workdir'"),
    "a word": ([DIGITS, "--workdir=W", "train"], "'train' is not a flag"),
    "an unknown mode": ([DIGITS, "--workdir=W", "--mode=evl"], "--mode is 'evl'|'eval'"),
    "a number that is none": ([DIGITS, "--workdir=W", "--processes=two"], "processes|See --help"),
    "input that is not taken": ([DIGITS, "--workdir=W", "--input=x"], "--input is 'x', which --mode=train"),
    "no input": ([DIGITS, "--workdir=.", "--mode=compress", "--output=x"], "--input is missing"),
    "no output": ([DIGITS, "--workdir=.", "--mode=compress", "--input=test"], "--output is missing"),
    "an output in no folder": (
        [DIGITS, "--workdir=.", "--mode=compress", "--input=test", "--output=/no/such/x"],
        "the folder '/no/such' does not exist",
    ),
    "a workdir that is a file": ([DIGITS, "--workdir=README.md"], "README.md|cannot be written"),
    "a workdir below a file": ([DIGITS, "--workdir=README.md/x"], "README.md|cannot be written"),
    "a workdir that is nowhere": (["--workdir=/no/such", "--mode=eval", DIGITS], "does not exist"),
    "components that are not there": ([DIGITS, "--workdir=W", "--components=/no"], "holds no module"),
}  # fmt: skip

CONFIGS = {
    "no such file": ("--config=configs/digts.py", "configs/digts.py"),
    "no Python": ("--config=README.md", "README.md"),
    "a folder": ("--config=configs", "configs"),
    "an unknown field": ("--config.train.stpes=5", "stpes|steps"),
    "a section": ("--config.train=5", "config.train is a section"),
    "a component's unknown field": ("--config.model.schedule.gama_min=1", "gama_min|gamma_min"),
    "an unknown component": ("--config.model.schedule.name=cosin", "'cosin'|'cosine'"),
    "a module that is nowhere": ("--config.model.net.name=nowhere:Net", "no module 'nowhere'"),
    "a class that is nowhere": ("--config.model.net.name=examples.mixer:Net", "defines no|Mixer"),
    "a class of another kind": ("--config.model.net.name=examples.power:Power", "defines no"),
    "a word for a number": ("--config.train.steps=many", "steps"),
    "a fraction for an integer": ("--config.train.steps=1.5", "steps"),
    "a negative seed": ("--config.seed=-1", "config.seed is -1|0 or more"),
    "no steps": ("--config.train.steps=0", "config.train.steps is 0|1 or more"),
    "a negative number": ("--config.train.log_every=-1", "config.train.log_every is -1"),
    "a batch that cannot be split": ("--config.train.batch_size=12", "batch_size is 12|multiple of 8"),
    "an average that never changes": ("--config.train.ema=1.0", "config.train.ema is 1.0"),
    "no number": ("--config.train.ema=nan", "config.train.ema is nan"),
    "a width that the heads do not divide": ("--config.model.net.heads=5", "heads"),
    "a patch that does not divide": ("--config.model.net.patch=3", "patch is 3"),
    "an endless schedule": ("--config.model.schedule.gamma_min=inf", "gamma_min"),
    "a schedule upside down": ("--config.model.schedule.gamma_min=9.0", "gamma"),
    "an unknown estimator": ("--config.eval.estimators=elbow", "elbow"),
    "a negative rate": ("--config.optimizer.learning_rate=-1.0", "learning_rate"),
    "an unknown optimiser": ("--config.optimizer.name=adm", "'adm'|'adamw'"),
    "an unknown sampler": ("--config.model.sampler=ddmi", "ddmi"),
    "an unknown kind of mapping": ("--config.parallel=pmpa", "config.parallel is 'pmpa'"),
    "more held out than there is": ("--config.data.validation=0.0001", "validation"),
    "all held out": ("--config.data.hold_out=1.0", "hold_out"),
    "an unknown change of images": ("--config.data.augment=flop", "flop"),
    "data that are none": ("--config.data.name=digitss", "digitss|digits"),
    "data that are not prepared": ("--config.data.name=cifar10", "cifar10"),
    "too few levels": ("--config.data.name=npz --config.data.vocab_size=1", "vocab_size"),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name, capsys, tmp_path):
    args, words = FLAGS[name]
    args = [arg.replace("--workdir=W", f"--workdir={tmp_path}") for arg in args]
    refused(capsys, words, *args)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name, capsys, tmp_path):
    flags, words = CONFIGS[name]
    given = [] if "--config=" in flags else [DIGITS]
    refused(capsys, words, f"--workdir={tmp_path}", *given, *flags.split())
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "checkpoints").exists()


# ---- data ----------------------------------------------------------------------------------


def header(width, height):
    """A PNG whose header declares this size, without pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")


class Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def npz(folder, **arrays):
    np.savez(folder / "x.npz", **arrays)


def png(folder, name="a.png", size=(8, 8)):
    Image.new("RGB", size).save(folder / name)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def damaged_image(folder):
    for name in "abcdefgh":
        Image.effect_noise((16, 16), 50).save(folder / f"{name}.png")
    cut(folder / "b.png")


IMAGES = np.zeros((20, 8, 8, 1), np.uint8)
DATA = {
    "nothing there": ("npz", lambda f: None, "holds no .npz file"),
    "no zip": ("npz", lambda f: (f / "x.npz").write_bytes(b"no zip"), "x.npz"),
    "half a zip": ("npz", lambda f: (npz(f, image=IMAGES), cut(f / "x.npz")), "x.npz"),
    "other arrays": ("npz", lambda f: npz(f, photo=IMAGES), "has the arrays photo"),
    "floats": ("npz", lambda f: npz(f, image=IMAGES / 1.0), "float64"),
    "five axes": ("npz", lambda f: npz(f, image=IMAGES[None]), "x.npz"),
    "an empty array": ("npz", lambda f: npz(f, image=IMAGES[:0]), "x.npz"),
    "a pickle": ("npz", lambda f: npz(f, image=np.array([Opens(f / "it_ran")], object)), "x.npz"),
    "a pickle alone": (
        "npz", lambda f: (f / "x.npz").write_bytes(pickle.dumps(Opens(f / "it_ran"))), "x.npz",
    ),
    "labels of other images": ("npz", lambda f: npz(f, image=IMAGES, label=np.zeros(3, int)), "label"),
    "no images": ("folder", lambda f: (f / "a.txt").write_text("x"), "too few images"),
    "one image": ("folder", png, "too few images"),
    "a text": ("folder", lambda f: [(f / f"{n}.png").write_text("x") for n in "abcd"], ".png"),
    "half an image": ("folder", damaged_image, "b.png"),
    "an absurd size": (
        "folder",
        lambda f: [(f / f"{n}.png").write_bytes(header(100_000, 100_000)) for n in "abcd"],
        "100",
    ),
    "two sizes": (
        "folder", lambda f: (png(f), png(f, "b.png"), png(f, "c.png", (10, 10))), "must have the same size"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data(name, capsys, tmp_path):
    source, make, words = DATA[name]
    folder, workdir = tmp_path / "data", tmp_path / "W"
    folder.mkdir()
    make(folder)
    few = ["--config.model.sample_steps=2", "--config.train.steps=1", "--config.train.batch_size=8"]
    data = [f"--config.data.name={source}", f"--config.data.data_dir={folder}"]
    refused(capsys, words, DIGITS, f"--workdir={workdir}", *data, *few)
    assert not (folder / "it_ran").exists()


# ---- workdirs, checkpoints, archives -------------------------------------------------------------


def rewrite(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


WORKDIRS = {
    "no config": ("eval", lambda w: (w / "config.json").unlink(), "holds no run with a config"),
    "half a config": ("eval", lambda w: cut(w / "config.json"), "config.json|is damaged"),
    "a config that is a list": ("eval", lambda w: (w / "config.json").write_text("[1]"), "is damaged"),
    "a config of another type": (
        "eval", lambda w: rewrite(w / "config.json", lambda c: c | {"seed": "x"}), "config.seed",
    ),
    "a config of code": (
        "eval",
        lambda w: rewrite(w / "config.json", lambda c: c | {"objective": {"name": "stranger:X"}}),
        "stranger:X|--components",
    ),
    "an estimator of code": (
        "eval",
        lambda w: rewrite(w / "config.json", lambda c: c | {"eval": {"estimators": "elbo,stranger:X"}}),
        "stranger:X|--components",
    ),
    "a name of code in place of a section": (
        "eval",
        lambda w: rewrite(w / "config.json", lambda c: c | {"model": {"schedule": "stranger:X"}}),
        "stranger:X|--components",
    ),
    "no checkpoint": ("eval", lambda w: shutil.rmtree(w / "checkpoints"), "has no checkpoint"),
    "an empty checkpoint": ("sample", lambda w: empty_checkpoints(w), "no checkpoint that is intact"),
    "data that changed": (
        "eval",
        lambda w: rewrite(w / "data.json", lambda d: d | {"test": "360 images, 0"}),
        "test images are not",
    ),
    "half of what is known of the data": ("eval", lambda w: cut(w / "data.json"), "data.json|is damaged"),
}  # fmt: skip


def empty_checkpoints(workdir):
    for folder in (workdir / "checkpoints").iterdir():
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize("name", WORKDIRS)
def test_workdirs(name, workdir, capsys, tmp_path):
    mode, change, words = WORKDIRS[name]
    copy = tmp_path / "W"
    shutil.copytree(workdir, copy)
    change(copy)
    capsys.readouterr()
    code = cli("--cache=", f"--workdir={copy}", f"--mode={mode}")
    *others, line = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("error: ")
    assert all(other.startswith("the checkpoint of step") for other in others)
    for word in words.split("|"):
        assert word in line, line


def changed(file, tmp_path, change):
    data = bytearray(file.read_bytes())
    path = tmp_path / "changed.vdm"
    path.write_bytes(change(data))
    return path


def flipped(data):
    data[len(data) // 2] ^= 1
    return data


ARCHIVES = {
    "empty": lambda data: b"",
    "of another kind": lambda data: b"PK" + data[2:],
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "a bit": flipped,
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives(name, workdir, compressed, capsys, tmp_path):
    path, output = changed(compressed, tmp_path, ARCHIVES[name]), tmp_path / "out.npz"
    line = [f"--workdir={workdir}", "--mode=decompress", f"--input={path}", f"--output={output}"]
    refused(capsys, str(path), *line)
    assert not output.exists()


def test_an_import_of_nothing(capsys, tmp_path):
    refused(capsys, "holds no run", f"--workdir={tmp_path / 'W'}", "--mode=import", f"--input={tmp_path}")


def test_there_are_sixty():
    assert sum(map(len, (FLAGS, CONFIGS, DATA, WORKDIRS, ARCHIVES))) + 1 >= 60
