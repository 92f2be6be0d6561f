"""The Gaussian of the data's mean and stationary covariance, and its denoiser in closed form (Wiener 1949).

Images are assumed to be stationary, and mirrored at their edges. Then the frequencies of the cosine transform
are independent, and the covariance is one small matrix over the channels for each frequency. This is a model
of whole images with a few thousand numbers. It has a closed form for the posterior of x given
z_t = α x + σ ε, from which a network can start.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vdm.arrays import Image
from vdm.data.dataset import Split
from vdm.diffusion import process
from vdm.diffusion.denoiser import Parameterisation, eps_from_x
from vdm.methods.discretised_normal import restricted_mean
from vdm.parameters import Role, alike

Gamma = Float[Array, "batch 1 1 1"]
CHUNK = 1_000  # images that `fit` reads at a time
LOG_RATIO = (-8.0, 4.0)  # of variances, beyond which exp would run away


@dataclasses.dataclass(frozen=True)
class Wiener(Parameterisation):
    """The Gaussian's posterior of each value, N(m, v), becomes N(m + √v a, v e^b) by the network's output
    (a, b), and x̂ is its mean over the levels. For Gaussian data, the output zero is optimal.

    The parameter "gaussian" is fitted to the training images, and not trained.
    """

    of_levels: ClassVar[bool] = True
    one_gamma: ClassVar[bool] = True

    def outputs(self, channels, vocab_size):
        return 2 * channels

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        known, _ = posterior(fixed(params["gaussian"]), z_t, gamma)
        mean, variance = changed(known, net(features(z_t, gamma, known)))
        return eps_from_x(restricted_mean(mean, variance, vocab_size), z_t, gamma)

    def init(self, shape):
        return {"gaussian": unit(shape)}

    def fit(self, split, shape, vocab_size):
        return {"gaussian": fit(split, shape, vocab_size)}

    def roles(self, params):
        return {"gaussian": alike(params["gaussian"], Role(fixed=True))}


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Wiener):
    """The Gaussian predicts each value x_i from all other values of z_t: N(m, s²). The network's output
    (a, b) changes this prediction to N(m + s a, s² e^b). The product with p(z_i|x_i) is the posterior of x_i,
    up to a constant, and x̂ is the posterior's mean over the levels.

    The network thus learns to predict a value from its surroundings, which hardly depends on γ. Changing the
    posterior itself, as Wiener does, is harder to learn, as both outputs are small at low noise.
    """

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        known, prediction = posterior(fixed(params["gaussian"]), z_t, gamma)
        observed = observation(z_t, gamma)
        given = [features(z_t, gamma, known), surprise(observed, prediction)]
        mean, variance = changed(prediction, net(jnp.concatenate(given, axis=-1)))
        weight = observed.variance / (observed.variance + variance)  # of the prediction
        mean = observed.mean + weight * (mean - observed.mean)
        return eps_from_x(restricted_mean(mean, weight * variance, vocab_size), z_t, gamma)


class Stationary(NamedTuple):
    """Mean and stationary covariance of x in [−1, 1].

    Attributes:
      mean: the mean of each channel.
      variance: for each frequency, the variances along the axes of `basis`.
      basis: for each frequency, the principal axes of the channels, as columns.
    """

    mean: Float[Array, "channels"]
    variance: Float[Array, "height width channels"]
    basis: Float[Array, "height width channels channels"]


class Normal(NamedTuple):
    """A normal distribution for each value of x."""

    mean: Image
    variance: Image | Gamma


def unit(shape: tuple[int, int, int]) -> Stationary:
    """Mean 0 and covariance 1."""
    channels = shape[2]
    basis = jnp.broadcast_to(jnp.eye(channels), (*shape, channels))
    return Stationary(jnp.zeros(channels), jnp.ones(shape), basis)


def fit(split: Split, shape: tuple[int, int, int], vocab_size: int) -> Stationary:
    """The maximum-likelihood fit to the images of a split, in one pass over it.

    Adding the mirror images would not change it, since mirroring changes only the signs of frequencies. No
    variance is set below (2/V)²/12, the variance of rounding to levels.
    """
    height, width, channels = shape
    mean, square = np.zeros(channels), np.zeros((height, width, channels, channels))
    for x in _chunks(split, vocab_size):
        frequencies = _frequencies(x)
        mean += frequencies[:, 0, 0].sum(axis=0) / split.size
        square += np.einsum("nijc,nijd->ijcd", frequencies, frequencies, optimize=True) / split.size
    square[0, 0] -= np.outer(mean, mean)  # a constant mean has frequency 0 only
    mean /= np.sqrt(height * width)
    variance, basis = np.linalg.eigh(square)
    floor = (2.0 / vocab_size) ** 2 / 12.0
    found = mean, np.maximum(variance, floor), basis
    return Stationary(*(jnp.asarray(value, jnp.float32) for value in found))


def _chunks(split, vocab_size):
    for first in range(0, split.size, CHUNK):
        image = split.read(np.arange(first, min(first + CHUNK, split.size)))["image"]
        yield np.asarray(process.scale(image, vocab_size), np.float64)


def _frequencies(x):
    """The cosine transform of each channel, in float64."""
    rows, columns = (cosines(size) for size in x.shape[1:3])
    return np.einsum("ih,nhwc,jw->nijc", rows, x, columns, optimize=True)


def cosines(size: int) -> Float[np.ndarray, "size size"]:
    """The orthonormal cosine transform (DCT-II) as a matrix with one row for each frequency."""
    frequency, place = np.arange(size)[:, None], np.arange(size)[None] + 0.5
    rows = np.sqrt(2.0 / size) * np.cos(np.pi * frequency * place / size)
    rows[0] /= np.sqrt(2.0)
    return rows


def observation(z_t: Image, gamma: Gamma) -> Normal:
    """p(z_t|x) as a function of x: N(z_t/α, σ²/α²), where σ²/α² = e^γ."""
    return Normal(z_t / process.over_pixels(process.alpha(gamma)), process.over_pixels(jnp.exp(gamma)))


def posterior(of: Stationary, z_t: Image, gamma: Gamma) -> tuple[Normal, Normal]:
    """p(x_i|z_t), and p(x_i|z_t without z_i), for each value i.

    Along an axis of variance λ, the posterior's mean is z_t/α times α² λ/(α² λ + σ²), and its variance is
    λ σ²/(α² λ + σ²). If a value has the posterior mean m and variance v, leaving out z_i changes its
    precision to 1/v − α²/σ². With ρ = 1 − v α²/σ², a mean over the axes of σ²/(α² λ + σ²), the variance is
    then v/ρ, and the mean m + (m − z_i/α) (1 − ρ)/ρ.
    """
    alpha, sigma = (process.over_pixels(of_gamma(gamma)) for of_gamma in (process.alpha, process.sigma))
    noisy = jnp.square(alpha) * of.variance + jnp.square(sigma)
    rows, columns = (jnp.asarray(cosines(size), jnp.float32) for size in z_t.shape[1:3])
    along_axes = _einsum("ijcd,bijc->bijd", of.basis, _over_axes(z_t - alpha * of.mean, rows, columns))
    shrunk = _einsum("ijcd,bijd->bijc", of.basis, along_axes * (alpha * of.variance / noisy))
    mean = of.mean + _over_axes(shrunk, rows.T, columns.T)

    def of_values(of_axes):
        of_channels = _einsum("ijcd,bijd->bijc", jnp.square(of.basis), of_axes)
        return _over_axes(of_channels, jnp.square(rows).T, jnp.square(columns).T)

    variance = of_values(jnp.square(sigma) * of.variance / noisy)
    left = of_values(jnp.square(sigma) / noisy)  # ρ
    without = mean + (mean - z_t / alpha) * (1.0 - left) / left
    return Normal(mean, variance), Normal(without, variance / left)


def _over_axes(image, rows, columns):
    """A matrix product along the rows and one along the columns of each channel.

    The channel axis comes first, since XLA's GPU backend cannot compile a product over one of four axes.
    """
    by_channel = _matmul(rows, _matmul(image.transpose(0, 3, 1, 2), columns.T))
    return by_channel.transpose(0, 2, 3, 1)


# Full float32: accelerators would otherwise round the factors to 8 or 11 bits.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def dequantised_nats(
    of: Stationary, x: Float[np.ndarray, "images height width channels"], vocab_size: int
) -> Float[np.ndarray, "images"]:
    """A bound on −log p(x), nats, for x on levels: E[−log N(x + u)] − log(2/V) for each value, with u uniform
    over the cell of a level (Theis et al. 2016, eq. 4).

    It has a closed form, since u has the variance (2/V)²/12 along each axis. The Gaussian is widened by the
    same variance.
    """
    mean, variance, basis = (np.asarray(value, np.float64) for value in of)
    rounding = (2.0 / vocab_size) ** 2 / 12.0
    along_axes = np.einsum("ijcd,nijc->nijd", basis, _frequencies(x - mean), optimize=True)
    square = (np.square(along_axes) + rounding) / (variance + rounding)
    nats = 0.5 * np.sum(square + np.log(2.0 * np.pi * (variance + rounding)), axis=(1, 2, 3))
    return nats + variance.size * np.log(vocab_size / 2.0)


def fixed(of: Stationary) -> Stationary:
    """The Gaussian without gradients: it is not trained, and its gradient would cost a tenth of a step."""
    return jax.lax.stop_gradient(of)


def changed(normal: Normal, output: Float[Array, "batch height width more"]) -> Normal:
    """N(m + √v a, v e^b) for a normal distribution N(m, v) and the network's output (a, b)."""
    shift, log_ratio = jnp.split(output, 2, axis=-1)
    mean = normal.mean + jnp.sqrt(normal.variance) * shift
    return Normal(mean, normal.variance * jnp.exp(jnp.clip(log_ratio, *LOG_RATIO)))


def features(z_t: Image, gamma: Gamma, known: Normal) -> Float[Array, "batch height width more"]:
    """Inputs of the network, with magnitudes near 1 at every γ; in z_t itself, details are small differences
    of large numbers.

    In this order: the posterior's mean; its ε̂; the details of z_t below 3 pixels, in units of the noise; two
    octaves of details of the mean, in units of the posterior's standard deviation; the logarithm of that
    deviation.
    """
    alpha, sigma = (process.over_pixels(of_gamma(gamma)) for of_gamma in (process.alpha, process.sigma))
    deviation = jnp.sqrt(known.variance)
    typical = jnp.mean(deviation, axis=(1, 2), keepdims=True)
    blurred = _blur(known.mean)
    coarse = _blur(_blur(blurred))
    return jnp.concatenate(
        [
            known.mean,
            (z_t - alpha * known.mean) / sigma,
            jnp.arcsinh((z_t - _blur(z_t)) / (2.0 * sigma)),
            jnp.arcsinh((known.mean - blurred) / typical),
            jnp.arcsinh((blurred - coarse) / typical),
            jnp.log(deviation) / 3.0,
        ],
        axis=-1,
    )


def surprise(observed: Normal, prediction: Normal) -> Float[Array, "batch height width more"]:
    """The distance of each value of z_t from its prediction, in units of its standard deviation; and the
    logarithm of the prediction's standard deviation."""
    deviation = jnp.sqrt(observed.variance + prediction.variance)
    apart = jnp.arcsinh((observed.mean - prediction.mean) / deviation)
    return jnp.concatenate([apart, jnp.log(prediction.variance) / 6.0], axis=-1)


def _blur(image):
    """Convolves with (1, 2, 1)/4 along both axes."""
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:, :-2] + 2.0 * padded[:, 1:-1] + padded[:, 2:]
    return (rows[:, :, :-2] + 2.0 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16.0
