"""The density of a run's bits over γ."""

import pathlib

from vdm import run as run_lib, workdir as workdir_lib
from vdm.contract import Ability
from vdm.errors import require
from vdm.evaluation.elbo import make_elbo
from vdm.evaluation.profile import gamma_at_edges, in_continuous_time


def density(folder: pathlib.Path) -> dict[str, list[float]]:
    """The density of a run's diffusion term over γ, in continuous time: "gamma" at the edges of bins, and
    "per_gamma", the bits/dim per unit of γ in each bin."""
    config = workdir_lib.read_config(folder)
    run = run_lib.restore(config, folder)
    require(
        Ability.TIME in run.model.abilities,
        f"{str(folder)!r} has no γ; leave out the panels gamma and density.",
    )
    model = in_continuous_time(run.model)
    gamma = gamma_at_edges(model, run.state.ema)
    evaluate = make_elbo(model, config, run.data)
    _, profile = evaluate(run.state.ema, config.eval.passes, progress=True, title=f"{folder.name}, over γ")
    assert profile is not None  # as the model draws a time
    columns = profile.summary(gamma, 0.0, run.data.spec.shape, run.data.spec.vocab_size)
    return {"gamma": gamma.tolist(), "per_gamma": columns["per_gamma"].tolist()}
