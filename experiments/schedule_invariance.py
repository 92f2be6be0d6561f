"""The ELBO of one trained model under other noise schedules between its end points.

  python -m experiments.schedule_invariance --workdir=runs/digits

In continuous time the ELBO does not depend on the schedule (VDM sec. 5.1), but the noise of its estimate
does. Each row gives the Monte-Carlo standard error twice, for the same number of network evaluations: with
vdm's draws (times and noise spread over the passes, more times where the loss varies), and with independent
times and noise. Prints a Markdown table, and writes it to schedule_invariance.md in the workdir.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from absl import flags
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict
import numpy as np

from vdm import run as run_lib, workdir as workdir_lib
from vdm.contract import Ability, Model, Params
from vdm.diffusion.schedule import Cosine, LinearBeta, Schedule
from vdm.diffusion.times import IID
from vdm.errors import require
from vdm.estimate import Estimate, combine
from vdm.evaluation.elbo import make_elbo
from vdm.evaluation.passes import run_passes
from vdm.reporting.text import markdown_table
from vdm.sweep import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "A trained workdir of a diffusion model.", flag_values=FLAGS)
flags.DEFINE_integer("passes", 100, "Passes over the test images, for each number.", flag_values=FLAGS)

HEADER = ("schedule", "bits/dim", "± noise", "i.i.d.: bits/dim", "± noise", "ratio of noise")
Row = tuple[str, float, float, float, float, float]


class Bent(Schedule):
    """γ_0 + (γ_1 − γ_0) (t + bend · t (1 − t)): slow at first for −1 < bend < 0, fast for 0 < bend < 1."""

    bend: float = 0.0

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t * (1.0 + self.bend * (1.0 - t))


class Instead(Schedule):
    """Another schedule in place of the trained one. gamma_min and gamma_max remain the trained schedule's
    initial values, as the network's input is γ relative to them."""

    other: Schedule | None = None

    @property
    def learned_ends(self) -> bool:
        """True, as the end points are not the initial values."""
        return True

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        assert self.other is not None  # a default value, as the fields before it have some
        return self.other(t)


def instead(model: Any, params: Params, kind: type[Schedule], **fields: float) -> Instead:
    """A schedule of this kind in place of the trained one, with the same end points."""
    low, high = (float(g) for g in model.gamma(params, jnp.array([0.0, 1.0])))
    other = kind(shape=model.shape, gamma_min=low, gamma_max=high, **fields)
    trained = model.schedule
    return Instead(shape=model.shape, gamma_min=trained.gamma_min, gamma_max=trained.gamma_max, other=other)


def schedules(model: Any, params: Params) -> dict[str, tuple[Schedule, Any]]:
    """{name: (a schedule, its parameters)}, all from γ_0 to γ_1 of the trained schedule."""
    return {
        "as trained": (model.schedule, params["schedule"]),
        "cosine": (instead(model, params, Cosine), {}),
        "linear_beta": (instead(model, params, LinearBeta), {}),
        "slow at first": (instead(model, params, Bent, bend=-0.9), {}),
        "fast at first": (instead(model, params, Bent, bend=0.9), {}),
    }


def under(run: run_lib.Run, schedule: Schedule, params: Params) -> run_lib.Run:
    """The run with another schedule and its parameters."""
    model: Any = run.model
    model = dataclasses.replace(model, schedule=schedule)
    return run._replace(model=model, state=run.state._replace(ema=run.state.ema | {"schedule": params}))


def independent_draws(
    config: ConfigDict, run: run_lib.Run, passes: int, title: str
) -> dict[str, Float[np.ndarray, "passes images"]]:
    """The terms of each test image's ELBO, nats, by i.i.d. times and noise."""
    iid = lambda rng: IID().draw(rng, None)

    def one_draw(params, rng, batch, _):
        return run.model.draw(params, rng.alone(), batch, times=iid).terms

    return run_passes(one_draw, config, run, passes, title)


def independent_estimate(config: ConfigDict, run: run_lib.Run, passes: int) -> Estimate:
    """The Estimate from i.i.d. times and noise, one set for each pass."""
    terms = independent_draws(config, run, passes, "independent draws")
    sets = [(1, {name: nats[k] for name, nats in terms.items()}) for k in range(passes)]
    return combine(sets, run.data.spec.shape)


def is_invariant(model: Model) -> bool:
    """Whether the ELBO does not depend on the schedule between its end points."""
    return {Ability.DENOISER, Ability.ONE_GAMMA} <= model.abilities and model.depth == 0


def measure(workdir: pathlib.Path, passes: int) -> list[Row]:
    """The rows: name, bits/dim and its noise, both again from independent draws, and the ratio of the noise.

    Raises:
      UserError: the workdir has no checkpoint, or its model is not invariant.
    """
    require(passes >= 2, f"--passes is {passes}; accepted: 2 or more.")
    require(
        workdir_lib.newest(workdir) is not None, f"--workdir is {str(workdir)!r}, which has no checkpoint."
    )
    config = workdir_lib.read_config(workdir)
    run = run_lib.restore(config, workdir)
    require(
        is_invariant(run.model),
        f"the model of {str(workdir)!r} has no continuous time, or γ differs between the values of an "
        "image, so it is not invariant.",
    )
    rows: list[Row] = []
    for name, (schedule, schedule_params) in schedules(run.model, run.state.ema).items():
        other = under(run, schedule, schedule_params)
        evaluate = make_elbo(other.model, config, run.data)
        spread, _ = evaluate(other.state.ema, passes, progress=True, title=name)
        iid = independent_estimate(config, other, passes)
        noise, noise_iid = spread.noise["bpd"], iid.noise["bpd"]
        rows.append((name, spread.mean["bpd"], noise, iid.mean["bpd"], noise_iid, noise / noise_iid))
        print(f"{name}: {rows[-1][1]:.4f} ± {noise:.4f}", flush=True)
    return rows


def run(others: Sequence[str]) -> None:
    """Prints and writes the table."""
    command.refuse_others(others)
    require(FLAGS.workdir, "--workdir is missing; give the workdir of a run.")
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    rows = measure(workdir, FLAGS.passes)
    cells = [[name, *(f"{number:.4f}" for number in numbers)] for name, *numbers in rows]
    table = markdown_table(HEADER, cells)
    print(f"\n{table}\n\nEach of {FLAGS.passes} passes over the test images.")
    (workdir / "schedule_invariance.md").write_text(table + "\n")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, run)
