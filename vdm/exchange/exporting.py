"""--mode=export: the model of a workdir as a folder with safetensors, a config and a card."""

from collections.abc import Mapping
import json
import pathlib
import shlex
from typing import Any

import jax
from ml_collections import ConfigDict

import vdm
from vdm import commandline, provenance, run as run_lib
from vdm.data import fingerprint
from vdm.exchange import weights
from vdm.reporting.metrics import read_metrics
from vdm.run import Run

CARD = """---
library_name: vdm
tags:
- diffusion
- variational-diffusion-model
- likelihood
---

# {name} on {data}

{likelihood}

| | |
|---|---|
| model | {model}, {parameters:,} parameters (float32, their average over training) |
| data | {data}, {shape}, {levels} levels |
| training split | {train} (fingerprint of 256 of them, evenly spaced) |
| test split | {test} (fingerprint of 256 of them, evenly spaced) |
| training | {steps:,} steps of {batch} images, seed {seed}{seconds} |
{started}| written by | vdm {version} |

To evaluate, sample or train on:

    python -m vdm.main --mode=import --input=THIS_FOLDER --workdir=W
    python -m vdm.main --mode=eval --workdir=W
    python -m vdm.main --mode=sample --workdir=W

Sampling needs no images. Evaluation and training do: images that are not built in need
`--config.data.data_dir=PATH` with the first command.
"""


def run(config: ConfigDict, workdir: pathlib.Path, target: str) -> None:
    """Writes the folder --output from the checkpoint that config.eval.checkpoint selects.

    Raises:
      UserError: the workdir has no checkpoint; or --output exists, or cannot be written.
    """
    restored = run_lib.restore(config, workdir, images=False)
    known = fingerprint.read(workdir / "data.json") | {"spec": fingerprint.fields(restored.data.spec)}
    params = jax.device_get(restored.state.ema)
    folder = pathlib.Path(target)
    step = int(restored.state.step)
    about = {"model_type": "vdm", "step": step, **config.to_dict(), weights.DATA: known}
    if "data_dir" in about["data"]:
        about["data"] = about["data"] | {"data_dir": ""}  # a path that exists only on this machine
    size = weights.write(folder, params, about, card(config, workdir, restored, known))
    print(f"{folder}: {', '.join(weights.FILES)}; {size:,} bytes of weights, step {step}")


def card(config: ConfigDict, workdir: pathlib.Path, of: Run, known: Mapping[str, Any]) -> str:
    """The README.md: the model, its bits/dim, its data (`known`: fingerprint.about), its training."""
    spec, step = of.data.spec, int(of.state.step)
    found = _evaluated(workdir, step)
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["step"] <= step]
    seconds = f", {rows[-1]['seconds']:.0f} s with evaluations" if rows else ""
    return CARD.format(
        name=config.model.name,
        data=config.data.name,
        likelihood=_likelihood(found),
        model=config.model.name,
        parameters=sum(value.size for value in jax.tree.leaves(of.state.ema)),
        shape=" × ".join(map(str, spec.shape)),
        levels=spec.vocab_size,
        train=known.get("train", "not known"),
        test=known.get("test", "not known"),
        steps=step,
        batch=config.train.batch_size,
        seed=config.seed,
        seconds=seconds,
        started=started(workdir),
        version=vdm.__version__,
    )


def started(workdir: pathlib.Path) -> str:
    """The rows with the config of the command that started the run, and with the devices; "" if no record was
    kept. Other flags are left out, and paths of this machine replaced."""
    entries = provenance.read(workdir)
    if not entries:
        return ""
    first, rows = entries[0], {}
    given = commandline.split(first["command"])
    if given.file:
        file = pathlib.Path(given.file)
        flags = [f"--config={file.name if file.is_absolute() else file}"]
        of_paths = [arg for arg in given.args if "data.data_dir" in commandline.fields_of([arg])]
        flags += [arg for arg in given.args if arg not in of_paths]
        flags += ["--config.data.data_dir=PATH", "--workdir=W"] if of_paths else ["--workdir=W"]
        rows["command"] = f"`python -m vdm.main {shlex.join(flags)}`"
    cores = f"{first['cores']} cores" if first.get("cores") else ""
    rows["devices"] = ", ".join(filter(None, [first.get("devices"), first.get("processor"), cores]))
    return "".join(f"| {name} | {text} |\n" for name, text in rows.items())


def _evaluated(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """eval.json, if it is complete and of this step; otherwise {}."""
    try:
        found = json.loads((workdir / "eval.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("step") == step else {}


def _likelihood(found: dict[str, Any]) -> str:
    if not found:
        return "Its likelihood was not evaluated."
    se, noise = found["bpd_se"], found.get("bpd_se_noise")
    error = "not known" if se is None else f"{se:.4f}"  # from a single image
    of_noise = f", {noise:.4f} of it Monte-Carlo noise" if noise else ""
    images = fingerprint.named(found.get("data", "not taken"))
    return (
        f"**{found['bpd']:.4f} ± {error} bits/dim** ({found['estimator']}; standard error{of_noise}) on "
        f"{found['images']} test images, fingerprint {images}, each evaluated {found['passes']} times."
    )
