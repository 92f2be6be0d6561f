"""The study of the identity: its sums over a grid against those of test_vae.py, and its whole."""

import csv

import jax
import numpy as np
import pytest
from scipy import stats

import test_vae
from experiments import identity
from test_models import one_device, tiny  # noqa: F401
from vdm import train


@pytest.mark.parametrize("latent", [1, 2])
def test_sums_over_the_grid(latent):
    """log p(x), and the KL to the posterior by densities of SciPy on another grid."""
    built, params = test_vae.made(latent)
    log_p, kl, mass, posterior = identity.integrate(built, params, test_vae.PICTURES)
    z, cell, log_prior, log_p_x = test_vae.integrated(built, params)
    want = np.log(np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell)
    np.testing.assert_allclose(log_p, want, atol=1e-4)
    np.testing.assert_allclose(mass, 1.0, atol=1e-4)
    q = jax.tree.map(np.asarray, built.encode(params, test_vae.PICTURES))
    for i in range(len(log_p)):
        log_q = stats.norm.logpdf(z, q.mean[i], np.exp(0.5 * q.log_variance[i])).sum(axis=1)
        log_posterior = log_prior + log_p_x[:, i] - want[i]
        assert kl[i] == pytest.approx(np.sum(np.exp(log_q) * (log_q - log_posterior)) * cell, abs=1e-4)
    if latent == 2:
        density, mean, deviation = posterior
        area = (2 * identity.HALF / (identity.POINTS[2] - 1)) ** 2
        np.testing.assert_allclose(density.sum(axis=(1, 2)) * area, 1.0, atol=1e-4)
        np.testing.assert_allclose(mean, q.mean[:4])
        np.testing.assert_allclose(deviation, np.exp(0.5 * q.log_variance[:4]), rtol=1e-6)
    else:
        assert posterior is None


def test_both_sides_of_a_trained_model_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "PASSES", 40)
    monkeypatch.setattr(identity, "POINTS", {2: 161})
    folder = tmp_path / "latent=2-0"
    folder.mkdir()
    train.run(tiny("vae", **{"model.latent": 2, "train.steps": 4, "train.checkpoint_every": 4, "eval.images": 50}), folder)
    identity.results_of(tmp_path, {"latent=2": [folder]})
    with (tmp_path / "identity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4"]
    for row in rows:
        row = {name: float(value) for name, value in row.items() if name != "variant"}
        assert row["apart"] == pytest.approx(row["log_p"] - row["elbo"] - row["kl"], abs=1e-9)
        assert abs(row["apart"]) < 4 * row["apart_se"] < 0.02 and row["kl"] > 0
    assert (tmp_path / "identity.png").stat().st_size > 10_000
