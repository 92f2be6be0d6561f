"""An estimate: its mean, its two error bars, its units."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import exact
from vdm.diffusion.times import distributed
from vdm.estimate import combine
from vdm.evaluation.elbo import SET
from vdm.evaluation.profile import UNIFORM
from vdm.runtime.randomness import QuasiRng


def test_combine_by_hand():
    """Two sets of 1 and 3 passes over two images: means, spread and both errors, in bits/dim."""
    nat = math.log(2.0) * 4  # one bit/dim in four dimensions
    sets = [(1, {"a": np.array([2.0, 4.0]) * nat}), (3, {"a": np.array([12.0, 12.0]) * nat})]
    estimate = combine(sets, (2, 2, 1))
    np.testing.assert_allclose(estimate.values["bpd"], [3.5, 4.0])
    # One degree of freedom: Σ n (m − mean)²/passes is 0.75 for one image and 0 for the other.
    assert estimate.noise["bpd"] == pytest.approx(math.sqrt((0.75 + 0.0) / 2 / 2))
    assert estimate.se["bpd"] == pytest.approx(0.25)
    assert math.isnan(combine(sets[:1], (2, 2, 1)).noise["bpd"])


@pytest.mark.parametrize("passes", [1, 4, 20])
def test_intervals_hold_the_truth_over_new_images(passes, single):
    """500 test sets of 100 images each are drawn from the model itself and evaluated as by make_elbo. The 95%
    interval contains the mean over all 50,000 images in 92 to 98% of the sets."""
    sets, images = 500, 100
    log_p = exact.log_probabilities((2, 2, 1), 4)
    model = exact.model(log_p, -9.0, 8.0)
    given, _ = exact.images(log_p, sets * images)
    given = given.reshape(sets, images, 2, 2, 1)
    parts = np.array_split(np.arange(passes), min(passes, max(2, round(passes / SET))))

    @jax.jit
    @jax.vmap
    def drawn(image, key, part, number, length):
        rng = QuasiRng(jax.random.fold_in(key, part), jnp.arange(images), number, jnp.int32(images), length)
        draw = model.draw(
            {"schedule": {}, "net": {}}, rng, {"image": image}, times=distributed(jnp.asarray(UNIFORM))
        )
        return sum(draw.terms.values())

    keys = jax.random.split(jax.random.key(0), sets)
    each = lambda value: np.full(sets, value, np.int32)
    found = []
    for number, part in enumerate(parts):
        sums = sum(
            np.asarray(drawn(given, keys, each(number), each(k), each(len(part))), np.float64)
            for k in range(len(part))
        )
        found.append((len(part), sums))
    estimates = [
        combine([(length, {"bpd": sums[i]}) for length, sums in found], (2, 2, 1)) for i in range(sets)
    ]
    means = np.array([estimate.mean["bpd"] for estimate in estimates])
    errors = np.array([estimate.se["bpd"] for estimate in estimates])
    print(passes, (np.abs(means - means.mean()) < 1.96 * errors).mean())
    held = np.abs(means - means.mean()) < 1.96 * errors
    assert 0.92 <= held.mean() <= 0.98
