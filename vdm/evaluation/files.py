"""The files that --mode=eval leaves in a workdir."""

from collections.abc import Sequence
import csv
import pathlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm import estimate
from vdm.evaluation.denoised import Denoised
from vdm.evaluation.depth import depths
from vdm.evaluation.elbo import elbo_name
from vdm.evaluation.estimators import Measured
from vdm.evaluation.profile import EDGES, Profile
from vdm.evaluation.table import Row, difference
from vdm.reporting import eval_figures
from vdm.run import Run
from vdm.runtime.atomic import whole, write_text


def write_estimates(
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


def write_profile(
    workdir: pathlib.Path,
    config: ConfigDict,
    run: Run,
    measured: Measured,
    profile: Profile,
    denoised: Denoised,
) -> list[str]:
    """Writes profile.csv, density.png and distortion.png, and depth.png where the depths were measured;
    returns their names."""
    spec, model = run.data.spec, run.model
    (continuous,) = (row for row in measured.rows if row.name == elbo_name(0))
    gamma = model.gamma(run.state.ema, jnp.asarray(EDGES, jnp.float32))
    prior = continuous.estimate.mean["prior"] + continuous.estimate.mean.get("context", 0.0)
    # Where each value has a γ of its own, the mean over values, with a context of 0.
    mean_gamma = gamma.reshape(len(EDGES), -1).mean(axis=1)
    columns = profile.summary(np.asarray(mean_gamma), prior, spec.shape, spec.vocab_size)
    _write_columns(workdir / "profile.csv", columns)
    eval_figures.save_density(workdir / "density.png", columns, continuous.estimate.mean["diffusion"])
    eval_figures.save_distortion(workdir / "distortion.png", columns, *denoised)
    written = ["profile.csv", "density.png", "distortion.png"]
    if "depth" not in measured.series:
        (workdir / "depth.png").unlink(missing_ok=True)  # it is of another evaluation
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
    """Columns of one length as a CSV; those of edges are left out."""
    names = [name for name in columns if not name.endswith("edges")]
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(zip(*(columns[name] for name in names)))


def _write_images(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """The bits/dim of each test image by each row, and by the first also each term."""
    first, *others = rows
    terms = first.estimate.values.items()
    columns = {first.name if name == "bpd" else f"{first.name} {name}": values for name, values in terms}
    columns |= {row.name: row.estimate.values["bpd"] for row in others if not row.other_images}
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *columns])
        writer.writerows(
            [i, *(values[i] if i < len(values) else "" for values in columns.values())]
            for i in range(first.estimate.images)
        )
