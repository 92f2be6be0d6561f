"""--mode=eval: the likelihood of the test split by independent estimators, in one table."""

import pathlib

import jax
from ml_collections import ConfigDict

from vdm.contract import Ability
from vdm.evaluation import estimators, files
from vdm.evaluation.denoised import denoise
from vdm.evaluation.table import tables
from vdm.run import Run, restore
from vdm.runtime import lock


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Prints the table of config.eval.estimators, and writes it into the workdir.

    Leaves there, or in its folder step-STEP while it still trains, the files eval.md, eval.json and
    eval_images.csv; for a model with a denoiser also profile.csv, density.png and distortion.png; and
    depth.png where "depth" is among the estimators.

    Raises:
      UserError: the workdir has no checkpoint, or a field of config.eval is not accepted.
    """
    estimators.check(config)
    restored = restore(config, workdir)
    chosen = estimators.choose(config, restored.model)
    step = int(restored.state.step)
    heading = f"{config.data.name}, test split, step {step}, EMA{_choice(config, restored)}"
    first_host = jax.process_index() == 0
    if first_host:
        print(heading, flush=True)
    measured = estimators.measure(config, restored, chosen)
    profile = measured.profile if Ability.DENOISER in restored.model.abilities else None
    denoised = denoise(config, restored) if profile is not None else None
    if not first_host:
        return

    text = tables(measured.rows, measured.series, measured.checks)
    if len(chosen) > 1:
        print("\n" + text)
    with lock.place_for_results(workdir, step) as place:
        written = files.write_estimates(place, heading, text, measured, step)
        if profile is not None and denoised is not None:
            written += files.write_profile(place, config, restored, measured, profile, denoised)
    print(f"{place}: {', '.join(written)}")


def _choice(config: ConfigDict, run: Run) -> str:
    """By what the checkpoint was chosen."""
    if config.eval.checkpoint == "newest":
        return ""
    if run.data.validation is None:
        return (
            ", the best by these test images themselves, so that it looks too good (config.data.validation)"
        )
    return f", the best by {run.data.validation.size} validation images"
