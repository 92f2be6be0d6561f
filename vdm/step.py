"""The training step: loss → gradient → mean over devices → optimiser → EMA; pure."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import optax

from vdm.contract import Ability, Batch, Model, Params
from vdm.data import augment
from vdm.diffusion import times
from vdm.diffusion.objective import Objective
from vdm.errors import require
from vdm.runtime import randomness
from vdm.runtime.devices import AXIS


class State(NamedTuple):
    """All that training changes. Equal on every device.

    Attributes:
      step: how many steps were taken.
      params: the parameters.
      ema: their exponential moving average, which is evaluated.
      opt_state: of the optimiser.
      moments: times.moments of the last steps, where times are drawn by importance; None elsewhere.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: PyTree
    moments: Float[Array, "3 parts"] | None = None


def make_init(
    model: Model, optimizer: optax.GradientTransformation, seed: int, batch: Batch
) -> Callable[..., State]:
    """Returns (fitted={}) → the State before the first step, from the seed, a batch of any size, and the
    parameters that Model.fit has found."""
    return jax.jit(
        lambda fitted={}: first_state(model, optimizer, {**init_params(model, seed, batch), **fitted})
    )


def first_state(model: Model, optimizer: optax.GradientTransformation, params: Params) -> State:
    """The State before the first step, with these parameters."""
    # A copy, as the step is given both to overwrite.
    ema = jax.tree.map(jnp.copy, params)
    moments = jnp.zeros((3, times.PARTS)) if Ability.IMPORTANCE_TIMES in model.abilities else None
    return State(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), moments)


def init_params(model: Model, seed: int, batch: Batch) -> Params:
    """The parameters before the first step."""
    return model.init(jax.random.fold_in(jax.random.key(seed), 0), batch)


def make_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: Any,
    data_shape: tuple[int, int, int],
) -> Callable[[State, Batch, Batch], tuple[State, dict[str, Float[Array, "steps"]]]]:
    """Returns (state, data, batch) → (state, metrics), for one device of the axis "batch".

    It takes as many steps as `batch` holds, in one scan, so the host is asked seldom.
    `data` is {"image": [n, height, width, channels], "label": [n]} and then `batch` is
    {"index": [steps, batch per device]}; or {} and then `batch` holds those arrays itself,
    with [steps, batch per device] in front.

    `metrics` are nats per example, means over the global batch: each term of the ELBO; "loss", their sum;
    "objective", what is minimised, where that is another number; and "draw_sd", the standard deviation over
    the batch of one example's loss. "grad_norm" is the gradient's norm.
    """
    kinds = augment.kinds(config.data.augment)
    augment.check_shape(kinds, data_shape)
    parts = config.train.accumulate
    adaptive = Ability.IMPORTANCE_TIMES in model.abilities

    def loss(params, rng, batch, moments):
        cdf = times.cdf(moments) if adaptive else None
        draw = model.draw(params, rng, batch, True, cdf, objective.apart, objective.second)
        minimised = objective(draw)
        require(
            isinstance(minimised, dict),
            f"objective {type(objective).__name__} gives a {type(minimised).__name__}; accepted: a dict of "
            "terms, nats per example.",
        )
        total = sum(minimised.values())
        metrics = {name: jnp.mean(nats) for name, nats in draw.terms.items()}
        if not objective.is_elbo:
            metrics["objective"] = jnp.mean(total)
        square = jnp.mean(jnp.square(sum(draw.terms.values())))
        new = times.moments(draw.t, minimised["diffusion"] / draw.time_weight) if adaptive else None
        return sum(jnp.mean(nats) for nats in minimised.values()), (metrics, square, new)

    def gradient(state, key, index, size, batch):
        rng = randomness.Rng(key, index, size)
        image, augmented = augment.augment(rng.keys(randomness.AUGMENT), batch["image"], kinds)
        batch = {"image": image, "label": batch["label"], "augmented": augmented}
        grads, found = jax.grad(loss, has_aux=True)(state.params, rng, batch, state.moments)
        return grads, *found

    def gradient_in_parts(state, key, index, size, batch):
        """The mean over `parts` of the batch, one after the other."""
        split = jax.tree.map(lambda v: v.reshape(parts, -1, *v.shape[1:]), (index, batch))
        first = jax.tree.map(lambda v: v[0], split)
        shapes = jax.eval_shape(lambda index, batch: gradient(state, key, index, size, batch), *first)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(state, key, part[0], size, part[1])), None

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, split)
        return jax.tree.map(lambda v: v / parts, total)

    def one_step(state, data, batch):
        if data:
            batch = jax.tree.map(lambda values: values[batch["index"]], data)
        per_device = batch["label"].shape[0]
        index = jax.lax.axis_index(AXIS) * per_device + jnp.arange(per_device)
        size = per_device * jax.lax.axis_size(AXIS)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)
        found = (gradient if parts == 1 else gradient_in_parts)(state, key, index, size, batch)
        if jax.lax.axis_size(AXIS) > 1:  # XLA keeps a copy of the gradient even for one device
            found = jax.lax.pmean(found, AXIS)
        grads, metrics, square, new = found
        # Of the moments the sum, as they count draws, so that devices and parts make no difference.
        new = jax.tree.map(lambda v: v * (parts * jax.lax.axis_size(AXIS)), new)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step, config.train.ema)
        ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
        total = sum(value for name, value in metrics.items() if name != "objective")
        metrics |= {
            "loss": total,
            "draw_sd": jnp.sqrt(jnp.maximum(square - jnp.square(total), 0.0)),
            "grad_norm": optax.tree.norm(grads),
        }
        moments = times.remember(state.moments, new) if adaptive else None
        return State(state.step + 1, params, ema, opt_state, moments), metrics

    def steps(state, data, batch):
        if jax.tree.leaves(batch)[0].shape[0] == 1:  # no loop around one step
            state, metrics = one_step(state, data, jax.tree.map(lambda v: v[0], batch))
            return state, jax.tree.map(lambda v: v[None], metrics)
        return jax.lax.scan(lambda state, batch: one_step(state, data, batch), state, batch)

    return steps


def ema_decay(step: Int[Array, ""], largest: float) -> Float[Array, ""]:
    """How much the average keeps of itself after `step` steps: (1 + n)/(10 + n), but no more than `largest`.

    So the average forgets its start: as long as n is below about 9/(1 − largest), a step's weight grows with
    the eighth power of its number, and 61% of all weight lies in the last tenth of the steps.
    """
    n = step.astype(jnp.float32)
    return jnp.minimum(largest, (1.0 + n) / (10.0 + n))
