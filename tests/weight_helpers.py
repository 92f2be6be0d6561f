"""A check of the importance weights of a model's own samples."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm.runtime.randomness import Rng


def assert_weights_of_samples(model, params, images, count, share=1.0, **batch):
    """Compares the weights w = p(x, z)/q(z|x) of samples with those of paths z ~ q(z|x), whose mean is p(x).

    For each x and any k, the mean of 1[x] k/(w + k) over samples (x, z) of the model equals the mean of
    k w/(w + k) over z ~ q(z|x): both are the integral of k p(x, z)/(w + k) over z.

    Args:
      images: the images x.
      share: the ratio of p(x, z) to the density of the samples.
      **batch: the other entries of the batch, for each sample.
    """
    draws = lambda number: Rng(jax.random.key(number), jnp.arange(count), count)
    drawn, above = jax.jit(lambda: model.sample_and_log_weight(params, draws(1), batch))()
    drawn, w = np.asarray(drawn), np.exp(np.float64(above))

    @jax.jit
    def log_weight(image):
        of_x = {"image": jnp.broadcast_to(image, (count, *image.shape)), **batch}
        return model.log_weight(params, draws(2), of_x)

    for image in images:
        is_x = (drawn == image).all(axis=(1, 2, 3))
        assert is_x.any()
        k = share * is_x.mean()
        of_q = np.exp(np.float64(log_weight(jnp.asarray(image))))
        samples, paths = share * is_x * k / (w + k), k * of_q / (of_q + k)
        error = np.hypot(samples.std(), paths.std()) / np.sqrt(count)
        assert abs(samples.mean() - paths.mean()) < 4.0 * error, (image.ravel(), samples.mean(), paths.mean())
        assert error < 0.05 * paths.mean(), "this says something"
