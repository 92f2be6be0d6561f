"""Experiment trackers: a custom one, and those of the extras if they are installed."""

import json

import pytest

from conftest import TINY_FIELDS, make_config
from vdm import train, workdir as workdir_lib
from vdm.config import flat
from vdm.errors import UserError
from vdm.reporting import loggers

OWN = """
import json
from vdm.reporting.loggers import Logger

class Lines(Logger):
    def start(self, workdir, config, known):
        self.path = workdir / "lines.jsonl"
        self.write("start", known, config["train.steps"])
        return known or "id-1"

    def write(self, *what):
        with self.path.open("a") as file:
            file.write(json.dumps(what) + chr(10))

    def log(self, step, numbers):
        self.write("log", step, sorted(numbers))

    def image(self, step, name, path):
        self.write("image", step, name)

    def end(self):
        self.write("end")

class Broken(Logger):
    def start(self, workdir, config, known):
        raise OSError("no answer")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "lines_of_test.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "lines_of_test:Lines"


@pytest.mark.slow
def test_a_run_gives_its_numbers_and_images_and_goes_on_where_it_was(tmp_path, own):
    fields = TINY_FIELDS | {"loggers": own, "train.substeps": 1, "sample.num": 8, "sample.batch_size": 8}
    workdir = tmp_path / "W"
    workdir.mkdir()
    train.run(make_config(fields | {"train.steps": 6}, "configs/digits.py"), workdir)
    train.run(make_config(fields | {"train.steps": 12}, "configs/digits.py"), workdir)
    lines = [json.loads(line) for line in (workdir / "lines.jsonl").read_text().splitlines()]
    assert [line for line in lines if line[0] == "start"] == [["start", None, 6], ["start", "id-1", 12]]
    assert [line[0] for line in lines].count("end") == 2
    assert ["image", 12, "samples"] in lines
    names = {name for line in lines if line[0] == "log" for name in line[2]}
    assert {"train/bpd", "test/bpd", "final/bpd", "train/grad_norm"} <= names
    assert (workdir / "components" / "lines_of_test.py").exists()
    workdir_lib.check_config(workdir, make_config(fields | {"loggers": ""}, "configs/digits.py"))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("wanb", "config.loggers is 'wanb'; accepted: 'wandb', 'mlflow', 'aim'.* Did you mean 'wandb'"),
        ("lines_of_test:Broken", "config.loggers: lines_of_test:Broken does not start: OSError: no answer"),
    ],
)
def test_one_that_cannot_be_is_one_line(names, text, tmp_path, own):
    with pytest.raises(UserError, match=text):
        loggers.Loggers(names, tmp_path, {"train.steps": 1})


@pytest.mark.parametrize("name", ["wandb", "mlflow", "aim"])
def test_without_its_package_it_is_refused_before_training(name, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        UserError, match=rf"needs the package {name}; install it by pip install -e '.\[{name}\]'"
    ):
        train.check(make_config({"loggers": name}, "configs/digits.py"))


@pytest.mark.parametrize("name", ["wandb", "mlflow", "aim"])
def test_those_of_the_extras_take_numbers_and_go_on(name, tmp_path):
    pytest.importorskip(name)
    workdir = tmp_path / "study" / "run-0"
    workdir.mkdir(parents=True)
    ids = []
    for step in (1, 2):
        of = loggers.Loggers(name, workdir, flat(make_config({}, "configs/digits.py")))
        of.log(step, "test", {"bpd": 2.0 / step})
        of.end()
        ids.append(json.loads((workdir / "loggers.json").read_text())[name])
    assert ids[0] == ids[1]
