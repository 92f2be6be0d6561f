"""The study of the identity: its sums over a grid against SciPy on another grid, and the whole study."""

import csv
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from conftest import make_config
from experiments import identity
from model_helpers import save_run, tiny_config
from vdm import run as run_lib
from vdm.baselines import vae
from vdm.data.dataset import Spec

LEVELS, SHAPE = 3, (1, 2, 1)
IMAGES = np.array(list(itertools.product(range(LEVELS), repeat=2)), np.uint8).reshape(-1, *SHAPE)


pytestmark = pytest.mark.usefixtures("single")


def small_vae(latent):
    """A VAE for images of two values, and random parameters; q's are scaled down so that q is not a point."""
    fields = {"model.latent": latent, "model.net.depth": 1, "model.net.width": 16}
    model = run_lib.build_model(make_config(fields, "configs/vae.py"), Spec(SHAPE, LEVELS, 0))
    random = np.random.default_rng(0)

    def one(path, leaf):
        scale = 0.5 if path[0].key == "encoder" and path[-1].key in ("kernel", "bias") else 1.0
        value = scale * random.normal(size=leaf.shape) / max(2.0, np.sqrt(leaf.shape[0]))
        return jnp.asarray(value + (path[-1].key == "scale"), jnp.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), {})
    return model, jax.tree_util.tree_map_with_path(one, shapes)


def quadrature(model, params):
    """The points z, the weight of each, log p(z), and log p(x|z) [points, images]."""
    axis = np.linspace(-8.0, 8.0, 321 if model.latent == 1 else 81)
    z = np.stack(np.meshgrid(*[axis] * model.latent, indexing="ij"), axis=-1).reshape(-1, model.latent)

    @jax.jit
    def log_p(z, image):
        p_x = model.decode(params, z)
        return vae.log_likelihood(jnp.broadcast_to(image, (len(z), *SHAPE)), p_x, LEVELS)

    log_p_x = np.stack([log_p(z, image) for image in IMAGES], axis=1).astype(np.float64)
    return z, (axis[1] - axis[0]) ** model.latent, stats.norm.logpdf(z).sum(axis=1), log_p_x


@pytest.mark.parametrize("latent", [1, 2])
def test_sums_over_the_grid(latent):
    """log p(x) and the KL to the posterior, against SciPy's densities on another grid."""
    built, params = small_vae(latent)
    log_p, kl, mass, posterior = identity.integrate(built, params, IMAGES)
    z, cell, log_prior, log_p_x = quadrature(built, params)
    want = np.log(np.sum(np.exp(log_prior[:, None] + log_p_x), axis=0) * cell)
    np.testing.assert_allclose(log_p, want, atol=1e-4)
    np.testing.assert_allclose(mass, 1.0, atol=1e-4)
    q = jax.tree.map(np.asarray, built.encode(params, IMAGES))
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-4) and kl.min() > 1e-3
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


@pytest.mark.slow
def test_both_sides_of_a_run_agree(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "PASSES", 40)
    monkeypatch.setattr(identity, "POINTS", {2: 161})
    fields = {"model.latent": 2, "train.steps": 4, "eval.images": 50}
    folder = save_run(tmp_path / "latent=2-0", tiny_config("vae", **fields))
    identity.results_of(tmp_path, {"latent=2": [folder]})
    with (tmp_path / "identity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4"]
    for row in rows:
        row = {name: float(value) for name, value in row.items() if name != "variant"}
        assert row["apart"] == pytest.approx(row["log_p"] - row["elbo"] - row["kl"], abs=1e-9)
        assert abs(row["apart"]) < 4 * row["apart_se"] < 0.02 and row["kl"] > 0
    assert (tmp_path / "identity.png").stat().st_size > 10_000
