"""Each example of a custom component trains, resumes bit for bit, and is evaluated from its workdir alone."""

import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from conftest import ROOT, TINY_FIELDS, cli, make_config, metrics, state
from vdm import commandline, config as config_lib, train, workdir as workdir_lib
from vdm.errors import UserError, one_line
from vdm.reporting import log

FORKS = {
    "power": {"model.schedule.name": "examples.power:Power", "model.schedule.power": 5.0},
    "mixer": {"model.net.name": "examples.mixer:Mixer", "model.net.dropout": 0.2},
    "edm": {"model.parameterisation.name": "examples.edm:EDM", "model.parameterisation.data": 0.7},
    "beta_times": {"model.times.name": "examples.beta_times:Beta", "model.times.a": 0.7},
    "huber": {"objective.name": "examples.huber:Huber", "objective.delta": 2.0},
    "stripes": {"data.name": "examples.stripes:Stripes", "data.noise": 1.0},
    "lion": {"optimizer.name": "examples.lion:Lion", "optimizer.weight_decay": 0.1},
    "clipped": {"model.name": "examples.clipped:Clipped", "model.limit": 0.9},
    "log_variance": {"objective.name": "examples.log_variance:LogVariance", "objective.features": 8},
    "euler": {"model.sampler.name": "examples.euler:Euler"},
}
# The examples that share a run, and other fields of that run.
RUNS = {
    "parts": (("power", "mixer", "edm", "beta_times", "huber", "stripes", "lion"), {}),
    "methods": (("clipped", "log_variance", "euler"), {"model.schedule.name": "fixed_linear"}),
}
CERTIFICATE = "examples.certificate:Certificate"


def own_fields(*forks):
    return {name: value for fork in forks for name, value in FORKS[fork].items()}


def fields(*forks):
    """The fields of a tiny run with these examples, which is saved halfway through its 12 steps."""
    times = {"train.checkpoint_every": 6, "train.eval_every": 0, "train.sample_every": 0}
    return TINY_FIELDS | times | {"train.substeps": 1} | own_fields(*forks)


def unload(*modules):
    for name in modules:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module", autouse=True)
def quick(single):
    """One device, and no curves."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "save_curve", lambda *_: None)
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module", params=RUNS)
def trained(request, tmp_path_factory):
    """(names of its examples, config, workdir) of an uninterrupted run."""
    forks, more = RUNS[request.param]
    unload(*(f"examples.{name}" for name in forks))
    workdir = tmp_path_factory.mktemp(request.param)
    config = make_config(fields(*forks) | more, "configs/digits.py")
    train.run(config, workdir)
    return forks, config, workdir


@pytest.fixture
def without_examples(monkeypatch, tmp_path):
    """A current folder from which no module `examples` can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path and pathlib.Path(path) != ROOT])
    examples = [name for name in sys.modules if name.partition(".")[0] == "examples"]
    kept = {name: sys.modules.pop(name) for name in examples}
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("examples.power")
    yield
    unload(*[name for name in sys.modules if name.partition(".")[0] == "examples"])
    sys.modules.update(kept)


def test_each_is_one_short_file_whose_command_is_a_run():
    files = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert {*FORKS, "certificate"} == {name for name in files if not name.startswith(("_", "judge"))}
    for name in (*FORKS, "certificate"):
        text = (ROOT / "examples" / f"{name}.py").read_text()
        assert len(text.splitlines()) <= (70 if name == "certificate" else 32), name
        assert not re.search(r"^(from|import) examples", text, re.M), name
        command = re.search(r"^python -m vdm\.main .*?(?<!\\)$", text.replace("\\\\\n", ""), re.M)[0]
        given = commandline.split(shlex.split(command)[2:])
        assert any(f"=examples.{name}:" in arg for arg in given.args), name
        workdir, *mode = given.rest
        assert workdir.startswith("--workdir=/tmp/"), name
        assert mode == [] if given.file else mode in (["--mode=eval"], ["--mode=sample"]), name
        commandline.apply(config_lib.load(str(ROOT / (given.file or "configs/digits.py"))), given.args)


def test_their_own_fields_are_in_the_config_and_they_are_kept(trained):
    forks, config, workdir = trained
    saved = workdir_lib.flat(json.loads((workdir / "config.json").read_text()))
    assert saved == workdir_lib.flat(config) and saved.items() >= own_fields(*forks).items()
    kept = {path.name: path.read_text() for path in (workdir / "components").iterdir()}
    assert kept == {f"examples.{name}.py": (ROOT / "examples" / f"{name}.py").read_text() for name in forks}


def test_resumed_it_is_the_run_that_was_never_stopped(trained, tmp_path):
    forks, config, whole = trained
    shutil.copytree(whole, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "12")
    train.run(config, tmp_path / "stopped")
    half, ended = state(whole, 6), state(whole)
    assert state(tmp_path / "stopped") == ended
    assert metrics(tmp_path / "stopped") == metrics(whole)
    assert [row["step"] for row in metrics(whole) if row["split"] == "train"] == [3, 6, 9, 12]
    moved = {name for name in ended if ended[name] != half[name]}
    for fork, part in {"power": "log_power", "mixer": "net", "log_variance": "objective"}.items():
        assert (fork in forks) <= any(part in name for name in moved), (fork, moved)


def test_evaluated_by_its_workdir_alone(trained, without_examples):
    """From another folder, without the original files; with the copies in the workdir only if the user says
    so."""
    forks, _, workdir = trained
    ended = json.loads((workdir / "eval.json").read_text())
    (workdir / "eval.json").unlink()
    assert cli("--cache=", "--mode=eval", f"--workdir={workdir}") == 2
    copies = f"--components={workdir / 'components'}"
    assert cli("--cache=", "--mode=eval", f"--workdir={workdir}", copies) == 0
    found = json.loads((workdir / "eval.json").read_text())
    assert found["bpd"] == pytest.approx(ended["bpd"], rel=1e-6) and found["estimator"].startswith("ELBO")
    for name in forks:
        assert sys.modules[f"examples.{name}"].__file__ == str(workdir / "components" / f"examples.{name}.py")
    if "euler" in forks:
        assert cli("--cache=", "--mode=sample", f"--workdir={workdir}", copies) == 0


def test_an_estimator_is_chosen_at_evaluation(trained, capsys):
    _, _, workdir = trained
    line = ["--cache=", "--mode=eval", f"--workdir={workdir}", f"--config.eval.estimators={CERTIFICATE}"]
    line += [f"--config.eval.certificate.{name}=4" for name in ("timesteps", "samples", "images")]
    assert cli(*line) == 0
    printed = capsys.readouterr().out
    for text in ("ELBO", "lower bound, 4 samples of the model, K = 4", "upper bound", "bits/dim."):
        assert text in printed


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """(file, workdir, config) of a run whose schedule is a module in the current folder."""
    file = tmp_path / "my_schedule.py"
    shutil.copyfile(ROOT / "examples" / "power.py", file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = make_config(fields("power") | {"model.schedule.name": "my_schedule:Power"}, "configs/digits.py")
    workdir = tmp_path / "W"
    workdir.mkdir()
    workdir_lib.write_config(workdir, config)
    (workdir / "checkpoints" / "2").mkdir(parents=True)
    yield file, workdir, config
    unload("my_schedule")


def test_a_file_that_changed_since_the_start_is_refused(own_file):
    file, workdir, config = own_file
    workdir_lib.check_config(workdir, config)
    file.write_text(file.read_text().replace("2.0 * power * jnp.log", "1.9 * power * jnp.log"))
    unload("my_schedule")
    importlib.invalidate_caches()
    importlib.import_module("my_schedule")
    for refuse in (workdir_lib.check_config, workdir_lib.write_config):
        with pytest.raises(UserError) as error:
            refuse(workdir, config)
        line = one_line(error.value)
        for text in (str(file), "has changed since", str(workdir), "restore it", "another --workdir"):
            assert text in line
    assert "2.0 * power * jnp.log" in (workdir / "components" / "my_schedule.py").read_text()


def test_a_process_elsewhere_trains_with_it_and_evaluates_without_it(tmp_path):
    """The first process runs in the folder of the file, the second in an empty folder after its deletion."""
    file = tmp_path / "my_lion.py"
    shutil.copyfile(ROOT / "examples" / "lion.py", file)
    (tmp_path / "empty").mkdir()
    few = fields("lion") | {"train.steps": 2, "optimizer.name": "my_lion:Lion"}
    given = {"config": ROOT / "configs" / "digits.py"} | {f"config.{k}": v for k, v in few.items()}
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}

    def run(folder, **flags):
        line = [sys.executable, "-m", "vdm.main", "--cache=", f"--workdir={tmp_path / 'W'}"]
        line += [f"--{name}={value}" for name, value in flags.items()]
        return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    done = run(tmp_path, **given)
    assert done.returncode == 0, done.stderr
    bpd = json.loads((tmp_path / "W" / "eval.json").read_text())["bpd"]
    file.unlink()
    done = run(tmp_path / "empty", mode="eval")
    assert done.returncode == 2 and "add --components=" in done.stderr and done.stderr.count("\n") == 1
    done = run(tmp_path / "empty", mode="eval", components=tmp_path / "W" / "components")
    assert done.returncode == 0, done.stderr
    assert f"{bpd:.4f}" in done.stdout


POWER = {"model.schedule.name": "examples.power:Power"}
TYPOS = {
    "module": (
        {"model.schedule.name": "exampels.power:Power"},
        "no module 'exampels'",
        "in the current folder",
    ),
    "file": ({"model.schedule.name": "examples.powre:Power"}, "no module 'examples.powre'", "'module:Class'"),
    "class": ({"model.schedule.name": "examples.power:Powre"}, "defines: Power.", "Did you mean 'Power'?"),
    "kind": ({"model.net.name": "examples.power:Power"}, "no vdm.nets.network.Network", "defines: none"),
    "imported": ({"optimizer.name": "examples.lion:Optimizer"}, "'Optimizer'", "it defines: Lion."),
    "field": (
        POWER | {"model.schedule.pwoer": 3},
        "config.model.schedule.pwoer is set, but 'examples.power:Power' has no such field",
        "accepted: name, gamma_max, gamma_min, power.",
        "Did you mean 'power'?",
    ),
    "value": (POWER | {"model.schedule.power": -1}, "power is -1.0; accepted: more than 0."),
    "no colon": ({"model.schedule.name": "examples.power.Power"}, "'examples.power.Power'", "'module:Class'"),
}


@pytest.mark.parametrize("case", TYPOS)
def test_a_typo_is_one_line_and_exit_code_2(case, tmp_path, capfd):
    changes, *texts = TYPOS[case]
    args = [f"--config.{name}={value}" for name, value in changes.items()]
    assert (
        cli("--cache=", f"--config={ROOT / 'configs/digits.py'}", f"--workdir={tmp_path / 'W'}", *args) == 2
    )
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for text in texts:
        assert text in error, error


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import no_such_package\n", "needs the module 'no_such_package'"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError"),
        ("class Power(:\n", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_fails_is_one_line(code, text, tmp_path, monkeypatch):
    (tmp_path / "my_broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=text):
        make_config({"model.schedule.name": "my_broken:Power"}, "configs/digits.py")
    unload("my_broken")
