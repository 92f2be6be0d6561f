"""The density of the diffusion term over t and γ, and the rate–distortion curve."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32
import numpy as np

from vdm.contract import Denoising, Model, Params, bits_per_dim
from vdm.diffusion import process, times
from vdm.gaussian import total
from vdm.runtime import devices

BINS = times.PARTS  # number of equal parts of [0, 1) in t
EDGES = np.linspace(0.0, 1.0, BINS + 1)
UNIFORM = EDGES.astype(np.float32)  # the cdf of uniform times, in the form of Profile.cdf


def of_time(denoising: Denoising) -> dict[str, Float[Array, "batch"]]:
    """The values of a draw that a Profile needs besides the terms: "t"; "time_weight", 1/q(t); and "error",
    ‖x − x̂(z_t)‖² for x in [−1, 1], as x − x̂ = (ε̂ − ε) σ/α."""
    d = denoising
    error = process.over_pixels(jnp.exp(d.gamma)) * jnp.square(d.target - d.eps_hat)
    return {"t": d.t, "time_weight": d.time_weight, "error": total(error)}


def in_continuous_time(model: Model) -> Model:
    """The model for T → ∞. Only there is a Profile a density over γ: a chain evaluates at the ends of its
    steps, wherever t lies in them."""
    return model.at_depth(0) if model.depth else model


def gamma_at_edges(model: Model, params: Params) -> Float[np.ndarray, "bins_and_one"]:
    """γ at EDGES, for a model with Ability.TIME. If γ differs between values, this is their mean for a
    context of 0. Every host must call it."""
    gamma = devices.to_host(model.gamma(params, jnp.asarray(EDGES, jnp.float32)))
    return gamma.reshape(len(EDGES), -1).mean(axis=1)


class Profile:
    """Accumulates the draws of the diffusion term of each image in equal bins of t in [0, 1).

    If x̂ is the optimal denoiser and all values have the same γ, the density over γ is half the squared error
    of x̂ over the variance of the noise (Guo et al. 2005: the derivative of mutual information in SNR is half
    the error). The same draws give the curve of progressive coding: rate(t) = prior + the integral of the
    density from t to 1, against the error of x̂(z_t) (VDM sec. 5.1; Ho et al. 2020, sec. 4.3).
    """

    def __init__(self, images: int):
        self._images = images
        self._passes = 0
        self._nats, self._error, self._weight = np.zeros((3, images, BINS))
        self._moments: Any = np.zeros((3, BINS))

    def add(self, draw: dict[str, Float[np.ndarray, "images"]]) -> None:
        """Adds a pass: the term "diffusion", nats, and the values of `of_time`."""
        part = np.minimum((draw["t"] * BINS).astype(int), BINS - 1)
        image = np.arange(self._images)
        self._passes += 1
        self._nats[image, part] += draw["diffusion"]
        self._error[image, part] += draw["error"] * draw["time_weight"]
        self._weight[image, part] += draw["time_weight"]
        density = draw["diffusion"] / draw["time_weight"]
        for power, moment in enumerate(self._moments):
            np.add.at(moment, part, density**power)

    def cdf(self) -> Float32[np.ndarray, "bins_and_one"]:
        """The distribution of times with the least variance, estimated from the draws so far: times.cdf."""
        return np.asarray(times.cdf(self._moments), np.float32)

    def summary(
        self,
        gamma: Float[np.ndarray, "bins_and_one"],
        prior: float,
        shape: tuple[int, ...],
        vocab_size: int,
    ) -> dict[str, Float[np.ndarray, "columns"]]:
        """The profile as columns in order of t, float64 [BINS]; [BINS + 1] if the name ends in "edges".

        Args:
          gamma: γ at EDGES.
          prior: the prior term, in bits/dim.
          shape: shape of an image.
          vocab_size: number of levels.

        Returns:
          t_edges, gamma_edges. t: the centre of each bin. per_t, per_t_se: bits/dim per unit of t, whose mean
          over the bins is the diffusion term. per_gamma, per_gamma_se: bits/dim per unit of γ. rate,
          rate_edges: bits/dim from t = 1 down to t. rmse: error of x̂(z_t), in levels. In a bin without
          draws, per_t_se and rmse are NaN.
        """
        per_t = bits_per_dim(self._nats / self._passes * BINS, shape)
        mean = per_t.mean(axis=0)
        gamma = np.asarray(gamma, np.float64)
        slope = np.diff(gamma) * BINS
        spent = prior + np.append(np.cumsum(mean[::-1])[::-1] / BINS, 0.0)
        with np.errstate(invalid="ignore"):  # a bin without draws has no error
            error = self._error.sum(axis=0) / self._weight.sum(axis=0)
            # All images together fill each bin evenly, so the number of one image's draws in a bin must not
            # count as noise: the standard error is that of the difference from the mean of as many draws.
            share = self._weight / self._weight.mean(axis=0)
        difference = per_t - share * mean
        se = np.sqrt(np.sum(np.square(difference), axis=0) / max(self._images - 1, 1) / self._images)
        se = se if self._images > 1 else np.full(BINS, np.nan)
        return {
            "t_edges": EDGES,
            "gamma_edges": gamma,
            "t": 0.5 * (EDGES[1:] + EDGES[:-1]),
            "per_t": mean,
            "per_t_se": se,
            "per_gamma": mean / slope,
            "per_gamma_se": se / slope,
            "rate": 0.5 * (spent[1:] + spent[:-1]),
            "rate_edges": spent,
            "rmse": np.sqrt(error / np.prod(shape)) * vocab_size / 2.0,
        }
