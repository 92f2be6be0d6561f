"""The ELBO of one trained model under other noise schedules between its own end points.

  python -m experiments.schedule_invariance --workdir=runs/digits

In continuous time it does not depend on the schedule (VDM sec. 5.1); the noise of its estimate
does. Each row gives the standard error from Monte-Carlo noise twice, for one number of network
evaluations: with vdm's draws (times and noise spread over the passes, times where the loss
varies), and with times and noise drawn independently. Prints a Markdown table, and writes it to
schedule_invariance.md in the workdir.
"""

import dataclasses
import pathlib
import sys

from absl import app, flags, logging
from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm.diffusion import model as diffusion_lib
from vdm.evaluation import estimators, evaluate
from vdm.reporting import report
from vdm import run as run_lib
from vdm.diffusion import schedule
from vdm.runtime import workdir as workdir_lib
from vdm.errors import UserError, require
from vdm.runtime.randomness import Rng

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "A trained workdir of a diffusion model.", required=True)
flags.DEFINE_integer("passes", 100, "Times each test image is evaluated, for each number.")


class Bent(nn.Module):
    """γ_0 + (γ_1 − γ_0) (t + bend · t (1 − t)): slow at first where −1 < bend < 0, fast where
    0 < bend < 1."""

    gamma_min: float
    gamma_max: float
    bend: float

    def __call__(self, t):
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t * (1.0 + self.bend * (1.0 - t))


def schedules(model, params):
    """Name → (schedule, its parameters), all from γ_0 to γ_1 of the trained one."""
    low, high = (float(g) for g in model.gamma(params, jnp.array([0.0, 1.0])))
    return {
        "as trained": (model.schedule, params["schedule"]),
        "cosine": (schedule.Cosine(low, high), {}),
        "linear_beta": (schedule.LinearBeta(low, high), {}),
        "slow at first": (Bent(low, high, -0.9), {}),
        "fast at first": (Bent(low, high, 0.9), {}),
    }


def independent(config, this, passes):
    """The Estimate by i.i.d. times and noise, one set for each pass."""
    plain = dataclasses.replace(this.model, times="iid")

    def loss(params, rng, batch, _):
        key = jax.random.fold_in(rng.key, rng.number)
        return plain.loss(params, Rng(key, rng.index, rng.images), batch, False)

    terms = estimators.passes(loss, config, this, passes, "independent draws")
    sets = [(1, {name: nats[k] for name, nats in terms.items()}) for k in range(passes)]
    return evaluate.combine(sets, this.data.spec.shape)


def run(workdir, passes):
    """The rows: name, bits/dim, s.e. from noise, the same by independent draws, their ratio."""
    require(passes >= 2, f"--passes is {passes}; accepted: 2 or more.")
    require(
        workdir_lib.newest(workdir) is not None, f"--workdir is {str(workdir)!r}, which has no checkpoint."
    )
    config = workdir_lib.get_config(workdir / "config.json")
    this = run_lib.restore(config, workdir)
    require(
        isinstance(this.model, diffusion_lib.Diffusion)
        and this.model.timesteps == 0
        and not isinstance(this.model.schedule, schedule.Multivariate),
        f"the model of {str(workdir)!r} is none of continuous time with one γ for all values, so it is not invariant.",
    )
    rows = []
    for name, (made, made_params) in schedules(this.model, this.state.ema).items():
        model = dataclasses.replace(this.model, schedule=made)
        params = this.state.ema | {"schedule": made_params}
        other = this._replace(model=model, state=this.state._replace(ema=params))
        spread, _ = evaluate.make_evaluator(model, config, this.data)(
            params, passes, progress=True, what=name
        )
        iid = independent(config, other, passes)
        noise, noise_iid = spread.noise["bpd"], iid.noise["bpd"]
        rows.append(
            (name, spread.mean["bpd"], noise, iid.mean["bpd"], noise_iid, noise / noise_iid)
        )
        print(f"{name}: {rows[-1][1]:.4f} ± {noise:.4f}", flush=True)
    return rows


def main(argv):
    """Prints and writes the table."""
    logging.set_verbosity(logging.ERROR)  # the libraries' own reports are not the study's
    workdir = pathlib.Path(FLAGS.workdir)
    try:
        require(not argv[1:], f"{' '.join(argv[1:])!r} is no flag; see --help.")
        rows = run(workdir, FLAGS.passes)
    except UserError as error:
        sys.exit(f"error: {error}")
    header = ("schedule", "bits/dim", "± noise", "i.i.d.: bits/dim", "± noise", "ratio of noise")
    cells = [[name, *(f"{number:.4f}" for number in numbers)] for name, *numbers in rows]
    table = report.markdown_table(header, cells)
    print(f"\n{table}\n\nEach of {FLAGS.passes} passes over the test images.")
    (workdir / "schedule_invariance.md").write_text(table + "\n")


if __name__ == "__main__":
    app.run(main)
