"""The studies' measurements of a run, against numbers computed in another way."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist

from conftest import make_config
from experiments import (
    depth,
    encoders,
    fourier_features,
    noise_schedules,
    objectives,
    schedule_invariance,
    time_samplers,
)
from model_helpers import save_run, tiny_config
from record_helpers import read_csv
from vdm import run as run_lib, workdir as workdir_lib
from vdm.contract import bits_per_dim
from vdm.data.batches import eval_batches
from vdm.data.dataset import Spec
from vdm.diffusion.denoiser import Eps
from vdm.errors import UserError
from vdm.runtime.randomness import Rng
from vdm.sweep import plan, workdirs
from vdm.sweep.study import table_and_curves

STUDIES = (noise_schedules, time_samplers, depth, fourier_features, encoders, objectives)


pytestmark = pytest.mark.usefixtures("single")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny run with independent times and a learned schedule."""
    fields = {
        "model.times": "iid",
        "model.schedule.name": "piecewise",
        "model.net.name": "mlp",
        "objective.name": "least_variance",
    }
    return save_run(tmp_path_factory.mktemp("study") / "piecewise-0", tiny_config("digits", **fields))


@pytest.fixture(autouse=True)
def few_depths(monkeypatch):
    monkeypatch.setattr(depth, "EVALUATED", (10, 0))


@pytest.fixture(scope="module")
def variances(workdir):
    """The variance of a single draw of each test image's bits/dim, [images], from 200 separate draws."""
    run = run_lib.restore(workdir_lib.read_config(workdir), workdir)
    images = run.data.test.size
    batch = next(eval_batches(run.data.test, images))

    @jax.jit
    def once(number):
        rng = Rng(jax.random.fold_in(jax.random.key(77), number), jnp.arange(images), images)
        return sum(run.model.draw(run.state.ema, rng, batch).terms.values())

    nats = np.stack([once(number) for number in range(200)]).astype(np.float64)
    return bits_per_dim(nats, run.data.spec.shape).var(axis=0, ddof=1)


@pytest.mark.slow
def test_variance_of_a_draw(workdir, variances):
    found = noise_schedules.measure(workdir)
    mean, se = noise_schedules.mean_variance([found])
    assert mean == pytest.approx(variances.mean(), abs=4 * 2 * se)
    for name in ("before", "after"):
        gamma = np.array(found[name])
        np.testing.assert_allclose(gamma[[0, -1], 0], [-9.0, 5.0], atol=1e-4)
        assert np.all(np.diff(gamma[:, 0]) > 0)
    assert not np.allclose(found["before"], found["after"], atol=1e-4)
    # The result is kept: a second call reads it from the file.
    found = workdirs.kept(workdir, "schedule", lambda _: found)
    assert workdirs.kept(workdir, "schedule", None) == found
    assert json.loads((workdir / "schedule.json").read_text()) == found


@pytest.mark.slow
def test_variance_of_a_batch_of_independent_times(workdir, variances):
    """For n images it is the mean of their variances, divided by n."""
    variance, se = time_samplers.batch_variance(workdir)
    size = 16  # the batch size of TINY: the first test images
    assert variance == pytest.approx(variances[:size].mean() / size, abs=4 * np.sqrt(2) * se)


def test_depth_without_a_chain_is_the_runs_own_number(workdir):
    numbers = depth.at_each_depth(workdir)
    own = json.loads((workdir / "eval.json").read_text())
    bits = {name: np.mean(of["bpd"]) for name, of in numbers.items()}
    assert bits["T=inf"] == pytest.approx(own["bpd"], rel=1e-4)
    assert numbers["T=inf"]["se"] == pytest.approx(own["bpd_se"], rel=1e-4)
    assert bits["T=10"] > bits["T=inf"]


def test_what_a_finite_depth_costs():
    rng = np.random.default_rng(0)
    images, seeds = rng.normal(size=40), rng.normal(size=3)

    def run(seed, more):
        add = {10: 2.0, 0: 0.0}  # see `few_depths`
        return {t: depth.Estimate(images + seeds[seed] + add[t] + more, 0.1) for t in depth.EVALUATED}

    given = {"T=100": {seed: run(seed, 0.0625) for seed in (2, 1)}}
    given["T=inf"] = {seed: run(seed, 0.0) for seed in range(3)}
    rows = [row for row in depth.costs(given).splitlines() if row.startswith("| T=")]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    # In evaluation, T=10 less T=inf; in training, at each T of evaluation. Images and seeds cancel.
    in_evaluation = [["T=100", "+2.0000 ± 0.0000"], ["T=inf", "+2.0000 ± 0.0000"]]
    assert cells == [*in_evaluation, ["T=100", *["+0.0625 ± 0.0000"] * 2]]
    assert depth.cost_of_training({"T=100": given["T=100"]}) == {}


@pytest.mark.slow
def test_studies_write_tables_and_figures(workdir, tmp_path):
    found = {"piecewise": [workdir]}
    drawn = np.random.default_rng(1).integers(0, 17, (20, 8, 8, 1)).astype(np.uint8)
    np.savez(workdir / "samples.npz", image=drawn)
    for study in STUDIES:
        out = tmp_path / study.__name__
        out.mkdir()
        files = getattr(study, "results_of", table_and_curves)(out, found)
        assert all(path.stat().st_size for path in files)
        assert {"table.md", "curves.png", "curves.pdf"} <= {path.name for path in files}
    (row,) = read_csv(tmp_path / "experiments.noise_schedules" / "table.csv")
    kept = json.loads((workdir / "schedule.json").read_text())
    mean, se = noise_schedules.mean_variance([kept])
    assert float(row["variance of a draw"]) == pytest.approx(mean)
    assert float(row["variance of a draw_se"]) == pytest.approx(se)
    # The ELBO does not depend on the schedule between its end points.
    noise = json.loads((workdir / "eval.json").read_text())["bpd_se_noise"]
    assert float(row["with a linear γ(t)"]) == pytest.approx(float(row["bpd"]), abs=4 * noise)
    (row,) = read_csv(tmp_path / "experiments.objectives" / "table.csv")
    held_out = run_lib.restore(workdir_lib.read_config(workdir), workdir).data.test
    x, y = ((i.reshape(len(i), -1) + 0.5) / 17 * 2 - 1 for i in (drawn, objectives.images_of(held_out)))
    across, within_x, within_y = cdist(x, y).mean(), pdist(x).mean(), pdist(y).mean()
    assert float(row["energy distance"]) == pytest.approx(2 * across - within_x - within_y, rel=1e-5)
    rows = read_csv(tmp_path / "experiments.depth" / "depth.csv")
    assert [row["evaluated"] for row in rows] == ["T=10", "T=inf"] and rows[0]["trained"] == "piecewise"


@pytest.mark.parametrize(
    "samples, match", [(None, "samples.npz' does not exist"), (1, "samples.npz' has one sample")]
)
def test_a_distance_needs_samples(samples, match, tmp_path):
    if samples:
        np.savez(tmp_path / "samples.npz", image=np.zeros((samples, 8, 8, 1), np.uint8))
    with pytest.raises(UserError, match=f"{match}; draw more: .*--mode=sample --workdir={tmp_path}"):
        objectives.measure(tmp_path)


@pytest.mark.parametrize("file, spec", [("digits", ((8, 8, 1), 17)), ("cifar10_laptop", ((32, 32, 3), 256))])
@pytest.mark.parametrize("study", STUDIES)
def test_grids_describe_models_that_can_be_built(study, file, spec, tmp_path):
    given = ["--config.train.keep=3"]
    trials = plan.make_trials(study.grid, f"configs/{file}.py", given, tmp_path, 1)
    assert len({str(trial.config) for trial in trials}) == len(trials) >= 4
    assert all(trial.config.train.keep == 3 for trial in trials)
    for trial in trials:
        run_lib.build_model(trial.config, Spec(*spec, 10))


def test_waves_change_what_the_network_is_given_and_nothing_else():
    z, gamma = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.array([-3.0, 1.0])
    seen = []

    def net(given):
        seen.append(given)
        return given[..., :1] + given[..., -1:]

    found = fourier_features.EpsOfWaves().eps_hat(net, z, gamma[:, None, None, None], {}, 16)
    waves = [wave(2.0 * np.pi * f * z) for wave in (np.sin, np.cos) for f in (8.0, 4.0)]
    np.testing.assert_allclose(seen[0], np.concatenate([z, *waves], axis=-1), atol=2e-5)
    fourier_features.EpsOfWaves(highest=0.3).eps_hat(net, z, gamma[:, None, None, None], {}, 16)
    np.testing.assert_allclose(seen.pop()[..., 2], np.sin(2.0 * np.pi * 0.3 * 4.0 * z[..., 0]), atol=2e-5)
    of_eps = Eps().eps_hat(lambda given: given + waves[-1], z, gamma[:, None, None, None], {}, 16)
    np.testing.assert_allclose(found, of_eps, atol=2e-5)


@pytest.mark.slow
def test_other_schedules_between_the_ends_that_were_learned():
    """The end points are the trained ones, and at equal γ so is the denoiser: it sees γ as before."""
    config = make_config({"model.net.name": "mlp", "model.net.depth": 1}, "configs/digits.py")
    model = run_lib.build_model(config, Spec((8, 8, 1), 17, 10))
    batch = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
    params = model.init(jax.random.key(0), batch)
    params["net"] = jax.tree.map(lambda v: v + 0.1, params["net"])
    params["schedule"]["params"] |= {"start": jnp.float32(-7.0), "width": jnp.float32(10.0)}
    assert schedule_invariance.is_invariant(model)
    z, gamma = jnp.ones((2, 8, 8, 1)), jnp.array([-6.0, 1.0])
    want = model.eps_hat(params, z, gamma, None)
    for name, (schedule, own) in schedule_invariance.schedules(model, params).items():
        other = dataclasses.replace(model, schedule=schedule)
        changed = params | {"schedule": own}
        t = jnp.array([0.0, 0.5, 1.0])
        low, middle, high = other.gamma(changed, t)
        np.testing.assert_allclose([low, high], [-7.0, 3.0], atol=1e-3)
        assert (abs(middle + 2.0) < 1e-3) == (name == "as trained")
        np.testing.assert_array_equal(other.eps_hat(changed, z, gamma, None), want)
