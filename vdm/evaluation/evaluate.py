"""--mode=eval: the likelihood of the test split by independent estimators, in one table and in files."""

from collections.abc import Sequence
import csv
import pathlib
from typing import Any

import jax
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm import estimate
from vdm.contract import Ability
from vdm.evaluation import estimator
from vdm.evaluation.denoised import Denoised, denoise
from vdm.evaluation.depth import depths
from vdm.evaluation.estimator import Measured
from vdm.evaluation.profile import Profile, gamma_at_edges
from vdm.evaluation.table import Row, difference, tables
from vdm.reporting import eval_figures
from vdm.run import Run, restore
from vdm.runtime import lock
from vdm.runtime.atomic import atomic_path, write_text


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Prints the table of config.eval.estimators, and writes it into the workdir.

    Writes eval.md, eval.json and eval_images.csv into the workdir, or into its folder step-STEP while the run
    is training; for a model with a denoiser also profile.csv, density.png and distortion.png; and depth.png
    if "depth" is among the estimators.

    Raises:
      UserError: the workdir has no checkpoint, or a field of config.eval is not accepted.
    """
    estimator.check(config)
    restored = restore(config, workdir)
    chosen = estimator.choose(config, restored.model)
    step = int(restored.state.step)
    heading = f"{config.data.name}, test split, step {step}, EMA{_choice(config, restored)}"
    first_host = jax.process_index() == 0
    if first_host:
        print(heading, flush=True)
    measured = estimator.measure(config, restored, chosen)
    profile = measured.profile if Ability.DENOISER in restored.model.abilities else None
    denoised = denoise(config, restored) if profile is not None else None
    gamma = None if profile is None else gamma_at_edges(restored.model, restored.state.ema)
    if not first_host:
        return

    text = tables(measured.rows, measured.series, measured.checks)
    if len(chosen) > 1:
        print("\n" + text)
    with lock.place_for_results(workdir, step) as place:
        written = _write_estimates(place, heading, text, measured, step)
        if profile is not None and denoised is not None and gamma is not None:
            written += _write_profile(place, config, restored, measured, profile, gamma, denoised)
    print(f"{place}: {', '.join(written)}")


def _choice(config: ConfigDict, run: Run) -> str:
    """How the checkpoint was selected, for the heading."""
    if config.eval.checkpoint == "newest":
        return ""
    if run.data.validation is None:
        return (
            ", the best checkpoint by these test images, which makes the number too good "
            "(config.data.validation)"
        )
    return f", the best checkpoint by {run.data.validation.size} validation images"


def _write_estimates(
    workdir: pathlib.Path, heading: str, text: str, measured: Measured, step: int
) -> list[str]:
    """Writes eval.md, eval.json and eval_images.csv; returns their names."""
    rows, series, checks, _ = measured
    write_text(workdir / "eval.md", f"{heading}\n\n{text}")
    more: dict[str, Any] = {name: [row.json() for row in some] for name, some in series.items()}
    if len(rows) > 1:
        more |= {"rows": [row.json() for row in rows]}
    more |= {"checks": checks} if checks else {}
    more["of"] = heading
    estimate.write_json(workdir / "eval.json", rows[0].estimate, step, more)
    _write_images(workdir / "eval_images.csv", [*rows, *series.get("depth", [])])
    return ["eval.md", "eval.json", "eval_images.csv"]


def _write_profile(
    workdir: pathlib.Path,
    config: ConfigDict,
    run: Run,
    measured: Measured,
    profile: Profile,
    gamma: Float[np.ndarray, "edges"],
    denoised: Denoised,
) -> list[str]:
    """Writes profile.csv, density.png and distortion.png, and depth.png if the depths were measured; returns
    their names."""
    spec = run.data.spec
    continuous = next(row for row in measured.rows if row.depth == 0)
    prior = continuous.estimate.mean["prior"] + continuous.estimate.mean.get("context", 0.0)
    columns = profile.summary(gamma, prior, spec.shape, spec.vocab_size)
    _write_columns(workdir / "profile.csv", columns)
    eval_figures.save_density(workdir / "density.png", columns, continuous.estimate.mean["diffusion"])
    eval_figures.save_distortion(workdir / "distortion.png", columns, *denoised)
    written = ["profile.csv", "density.png", "distortion.png"]
    if "depth" not in measured.series:
        (workdir / "depth.png").unlink(missing_ok=True)  # it belongs to an earlier evaluation
        return written
    *finite, infinite = measured.series["depth"]
    eval_figures.save_depth(
        workdir / "depth.png",
        depths(config),
        [row.estimate.mean["bpd"] for row in measured.series["depth"]],
        *zip(*(difference(row, infinite) for row in finite)),
    )
    return [*written, "depth.png"]


def _write_columns(path: pathlib.Path, columns: dict[str, Float[np.ndarray, "columns"]]) -> None:
    """Writes the columns as a CSV file, except those of edges, which are longer."""
    names = [name for name in columns if not name.endswith("edges")]
    with atomic_path(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*(columns[name] for name in names)))


def _write_images(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes the bits/dim of each test image for each row, and each term of the first row."""
    first, *others = rows
    terms = first.estimate.values.items()
    columns = {first.key if name == "bpd" else f"{first.key} {name}": values for name, values in terms}
    columns |= {row.key: row.estimate.values["bpd"] for row in others if not row.other_images}
    estimate.write_images(path, columns, first.estimate.images)
