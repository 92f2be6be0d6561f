"""The mirrored model: symmetric in evaluation, and equal to the plain model in training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_helpers import rng, small
from vdm.component import Refused
from vdm.methods.mirrored import Mirrored
from vdm.methods.multivariate import Multivariate


def both():
    """(a VDM, the mirrored model with the same fields, parameters, a batch)."""
    plain, params, batch = small(**{"model.parameterisation": "v"})
    params = jax.tree.map(lambda v: v + 0.1 * jax.random.normal(jax.random.key(1), v.shape), params)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    return plain, Mirrored(**fields), params, batch


@pytest.mark.parametrize("axis, upside_down", [(2, False), (2, True), (1, True)])
def test_an_image_is_treated_as_its_mirror_image(single, axis, upside_down):
    """So is an image upside down, if the mean includes it."""
    plain, mirrored, params, _ = both()
    z, gamma = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jnp.array([-5.0, 0.0, 3.0])
    turn = lambda z: jnp.flip(z, axis)
    of = lambda model, z: model.eps_hat(params, z, gamma, None)
    symmetric = dataclasses.replace(mirrored, upside_down=upside_down)
    np.testing.assert_allclose(of(symmetric, turn(z)), turn(of(symmetric, z)), rtol=1e-4, atol=1e-5)
    for other in [plain] + [mirrored] * (axis == 1):
        assert np.abs(of(other, turn(z)) - turn(of(other, z))).max() > 0.01


def test_it_is_the_mean_of_the_predictions_of_the_turned_images(single):
    plain, mirrored, params, _ = both()
    z, gamma = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jnp.array([-5.0, 0.0, 3.0])
    of = lambda model, z: np.asarray(model.eps_hat(params, z, gamma, None))
    parts = [
        of(plain, z),
        of(plain, z[:, :, ::-1])[:, :, ::-1],
        of(plain, z[:, ::-1])[:, ::-1],
        of(plain, z[:, ::-1, ::-1])[:, ::-1, ::-1],
    ]
    np.testing.assert_allclose(of(mirrored, z), np.mean(parts[:2], 0), rtol=1e-4, atol=1e-5)
    whole = dataclasses.replace(mirrored, upside_down=True)
    np.testing.assert_allclose(of(whole, z), np.mean(parts, 0), rtol=1e-4, atol=1e-5)


def test_the_network_must_not_be_told_which_is_the_mirror_image():
    with pytest.raises(Refused, match="'none' or 'label'"):
        dataclasses.replace(both()[1], condition="augmented").check()


def test_an_image_and_its_mirror_image_have_the_same_noise():
    """Not so with a γ for each value."""
    _, mirrored, _, _ = both()
    schedule = Multivariate(shape=mirrored.shape)
    with pytest.raises(Refused, match="one γ for all values"):
        dataclasses.replace(mirrored, schedule=schedule).check()


def test_training_is_that_of_the_plain_model(single):
    plain, mirrored, params, batch = both()
    terms = [
        [model.draw(params, rng(2), batch, train=train).terms["diffusion"] for train in (True, False)]
        for model in (plain, mirrored)
    ]
    np.testing.assert_array_equal(terms[0][0], terms[1][0])
    assert np.abs(terms[0][1] - terms[1][1]).max() > 1e-3


def test_its_error_is_no_larger_than_the_mean_of_the_two():
    """‖ε − ½(a + b)‖² ≤ ½‖ε − a‖² + ½‖ε − b‖², so the ELBO of an image and its mirror image falls."""
    plain, mirrored, params, batch = both()
    turned = batch | {"image": np.flip(batch["image"], 2)}

    class Turned:  # the noise of `rng`, mirrored like the images
        def __init__(self, of):
            self._of = of

        def __getattr__(self, name):
            return getattr(self._of, name)

        def normal(self, *args):
            return jnp.flip(self._of.normal(*args), 2)

    of = lambda model, noise, images: model.draw(params, noise, images).terms["diffusion"]
    mean = 0.5 * (of(plain, rng(2), batch) + of(plain, Turned(rng(2)), turned))
    assert np.all(of(mirrored, rng(2), batch) < mean)
