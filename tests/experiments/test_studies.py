"""What the studies measure of a run, against numbers found in another way."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from conftest import run
from experiments import depth, fourier_features, noise_schedules, time_samplers, workdirs
from vdm import run as run_lib
from vdm.data import dataset as data_lib
from vdm.diffusion import elbo
from vdm.runtime import workdir as workdir_lib
from vdm.runtime.randomness import Rng


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny run with independent times."""
    folder = tmp_path_factory.mktemp("study") / "piecewise-0"
    fields = {"config.model.times": "iid", "config.model.schedule.name": "piecewise"}
    done = run(folder, **fields)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def few_depths(monkeypatch):
    monkeypatch.setattr(depth, "EVALUATED", (10, 0))


@pytest.fixture(scope="module")
def variances(workdir):
    """The variance of one draw of each test image's bits/dim, [images], by 200 draws in another way."""
    this = run_lib.restore(workdir_lib.get_config(workdir / "config.json"), workdir)
    images = this.data.test.size
    batch = next(data_lib.eval_batches(this.data.test, images))

    @jax.jit
    def once(number):
        rng = Rng(jax.random.fold_in(jax.random.key(77), number), jnp.arange(images), images)
        return sum(this.model.loss(this.state.ema, rng, batch, False).values())

    nats = np.stack([once(number) for number in range(200)]).astype(np.float64)
    return elbo.bits_per_dim(nats, this.data.spec.shape).var(axis=0, ddof=1)


def test_variance_of_a_draw(workdir, variances):
    found = noise_schedules.measure(workdir)
    mean, se = noise_schedules.mean_variance([found])
    assert mean == pytest.approx(variances.mean(), abs=4 * 2 * se)
    for name in ("before", "after"):
        gamma = np.array(found[name])
        np.testing.assert_allclose(gamma[[0, -1], 0], [-9.0, 5.0], atol=1e-4)
        assert np.all(np.diff(gamma[:, 0]) > 0)
    assert not np.allclose(found["before"], found["after"], atol=1e-4)
    # Kept: a second look takes it from the file.
    found = workdirs.kept(workdir, "schedule", lambda _: found)
    assert workdirs.kept(workdir, "schedule", None) == found == json.loads((workdir / "schedule.json").read_text())


def test_variance_of_a_batch_of_independent_times(workdir, variances):
    """Of n pictures it is the mean of theirs, divided by n."""
    variance, se = time_samplers.batch_variance(workdir)
    size = 16  # of TINY's batches: the first test images
    assert variance == pytest.approx(variances[:size].mean() / size, abs=4 * np.sqrt(2) * se)


def test_depth_without_a_chain_is_the_runs_own_number(workdir):
    numbers = depth.at_each_depth(workdir)
    own = json.loads((workdir / "eval.json").read_text())
    assert numbers["T=inf"] == pytest.approx((own["bpd"], own["bpd_se"]), rel=1e-4)
    assert numbers["T=10"][0] > numbers["T=inf"][0]


def test_studies_write_tables_and_figures(workdir, tmp_path):
    found = {"piecewise": [workdir]}
    for study in (noise_schedules, time_samplers, depth, fourier_features):
        out = tmp_path / study.__name__
        out.mkdir()
        files = study.results_of(out, found)
        assert all(path.stat().st_size for path in files)
        assert {"table.md", "curves.png", "curves.pdf"} <= {path.name for path in files}
    with (tmp_path / "experiments.noise_schedules" / "table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    mean, se = noise_schedules.mean_variance([noise_schedules.measure(workdir)])
    assert float(row["variance of a draw"]) == pytest.approx(mean)
    assert float(row["variance of a draw_se"]) == pytest.approx(se)


def test_grids_set_fields_that_there_are():
    for study in (noise_schedules, time_samplers, depth, fourier_features):
        variants = study.grid(digits.get_config())
        assert len({json.dumps(fields) for fields in variants.values()}) == len(variants) >= 4
        for fields in variants.values():
            digits.get_config().update_from_flattened_dict(fields)  # raises where there is none
