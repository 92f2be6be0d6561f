"""Where the bits of the diffusion term go: a density over t and γ, and the rate–distortion curve."""

import numpy as np

from vdm.diffusion import elbo, times

BINS = times.PARTS


class Profile:
    """Gathers, over equal parts of [0, 1) in t and per image, the draws of the diffusion term.

    With x̂ the optimal denoiser, and one γ for all values, the density over γ is half the error of x̂ divided by the noise
    (Guo et al. 2005: the derivative of mutual information in SNR is half the error). The curve
    of progressive coding follows from the same draws: rate(t) = prior + the integral of the
    density from t to 1, against the error of x̂(z_t) (VDM sec. 5.1; Ho et al. 2020, sec. 4.3).
    """

    def __init__(self, images):
        self._images = images
        self._passes = 0
        self._nats, self._error, self._weight = np.zeros((3, images, BINS))
        self._moments = np.zeros((3, BINS))

    def add(self, draw):
        """Adds a pass: "t", "weight", "diffusion" (nats) and "error", each [images]."""
        part = np.minimum((draw["t"] * BINS).astype(int), BINS - 1)
        image = np.arange(self._images)
        self._passes += 1
        self._nats[image, part] += draw["diffusion"]
        self._error[image, part] += draw["error"] * draw["weight"]
        self._weight[image, part] += draw["weight"]
        density = draw["diffusion"] / draw["weight"]
        for power, moment in enumerate(self._moments):
            np.add.at(moment, part, density**power)

    def cdf(self):
        """How times are best distributed by now: times.cdf of all draws, float32 [BINS + 1]."""
        return np.asarray(times.cdf(self._moments), np.float32)

    def summary(self, gamma, prior, shape, vocab_size):
        """The profile as columns, each float64 [BINS], in order of t; or of length BINS + 1
        where it says "edges".

        Args:
          gamma: γ at `EDGES`.
          prior: the prior term, bits/dim.
          shape: of an image; vocab_size: its levels.

        Returns:
          t_edges, gamma_edges; t: the middle of each part; per_t, per_t_se: bits/dim per unit
          of t, whose mean over the parts is the diffusion term; per_gamma, per_gamma_se: the
          same per unit of γ; rate, rate_edges: bits/dim spent from t = 1 down to t; rmse: of
          x̂(z_t), in levels. Where a part has no draw, per_t_se and rmse are NaN.
        """
        per_t = elbo.bits_per_dim(self._nats / self._passes * BINS, shape)
        mean = per_t.mean(axis=0)
        gamma = np.asarray(gamma, np.float64)
        slope = np.diff(gamma) * BINS
        spent = prior + np.append(np.cumsum(mean[::-1])[::-1] / BINS, 0.0)
        with np.errstate(invalid="ignore"):  # a part without a draw has no error
            error = self._error.sum(axis=0) / self._weight.sum(axis=0)
            # How often an image met a part is no noise, as all together met it evenly: the s.e.
            # is of what is left beside the mean that so many draws have.
            drawn = self._weight / self._weight.mean(axis=0)
        rest = per_t - drawn * mean
        se = np.sqrt(np.sum(np.square(rest), axis=0) / max(self._images - 1, 1) / self._images)
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


EDGES = np.linspace(0.0, 1.0, BINS + 1)
UNIFORM = EDGES.astype(np.float32)
