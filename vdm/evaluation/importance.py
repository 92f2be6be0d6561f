"""Bounds on log p(x) by importance weights.

An estimator gives, for an image x, the log weight log w = log p(x, z)/q(z|x) of a random z ~ q(z|x). As
E[w] = p(x), the mean of log w is at most log p(x). So is that of log (w_1 + … + w_K)/K, which rises towards
log p(x) with K (Burda et al. 2016).
"""

import dataclasses

from jaxtyping import Float
import numpy as np

from vdm.estimate import combine
from vdm.evaluation.table import Row


def importance_bound(
    log_weights: Float[np.ndarray, "draws ..."], samples: int
) -> Float[np.ndarray, "groups ..."]:
    """log (w_1 + … + w_K)/K of each group of K = `samples` draws, float64.

    Draws that do not fill a group, the last ones, are left out.
    """
    log_weights = np.asarray(log_weights, np.float64)
    groups = log_weights[: len(log_weights) // samples * samples]
    groups = groups.reshape(-1, samples, *log_weights.shape[1:])
    top = groups.max(axis=1)
    return top + np.log(np.mean(np.exp(groups - top[:, None]), axis=1))


def bound_rows(
    name: str,
    bounds: str,
    log_weights: Float[np.ndarray, "draws images"],
    evaluations: float,
    seconds: float,
    shape: tuple[int, ...],
) -> list[Row]:
    """The bounds with K = 1, 2, 4, … samples, and with all.

    Args:
      name: of the estimator.
      bounds: whose negative log-likelihood they bound from above.
      log_weights: nats.
      evaluations: of the network, per image, over all draws; `seconds` too.
      shape: of an image.
    """
    total = len(log_weights)
    rows = []
    for k in sorted({*(2**i for i in range(total.bit_length())), total}):
        groups = -importance_bound(log_weights, k)
        estimate = combine([(1, {"bpd": group}) for group in groups], shape)
        estimate = dataclasses.replace(estimate, passes=len(groups) * k)
        rows.append(Row(f"{name}, K = {k}", bounds, estimate, evaluations, seconds))
    return rows
