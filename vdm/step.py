"""The training step: loss → gradient → mean over devices → optimiser → EMA; pure."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vdm.data import augment
from vdm.diffusion import times
from vdm.runtime import randomness
from vdm.errors import one_of, require
from vdm.runtime.devices import AXIS


class State(NamedTuple):
    """All that training changes. Equal on every device."""

    step: jax.Array  # int32 [], how many steps were taken
    params: Any
    ema: Any  # like params: their exponential moving average
    opt_state: Any
    moments: Any = None  # times.moments of the last steps, where times are drawn by importance


def make_init(model, optimizer, seed, batch):
    """Returns () → the State before the first step, from the seed and a batch of any size."""

    @jax.jit
    def init():
        params = model.init(jax.random.fold_in(jax.random.key(seed), 0), batch)
        # A copy, as the step is given both to overwrite.
        ema = jax.tree.map(jnp.copy, params)
        moments = jnp.zeros((3, times.PARTS)) if _by_importance(model) else None
        return State(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), moments)

    return init


def _by_importance(model):
    return getattr(model, "times", None) == "importance"


DECAYS = ("constant", "cosine")


def learning_rate(config, steps):
    """Step → learning rate: linear warm-up, then constant, or a cosine down to 0 at `steps`."""
    one_of("config.optimizer.decay", config.decay, DECAYS)
    require(
        config.warmup >= 0, f"config.optimizer.warmup is {config.warmup}; accepted: 0 or more."
    )
    if config.decay == "constant":
        after = optax.constant_schedule(config.learning_rate)
    else:
        after = optax.cosine_decay_schedule(config.learning_rate, max(1, steps - config.warmup))
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(1, config.warmup))
    return optax.join_schedules([warmup, after], [config.warmup])


OPTIMIZERS = ("adamw", "muon")


def make_optimizer(config, steps):
    """AdamW, or Muon for the matrices inside the layers and AdamW for the rest; with clipping.

    Muon (Jordan et al. 2024) makes the update of a matrix orthogonal; it is scaled to the
    size of an Adam update, so that one learning rate serves both.

    Raises:
      UserError: the name or a number is not accepted.
    """
    one_of("config.optimizer.name", config.name, OPTIMIZERS)
    rate = learning_rate(config, steps)

    def clip(updates, _):
        # The interior of a schedule apart: the gradient of a variance is in other units.
        for chosen in (False, True):
            part = optax.masked(optax.clip_by_global_norm(config.clip), _interior(updates, chosen))
            updates, _ = part.update(updates, part.init(updates))
        return updates

    if config.name == "adamw":
        optimizer = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_decayed,
        )
    else:
        optimizer = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            weight_decay_mask=_decayed,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    return optax.chain(*([optax.stateless(clip)] if config.clip > 0 else []), optimizer)


def _decayed(params):
    """Which parameters are decayed: not the noise schedule's own, which are levels of noise,
    and zero is no simpler a level than another."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0] != jax.tree_util.DictKey("schedule"), params
    )


def _interior(params, chosen):
    """Which parameters are a schedule's between its end points (`chosen`), or which are not."""

    def one(path, _):
        names = [getattr(key, "key", None) for key in path]
        inside = names[0] == "schedule" and "ends" not in names and names[-1] not in ("start", "width")
        return inside == chosen

    return jax.tree_util.tree_map_with_path(one, params)


def _matrices(params):
    """Which axes of a parameter are a matrix for Muon: those of the dense kernels that are
    stacked by a scan over layers, [layers, in, …, out], each of … by itself; None for all other
    parameters."""

    def one(path, value):
        names = [getattr(key, "key", None) for key in path]
        stacked = "layers" in names and names[-1] == "kernel" and value.ndim >= 3
        return optax.contrib.MuonDimensionNumbers(1, value.ndim - 1) if stacked else None

    return jax.tree_util.tree_map_with_path(one, params)


def make_step(model, optimizer, config, data_shape):
    """Returns (state, data, batch) → (state, metrics), for one device of the axis "batch".

    It takes as many steps as `batch` holds, in one scan, so the host is asked seldom.
    `data` is {"image": [n, height, width, channels], "label": [n]} and then `batch` is
    {"index": [steps, batch per device]}; or {} and then `batch` holds those arrays itself,
    with [steps, batch per device] in front. `metrics` are [steps]: each term, and their sum
    "loss", in nats per example averaged over the global batch; "draw_sd", the standard deviation over
    the batch of one example's loss; and the gradient's norm.
    """
    kinds = tuple(filter(None, config.data.augment.split(",")))
    augment.check(kinds, data_shape)
    micro = config.train.accumulate

    def loss(params, rng, batch, moments):
        if moments is None:
            terms, seen = model.loss(params, rng, batch, train=True), None
        else:
            draw = model.draw(params, rng, batch, train=True, cdf=times.cdf(moments))
            terms = draw.terms
            seen = times.moments(draw.t, terms["diffusion"] / draw.weight)
        square = jnp.mean(jnp.square(sum(terms.values())))
        terms = {name: jnp.mean(nats) for name, nats in terms.items()}
        return sum(terms.values()), (terms, square, seen)

    def gradient(state, key, index, size, batch):
        rng = randomness.Rng(key, index, size)
        image, augmented = augment.augment(rng.keys(randomness.AUGMENT), batch["image"], kinds)
        batch = {"image": image, "label": batch["label"], "augmented": augmented}
        args = (state.params, rng, batch, state.moments)
        (_, seen), grads = jax.value_and_grad(loss, has_aux=True)(*args)
        return grads, *seen

    def one_step(state, data, batch):
        if data:
            batch = jax.tree.map(lambda values: values[batch["index"]], data)
        per_device = batch["label"].shape[0]
        index = jax.lax.axis_index(AXIS) * per_device + jnp.arange(per_device)
        size = per_device * jax.lax.axis_size(AXIS)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)

        if micro == 1:
            found = gradient(state, key, index, size, batch)
        else:
            parts = jax.tree.map(lambda v: v.reshape(micro, -1, *v.shape[1:]), (index, batch))
            first = jax.tree.map(lambda v: v[0], parts)
            shapes = jax.eval_shape(
                lambda index, batch: gradient(state, key, index, size, batch), *first
            )

            def add(total, part):
                return jax.tree.map(
                    jnp.add, total, gradient(state, key, part[0], size, part[1])
                ), None

            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            total, _ = jax.lax.scan(add, zeros, parts)
            found = jax.tree.map(lambda v: v / micro, total)

        if jax.lax.axis_size(AXIS) > 1:  # XLA keeps a copy of the gradient even for one device
            found = jax.lax.pmean(found, AXIS)
        grads, terms, square, seen = found
        # Of the moments the sum, as they count draws, so that devices and parts make no difference.
        seen = jax.tree.map(lambda v: v * (micro * jax.lax.axis_size(AXIS)), seen)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average forgets its start: of n steps it keeps at most about the last nine tenths.
        n = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.train.ema, (1.0 + n) / (10.0 + n))
        ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
        total = sum(terms.values())
        metrics = {
            **terms,
            "loss": total,
            "draw_sd": jnp.sqrt(jnp.maximum(square - jnp.square(total), 0.0)),
            "grad_norm": optax.tree.norm(grads),
        }
        moments = None if seen is None else times.remember(state.moments, seen)
        return State(state.step + 1, params, ema, opt_state, moments), metrics

    def steps(state, data, batch):
        if jax.tree.leaves(batch)[0].shape[0] == 1:  # no loop around one step
            state, metrics = one_step(state, data, jax.tree.map(lambda v: v[0], batch))
            return state, jax.tree.map(lambda v: v[None], metrics)
        return jax.lax.scan(lambda state, batch: one_step(state, data, batch), state, batch)

    return steps
