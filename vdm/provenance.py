"""provenance.json of a workdir, with an entry for each time that the run was started or resumed."""

from collections.abc import Sequence
import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

import vdm
from vdm.runtime import devices, processor
from vdm.runtime.atomic import atomic_path, write_text

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "ml-collections")
LARGEST = 2_000_000  # bytes of the largest patch that is kept


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The entries, oldest first; [] if there is no entry."""
    path = workdir / "provenance.json"
    try:
        return json.loads(path.read_text()) if path.exists() else []
    except ValueError:
        return []  # a missing or damaged record does not stop a run


def write(workdir: pathlib.Path, step: int, args: Sequence[str]) -> None:
    """Adds an entry for a run that starts or resumes at `step`: commit, versions, devices and the command
    `args`. If tracked files of the checkout were changed, keeps the change as a patch for `git apply`."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    before, code = read(workdir), of_checkout(pathlib.Path(vdm.__file__).parent)
    patch = code.pop("patch", b"")
    if patch:
        code["diff"] = hashlib.sha256(patch).hexdigest()
    if patch and len(patch) < LARGEST:
        code["patch"] = f"start-{len(before)}.patch"
        with atomic_path(workdir / code["patch"]) as part:
            part.write_bytes(patch)
    own = {"step": step, "time": time, "command": list(args), "vdm": vdm.__version__}
    text = json.dumps([*before, own | code | of_machine()], indent=2)
    write_text(workdir / "provenance.json", text + "\n")


def of_machine() -> dict[str, Any]:
    """Versions and devices."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    kind = f"{devices.count()} × {jax.devices()[0].device_kind}"
    here = {"devices": kind, "processor": processor.name(), "cores": len(processor.cores())}
    return {"python": platform.python_version(), "platform": sys.platform, **versions, **here}


def of_checkout(package: pathlib.Path) -> dict[str, Any]:
    """The commit of the checkout that contains the package, whether it was changed, and how; {} if the
    package is not in a checkout."""

    def git(*args):
        line = ["git", "--no-optional-locks", "-C", str(package), *args]
        return subprocess.run(line, capture_output=True, check=True, timeout=20).stdout

    try:
        if git("ls-files", "--error-unmatch", "__init__.py").strip() != b"__init__.py":
            return {}
        changed = git("status", "--porcelain", "--", ":/").decode(errors="replace").splitlines()
        found: dict[str, Any] = {"commit": git("rev-parse", "HEAD").decode().strip(), "changed": changed}
        patch = git("diff", "--binary", "--no-ext-diff", "--no-color", "HEAD") if changed else b""
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout
        return {}
    return found | ({"patch": patch} if patch else {})


def differences(ours: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """The differences between two entries that may change a bit, in words."""
    names = ("vdm", "commit", "changed", "diff", "python", "platform", *PACKAGES, "devices", "processor")
    of = [(name, others.get(name), ours.get(name)) for name in names]
    of = [one for one in of if one[0] != "processor" or None not in one]  # older entries lack it
    return [f"{name} was {old!r}, is {new!r}" for name, old, new in of if old != new]
