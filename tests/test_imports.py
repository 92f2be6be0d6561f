"""Methods are plug-ins: the core names no method and works without them, and almost no other module imports
them. `make lint` checks that imports go one way and have no cycles (setup.cfg)."""

import ast
import os
import subprocess
import sys

import pytest

from conftest import ROOT

METHODS = sorted(path.stem for path in (ROOT / "vdm" / "methods").glob("[a-z]*.py"))


def graph():
    """{module: set of the modules of the package that it imports}."""
    files = {}
    for path in (ROOT / "vdm").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for module, path in files.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                of = name if name in files else name.rpartition(".")[0]
                if of in files and of not in ("vdm", module):
                    found[module].add(of)
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "vdm" / "diffusion").glob("*.py")), ids=lambda path: path.stem
)
def test_the_core_names_no_method(path):
    names = {name.replace("_", " ") for name in METHODS} | {
        "diffenc",
        "mulan",
        "wiener",
        "leave one out",
        "methods.",
    }
    text = path.read_text().lower().replace("_", " ")
    assert not [name for name in names if name in text]


ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


WORKS = """
import numpy as np
from conftest import make_config
from vdm import run
from vdm.runtime.randomness import Rng
import jax
config = make_config({"model.net.name": "mlp", "model.net.depth": 1, "model.sample_steps": 2})
made = run.build(config)
batch, rng = made.data.train.read(np.arange(2)), Rng(jax.random.key(0), np.arange(2), 2)
params = made.model.init(jax.random.key(0), batch)
made.model.verify(params)
assert set(made.model.draw(params, rng, batch).terms) == {"reconstruction", "prior", "diffusion"}
assert made.model.sample(params, rng, batch).shape == (2, 8, 8, 1)
"""


@pytest.mark.slow
def test_the_core_works_without_any_method(tmp_path):
    """A VDM is built, verified, evaluated and sampled where no method can be imported."""
    names = {f"vdm.methods.{name}" for name in METHODS}
    (tmp_path / "sitecustomize.py").write_text(ABSENT.format(names=names))
    paths = (tmp_path, ROOT, ROOT / "tests")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", WORKS], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_nothing_else_is_gone_with_a_method(method):
    """Only methods that derive from a method, and vdm.likelihood for external models, import it."""
    users = {module for module, others in graph().items() if f"vdm.methods.{method}" in others}
    allowed = {
        "external_denoiser": {"vdm.likelihood"},
        "discretised_normal": {"vdm.methods.wiener"},
        "weighted": {"vdm.methods.band"},
    }
    assert users == allowed.get(method, set())
