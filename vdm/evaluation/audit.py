"""Checks for mistakes that the estimators cannot detect: a wrong slope of the schedule, a wrong scale of x̂,
duplicate images; and for the mistake that explains a claimed likelihood."""

from collections.abc import Mapping
import hashlib
import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from vdm.arrays import Images
from vdm.contract import Batch, Model, Params, bits_per_dim
from vdm.diffusion import process
from vdm.diffusion.schedule import with_slope
from vdm.estimate import PerImage, standard_error
from vdm.evaluation.passes import Pass, over_split, progress_bar
from vdm.run import Run

TIMES = 32  # number of times at which the scale of x̂ is measured


def slope_line(model: Model, params: Params) -> str:
    """Whether γ increases and its slope is its derivative: the slope must integrate to γ(1) − γ(0)."""
    nodes = 2**16
    _, slope = with_slope(
        lambda t: model.gamma(params, t), (jnp.arange(nodes, dtype=jnp.float32) + 0.5) / nodes
    )
    whole = float(np.mean(np.asarray(slope, np.float64)))
    low, high = np.asarray(model.gamma(params, jnp.array([0.0, 1.0])), np.float64)
    verdict = "yes" if abs(whole - (high - low)) < 0.005 * (high - low) and np.all(slope >= 0) else "NO"
    found = f"γ rises by {high - low:.3f}, and the slope integrates to {whole:.3f}"
    return f"The slope of γ is its derivative: {verdict}; {found}."


def scale_line(config: ConfigDict, run: Run, elbo_bits: float) -> str:
    """Whether x̂ has the scale of the images. If x̂ = E[x|z], the factor s = E[x x̂]/E[x̂²] is 1. Multiplying
    x̂ by s would lower its squared error by E[x̂²] (1 − s)²; half of that times e^{−γ} are nats per unit of γ
    (VDM eq. 18).

    Args:
      elbo_bits: bits/dim of the ELBO for T → ∞. The check fails if the right scale saves over 1% of it.
    """
    model, params = run.model, run.state.ema

    def products(params, rng, batch, t):
        x = process.scale(batch["image"], run.data.spec.vocab_size)
        x_hat = model.x_hat(params, rng, batch, t)
        return {"both": jnp.sum(x * x_hat, (1, 2, 3)), "own": jnp.sum(jnp.square(x_hat), (1, 2, 3))}

    images = config.eval.images or run.data.test.size
    one_pass = over_split(products, config, run.data)
    gammas = np.asarray(model.gamma(params, jnp.linspace(0.0, 1.0, 2 * TIMES + 1)), np.float64)
    lost, worst = np.zeros(TIMES), np.zeros((TIMES, 3))
    with progress_bar(images, config, TIMES, "scale of x̂") as bar:
        for i in range(TIMES):
            gamma, width = gammas[2 * i + 1], gammas[2 * i + 2] - gammas[2 * i]
            t = np.float32((i + 0.5) / TIMES)
            found = one_pass(params, Pass(0, 0, 1), t, images, bar)
            both, own = found["both"], found["own"]
            scale = both.sum() / own.sum()
            se = standard_error(both - scale * own) / own.mean()
            nats = 0.5 * width * math.exp(-gamma) * own.mean() * ((1.0 - scale) ** 2 - se**2)
            lost[i], worst[i] = bits_per_dim(nats, run.data.spec.shape), (gamma, scale, se)
    (gamma, scale, se), whole = worst[lost.argmax()], max(lost.sum(), 0.0)
    verdict = "NO" if whole > 0.01 * elbo_bits else "yes"
    return (
        f"x̂ has the scale of the images: {verdict}; the right scale would save {whole:.4f} bits/dim, mostly "
        f"at γ = {gamma:.2f}, where the images are {scale:.3f} ± {se:.3f} times x̂."
    )


def derivative_line(model: Model, params: Params, batch: Batch, vocab_size: int) -> str:
    """Whether the gradient of ε̂ in z is right, compared with a finite difference in one random direction."""
    x = process.scale(batch["image"], vocab_size)
    gamma = jnp.broadcast_to(model.gamma(params, jnp.float32(0.5)), x.shape[:1])
    eps, way, pull_by = (jax.random.normal(key, x.shape) for key in jax.random.split(jax.random.key(0), 3))
    z = process.diffuse(x, process.over_pixels(gamma), eps)
    eps_hat = lambda z: model.eps_hat(params, z, gamma, model.condition_of(batch))
    _, pull = jax.vjp(eps_hat, z)
    step = 1e-2
    each = lambda values: np.asarray(jnp.sum(values, (1, 2, 3)), np.float64)
    own = each(pull(pull_by)[0] * way)
    found = each((eps_hat(z + step * way) - eps_hat(z - step * way)) * pull_by) / (2.0 * step)
    off = np.linalg.norm(own - found) / np.linalg.norm(found)
    verdict = "yes" if off < 0.01 else "NO"
    return f"The gradient of ε̂ agrees with a finite difference: {verdict}; the relative error is {off:.1e}."


def twice_line(images: Images, train: Images | None) -> str:
    """How many images are duplicates, and how many are among the training images."""
    own = [hashlib.sha256(image.tobytes()).digest() for image in images]
    twice = len(own) - len(set(own))
    text = f"{twice} of the {len(own)} images are duplicates" if twice else "no image is a duplicate"
    known = 0
    if train is not None:
        seen = {hashlib.sha256(image.tobytes()).digest() for image in train}
        known = sum(one in seen for one in own)
        text += f"; images that are also training images: {known or 'none'} ({len(train)} searched)"
    return f"The images are distinct: {'NO' if twice or known else 'yes'}; {text}."


def claim_line(
    name: str,
    claim: PerImage,
    row: str,
    ours: Mapping[str, PerImage],
    shape: tuple[int, ...],
    vocab_size: int,
    entropy: float | None,
) -> str:
    """Whether the claimed bits/dim of the images agree with those of a row within three standard errors of
    the difference; states this tolerance, or the mistake that explains a larger difference.

    Args:
      ours: Estimate.values of the row.
      entropy: entropy of normal dequantisation's noise, in bits/dim and in the units of the claim's z.
    """
    each = claim - ours["bpd"]
    mean, se = float(each.mean()), standard_error(each)
    line = f"{name} is {abs(mean):.4f} ± {se:.4f} {'above' if mean > 0 else 'below'} {row}"
    if abs(mean) <= 3.0 * se:
        return f"{name} agrees with {row} to {3.0 * se:.4f} bits/dim: yes; {line}."
    looks = " or ".join(_mistakes(claim, ours, shape, vocab_size, entropy))
    return f"{name} agrees with {row}: NO; {line}.{looks and f' It looks as if {looks}.'}"


def _mistakes(
    claim: PerImage,
    ours: Mapping[str, PerImage],
    shape: tuple[int, ...],
    vocab_size: int,
    entropy: float | None,
) -> list[str]:
    """The mistakes that would turn `ours` into the claim, within three standard errors of the difference."""
    total = ours["bpd"]
    values: dict[str, PerImage] = {}
    values["nats were taken for bits"] = total * math.log(2.0)
    values["nats were taken for bits, and divided by log 2 once more"] = total / math.log(2.0)
    if shape[-1] > 1:
        values["it is per pixel and not per value"] = total * shape[-1]
    cell = math.log2(2.0 / vocab_size)
    values["a density of x in [−1, 1] was taken for a probability of levels"] = total + cell
    values["a density of x in [0, 1] was taken for a probability of levels"] = total + cell - 1.0
    if entropy is not None:
        values["the entropy of the dequantisation's noise was forgotten"] = total + entropy
        values["the entropy of the dequantisation's noise, in levels, was forgotten"] = total + entropy - cell
    for term, bits in ours.items():
        if term != "bpd" and abs(bits.mean()) > 1e-3:
            values[f"the term {term!r} was forgotten"] = total - bits
            values[f"the term {term!r} was weighted by a quarter"] = total - 0.75 * bits
            values[f"the term {term!r} was counted twice"] = total + bits
    near = {}
    for text, wrong in values.items():
        each = claim - wrong
        error = max(standard_error(each), 1e-6)
        if abs(each.mean()) <= 3.0 * error and abs(each.mean()) < 0.2 * abs((claim - total).mean()):
            near[text] = abs(each.mean())
    return sorted(near, key=lambda text: near[text])[:2]
