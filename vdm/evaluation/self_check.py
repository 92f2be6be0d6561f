"""Checks that the compiler computes the sums of an evaluation correctly, at their real shapes, against
float64 NumPy.

XLA:CPU of JAX 0.10.2 silently computes some fused sums wrongly (jax#39103; docs/guide/trust.md).
"""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm.diffusion import decoder, process
from vdm.errors import require
from vdm.gaussian import STANDARD, log_prob, total

FLAG = "--xla_cpu_experimental_ynn_fusion_type="  # an empty value disables the fusions in question
TOLERANCE = 1e-4  # float32 alone has an error of about 1e-6
FEATURES = 16  # inputs of the dense layer before a sum of squares, as at the end of a network
LARGEST = 1 << 21  # largest number of values in a batch, which limits the number of images
GAMMA_1 = 4.0

Case = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


@functools.cache
def require_right_sums(batch: int, shape: tuple[int, ...], vocab_size: int) -> None:
    """Checks the sums, once per process and only on a CPU with optimisations, where the fault was seen. Other
    devices may compute matrix products in bfloat16.

    Raises:
      UserError: a sum is wrong.
    """
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return
    name, error = worst(batch, shape, vocab_size)
    require(
        error <= TOLERANCE,
        f"{name} has a relative error of {error:.1e} in XLA:CPU of JAX {jax.__version__}; set "
        f"XLA_FLAGS={FLAG} in the environment, or use another version of JAX.",
    )


def worst(batch: int, shape: tuple[int, ...], vocab_size: int) -> tuple[str, float]:
    """The name of the sum with the largest error, and this error relative to the sum's mean over the batch,
    as the sum of one image may be near zero; infinite if a sum is not finite."""
    batch = max(1, min(batch, LARGEST // math.prod(shape)))
    found = {}
    for name, (compiled, exact, args) in cases(batch, shape, vocab_size).items():
        want = exact(*(np.asarray(arg, np.float64) for arg in args))
        error = np.abs(np.asarray(jax.jit(compiled)(*args), np.float64)[: len(want)] - want)
        error = np.where(np.isnan(error), np.inf, error) / np.abs(want).mean()
        found[name] = float(np.max(error))
    return max(found.items(), key=lambda item: item[1])


def cases(batch: int, shape: tuple[int, ...], vocab_size: int) -> dict[str, Case]:
    """{name of a sum: (function to compile, float64 function, their arguments)}."""
    random = np.random.default_rng(0)
    x, eps = random.uniform(-1.0, 1.0, (batch, *shape)), random.normal(size=(batch, *shape))
    h, last = random.normal(size=(batch, *shape[:-1], FEATURES)), random.normal(size=(FEATURES, shape[-1]))
    weight = random.uniform(1.0, 9.0, batch)
    levels = random.integers(0, vocab_size, (batch, *shape)).astype(np.uint8)
    axes = tuple(range(1, x.ndim))
    gamma = -2.0 * math.log(vocab_size)  # γ of z_0, whose noise is half a cell, so that levels overlap

    def diffusion(h, last, eps, weight):
        return 0.5 * total(process.over_pixels(weight) * jnp.square(eps - h @ last))

    def exact_diffusion(h, last, eps, weight):
        return 0.5 * weight * np.square(eps - h @ last).sum(axis=axes)

    def exact_prior(x):
        alpha2 = 1.0 / (1.0 + np.exp(GAMMA_1))
        return 0.5 * (alpha2 * np.square(x) - alpha2 + np.log1p(np.exp(-GAMMA_1))).sum(axis=axes)

    def reconstruction(levels, eps):
        gamma_0 = jnp.float32(gamma)
        z_0 = process.diffuse(process.scale(levels, vocab_size), gamma_0, eps)
        return decoder.log_likelihood(levels, gamma_0, vocab_size)(z_0)

    def exact_reconstruction(levels, eps):
        levels, eps = levels[:2], eps[:2]  # two images: NumPy holds all levels of each value in memory
        centres = (2.0 * np.arange(vocab_size) + 1.0) / vocab_size - 1.0
        at = centres[levels.astype(int)] + np.exp(0.5 * gamma) * eps
        logits = -0.5 * np.exp(-gamma) * np.square(at[..., None] - centres)
        top = logits.max(axis=-1)
        norm = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
        own = -0.5 * np.square(eps)
        return (own - norm).sum(axis=axes)

    def exact_normal(z):
        return -0.5 * (np.square(z) + np.log(2.0 * np.pi)).sum(axis=axes)

    standard = lambda z: log_prob(STANDARD, z)
    prior = lambda x: process.kl_to_standard(x, jnp.float32(GAMMA_1))
    return {
        "the diffusion term": (diffusion, exact_diffusion, tuple(map(np.float32, (h, last, eps, weight)))),
        "the prior term": (prior, exact_prior, (np.float32(x),)),
        "the reconstruction term": (reconstruction, exact_reconstruction, (levels, np.float32(eps))),
        "the density of a normal distribution": (standard, exact_normal, (np.float32(eps),)),
    }
