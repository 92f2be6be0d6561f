"""Encodes images on stacks, one image on each, and decodes them: by bits-back coding, or directly."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from vdm.arrays import Images
from vdm.codec.stack import Stack
from vdm.contract import Ability, Batch, Latents, Model, Params, Stages
from vdm.errors import require

# Limits of the mean and standard deviation of a Gaussian over integers. Beyond them, float64 or the coder's
# 24 bits cannot separate neighbouring integers.
LARGEST, WIDEST = 2.0**50, 2.0**18


class Coder(NamedTuple):
    """Encoding and decoding, which are inverse to each other. The batch size is fixed; images of a batch that
    have no stack are not coded.

    Attributes:
      push: (stacks, batch) → None.
      pop: (stacks, batch without "image") → the images of the batch.
    """

    push: Callable[[Sequence[Stack], Batch], None]
    pop: Callable[[Sequence[Stack], Batch], Images]


def make(model: Model, params: Params, shape: tuple[int, ...], timesteps: int, fineness: float) -> Coder:
    """The Coder of a model with Ability.CODE, for images of `shape`.

    Args:
      params: the model's parameters, on one device.
      timesteps: T, for a model of variable depth.
      fineness: number of integers in the smallest standard deviation of a latent.
    """
    if Ability.EXACT in model.abilities:
        return direct(model.stages, params, shape)
    return bits_back(model.latents(timesteps), params, shape, fineness)


def bits_back(latents: Latents, params: Params, shape: tuple[int, ...], fineness: float) -> Coder:
    """Bits-back coding, in the order of Bit-Swap (Kingma, Abbeel & Ho 2019): z_1 is drawn and x pushed, z_2
    is drawn and z_1 pushed, … and z_T is pushed. Decoding an image returns the bits that drawing took from
    the stack, so that an image adds its negative ELBO on average. In this order, few initial bits are needed.

    A latent is an integer times its width, which is a fraction of its smallest standard deviation.
    """
    top = latents.timesteps
    widths = np.asarray(latents.deviations(params), np.float64) / fineness
    width = [np.broadcast_to(widths[t - 1], latents.shape).reshape(-1) for t in range(1, top + 1)]
    moments = lambda of: (of.mean, jnp.exp(0.5 * of.log_variance))
    q_1 = jax.jit(lambda params, batch: moments(latents.q_1(params, batch)))
    q = jax.jit(lambda params, t, z: moments(latents.q(params, t, z)))
    p = jax.jit(lambda params, t, z, batch: moments(latents.p(params, t, z, batch)))
    probabilities = jax.jit(lambda params, z: jax.nn.softmax(latents.logits(params, z)))

    def value(t: int, numbers: Int[np.ndarray, "batch n"]) -> Float[np.ndarray, "batch *latent"]:
        return (numbers * width[t - 1]).astype(np.float32).reshape(-1, *latents.shape)

    def scaled(t: int, of: Any, size: int) -> tuple[Any, Any]:
        """Mean and standard deviation of z_t in units of its width, [batch, n]."""
        each = (np.broadcast_to(np.asarray(part, np.float64), (size, *latents.shape)) for part in of)
        found = [part.reshape(size, -1) / width[t - 1] for part in each]
        _check_moments(*found)
        return found[0], found[1]

    def prior(size):
        return scaled(top, moments(latents.prior(params)), size)

    def of_x(z, size):
        found = np.asarray(probabilities(params, value(1, z)))
        _require_finite(found)
        return found.reshape(size, -1, found.shape[-1])

    def push(stacks, batch):
        size, given = len(batch["image"]), _given(batch)
        levels = batch["image"].reshape(size, -1)
        z = _draw(stacks, 1, scaled(1, q_1(params, batch), size))
        _each(Stack.push_levels, stacks, (levels, of_x(z, size)))
        for t in range(2, top + 1):
            z_t = _draw(stacks, t, scaled(t, q(params, t, value(t - 1, z)), size))
            _each(Stack.push, stacks, (z, *scaled(t - 1, p(params, t, value(t, z_t), given), size)))
            z = z_t
        _each(Stack.push, stacks, (z, *prior(size)))

    def pop(stacks, batch):
        size = len(batch["augmented"])
        z = _each(Stack.pop, stacks, prior(size))
        for t in range(top, 1, -1):
            below = _each(Stack.pop, stacks, scaled(t - 1, p(params, t, value(t, z), batch), size))
            _give_back(stacks, t, z, scaled(t, q(params, t, value(t - 1, below)), size))
            z = below
        levels = _each(Stack.pop_levels, stacks, (of_x(z, size),))
        image = levels.astype(np.uint8).reshape(size, *shape)
        _give_back(stacks, 1, z, scaled(1, q_1(params, {**batch, "image": image}), size))
        return image

    return Coder(push, pop)


def direct(stages: Stages, params: Params, shape: tuple[int, ...]) -> Coder:
    """Codes each value with its probabilities given the earlier values. As a stack reverses the order, the
    last value is pushed first."""
    start = jax.jit(stages.start)

    @jax.jit
    def probabilities(params, carried, places, levels):
        logits, carried = stages.logits(params, carried, places, levels)
        return jax.nn.softmax(logits), carried

    def push(stacks, batch):
        levels = batch["image"].reshape(len(batch["image"]), -1).astype(np.int32)
        carried, found = start(params, _given(batch)), []
        known = np.zeros_like(levels)
        for places in stages.places:
            each, carried = probabilities(params, carried, places, known)
            found.append(np.asarray(each))
            known[:, places] = levels[:, places]
        for places, each in zip(reversed(stages.places), reversed(found)):
            _require_finite(each)
            _each(Stack.push_levels, stacks, (levels[:, places], each))

    def pop(stacks, batch):
        carried = start(params, batch)
        known = np.zeros((len(batch["augmented"]), int(np.prod(shape))), np.int32)
        for places in stages.places:
            each, carried = probabilities(params, carried, places, known)
            known[:, places] = _each(Stack.pop_levels, stacks, (np.asarray(each),))
        return known.astype(np.uint8).reshape(-1, *shape)

    return Coder(push, pop)


def _draw(stacks: Sequence[Stack], t: int, moments: Any) -> Any:
    return _each(lambda stack, mean, deviation: stack.draw(mean, deviation, t), stacks, moments)


def _give_back(stacks: Sequence[Stack], t: int, z: Any, moments: Any) -> None:
    _each(lambda stack, z, mean, deviation: stack.give_back(z, mean, deviation, t), stacks, (z, *moments))


def _each(do: Any, stacks: Sequence[Stack], arrays: Sequence[Any]) -> Any:
    """Calls do(stack, its row of each array) for each stack; returns the results as rows, with zeros for rows
    without a stack."""
    found = [do(stack, *(array[row] for array in arrays)) for row, stack in enumerate(stacks)]
    if found[0] is None:
        return None
    rows = np.zeros((len(arrays[0]), len(found[0])), np.int64)
    rows[: len(found)] = found
    return rows


def _given(batch: Batch) -> Batch:
    """The entries of a batch that decoding is given: all but the images."""
    return {name: value for name, value in batch.items() if name != "image"}


def _check_moments(mean: Any, deviation: Any) -> None:
    """Raises UserError if Gaussians with these moments cannot separate neighbouring integers."""
    _require_finite((mean, deviation))
    require(
        np.abs(mean).max() < LARGEST and 0.0 < deviation.min() and deviation.max() < WIDEST,
        f"a latent has standard deviations of {deviation.min():.3g} to {deviation.max():.3g} parts and means "
        f"up to {np.abs(mean).max():.3g}; accepted: above 0 to {WIDEST:.3g}, and {LARGEST:.3g}. Give another "
        "model, or another --config.codec.fineness.",
    )


def _require_finite(values: Any) -> None:
    require(
        np.all(np.isfinite(values)),
        "the model's output is not finite; a codec needs the parameters of a run that did not diverge.",
    )
