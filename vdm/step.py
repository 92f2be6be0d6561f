"""The training step, a pure function: loss → gradient → mean over devices → optimiser → EMA."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import optax

from vdm import component
from vdm.contract import Batch, Model, Params, check_draw
from vdm.data import augment
from vdm.errors import require
from vdm.objective import Objective
from vdm.runtime import devices, randomness
from vdm.runtime.devices import AXIS

# Metrics that are not terms.
OTHER_METRICS = ("loss", "objective", "draw_sd", "grad_norm", "bpd", "seconds", "steps_per_second")


class State(NamedTuple):
    """The state of training, equal on every device.

    Attributes:
      step: number of steps taken.
      params: the parameters.
      ema: the exponential moving average of the parameters, which is evaluated.
      opt_state: the state of the optimiser.
      moments: statistics of the losses for the distribution of times (Times.init), or None.
      objective: the parameters of the objective, or None.
    """

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: PyTree
    moments: PyTree = None
    objective: Params = None


def make_init(
    model: Model, objective: Objective, optimizer: optax.GradientTransformation, seed: int, batch: Batch
) -> Callable[..., State]:
    """Returns (fitted={}) → the State before the first step, from the seed, a batch of any size, and the
    parameters that Model.fit has found."""

    @jax.jit
    def init(words, fitted):
        params, own = init_params(model, objective, jax.random.wrap_key_data(words), batch)
        return first_state(model, optimizer, {**params, **(fitted or {})}, own)

    root = randomness.root(seed)
    return lambda fitted=None: init(root, fitted)


def first_state(
    model: Model, optimizer: optax.GradientTransformation, params: Params, objective: Params
) -> State:
    """The State before the first step, with the given parameters of the model and of the objective."""
    # A copy, as the step donates the memory of both.
    ema = jax.tree.map(jnp.copy, params)
    opt_state = optimizer.init(trained(params, objective))
    moments = None if model.times is None else model.times.init()
    return State(jnp.zeros((), jnp.int32), params, ema, opt_state, moments, objective)


def init_params(model: Model, objective: Objective, key: Array, batch: Batch) -> tuple[Params, Params]:
    """The parameters of the model and of the objective before the first step."""
    of_model = model.init(jax.random.fold_in(key, 0), batch)
    return of_model, objective.init(jax.random.fold_in(key, _OBJECTIVE), batch)


def trained(params: PyTree, objective: PyTree) -> PyTree:
    """The parameters that the optimiser updates: the model's, and the objective's unless these are None."""
    return params if objective is None else {"model": params, "objective": objective}


def separate(both: PyTree, has_own: bool) -> tuple[PyTree, PyTree]:
    """The inverse of `trained`; `has_own` states whether the objective has parameters."""
    return (both["model"], both["objective"]) if has_own else (both, None)


_OBJECTIVE = 4  # folded into the seed; training folds 1, evaluation 2, samples 3


def make_step(
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: Any,
    data_shape: tuple[int, int, int],
) -> Callable[[State, Batch, Batch], tuple[State, dict[str, Float[Array, "steps"]]]]:
    """Returns (state, data, batch) → (state, metrics), for one device of the axis "batch".

    A call takes as many steps as `batch` holds, in one scan, so that the host is rarely involved. `data` is
    {"root": randomness.root(seed), "image": [n, height, width, channels], "label": [n]}, and `batch` is
    {"index": [steps, batch per device]}; or `data` has only the root, and `batch` holds images and labels
    with the leading axes [steps, batch per device].

    `metrics` are nats per example, means over the global batch: each term of the ELBO; "loss", their sum; if
    the objective is not the ELBO, "objective", the minimised number, and each of its terms that is not a term
    of the ELBO; and "draw_sd", the standard deviation over the batch of one example's loss. "grad_norm" is
    the norm of the gradient.
    """
    kinds = augment.kinds(config.data.augment)
    augment.check_shape(kinds, data_shape)
    parts = config.train.accumulate
    adaptive = model.times is not None and model.times.init() is not None

    def loss(both, has_own, rng, batch, moments):
        params, own = separate(both, has_own)
        times = None if model.times is None else lambda rng: model.times.draw(rng, moments)
        with component.blamed(model, f"model {type(model).__name__}"):
            draw = objective.draw(model, params, rng, batch, times)
        check_draw(model, draw, len(batch["label"]))
        with component.blamed(objective, f"objective {type(objective).__name__}"):
            minimised = objective(own, draw)  # draw.terms for the objective "elbo"
        check_terms(objective, minimised, batch["label"].shape)
        total = sum(minimised.values())
        terms = {name: jnp.mean(nats) for name, nats in draw.terms.items()}
        more = {name: jnp.mean(nats) for name, nats in minimised.items() if name not in terms}
        more |= {} if objective.is_elbo else {"objective": jnp.mean(total)}
        square = jnp.mean(jnp.square(sum(draw.terms.values())))
        new = None
        if adaptive:
            check_timed(objective, minimised)
            at_time = sum(minimised[name] for name in objective.timed) / draw.denoising.time_weight
            new = model.times.observe(draw.denoising.t, at_time)
        return sum(jnp.mean(nats) for nats in minimised.values()), (terms, more, square, new)

    def gradient(state, key, index, size, batch):
        rng = randomness.Rng(key, index, size)
        image, augmented = augment.augment(rng.keys(randomness.AUGMENT), batch["image"], kinds)
        batch = {"image": image, "label": batch["label"], "augmented": augmented}
        both, has_own = trained(state.params, state.objective), state.objective is not None
        grads, found = jax.grad(loss, has_aux=True)(both, has_own, rng, batch, state.moments)
        return grads, *found

    def gradient_in_parts(state, key, index, size, batch):
        """The mean gradient over `parts` of the batch, computed in turn."""
        split = jax.tree.map(lambda v: v.reshape(parts, -1, *v.shape[1:]), (index, batch))
        first = jax.tree.map(lambda v: v[0], split)
        shapes = jax.eval_shape(lambda index, batch: gradient(state, key, index, size, batch), *first)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(state, key, part[0], size, part[1])), None

        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, split)
        return jax.tree.map(lambda v: v / parts, total)

    def one_step(state, data, batch):
        images = {name: values for name, values in data.items() if name != "root"}
        if images:
            batch = jax.tree.map(lambda values: values[batch["index"]], images)
        per_device = batch["label"].shape[0]
        index = jax.lax.axis_index(AXIS) * per_device + jnp.arange(per_device)
        size = per_device * jax.lax.axis_size(AXIS)
        root = jax.random.wrap_key_data(data["root"])
        key = jax.random.fold_in(jax.random.fold_in(root, 1), state.step)
        found = (gradient if parts == 1 else gradient_in_parts)(state, key, index, size, batch)
        if jax.lax.axis_size(AXIS) > 1:  # with one device, XLA would copy the gradient needlessly
            found = devices.mean(found)
        grads, terms, more, square, new = found
        # The moments are counts and sums over draws, so they are summed over devices and parts, not averaged.
        new = jax.tree.map(lambda v: v * (parts * jax.lax.axis_size(AXIS)), new)

        before = trained(state.params, state.objective)
        updates, opt_state = optimizer.update(grads, state.opt_state, before)
        after = optax.apply_updates(before, updates)
        params, own = separate(after, state.objective is not None)
        decay = ema_decay(state.step, config.train.ema)
        ema = jax.tree.map(lambda old, new: new + decay * (old - new), state.ema, params)
        total = sum(terms.values())
        metrics = {
            **terms,
            **more,
            "loss": total,
            "draw_sd": jnp.sqrt(jnp.maximum(square - jnp.square(total), 0.0)),
            "grad_norm": optax.tree.norm(grads),
        }
        moments = model.times.remember(state.moments, new) if adaptive else None
        return State(state.step + 1, params, ema, opt_state, moments, own), metrics

    def steps(state, data, batch):
        if jax.tree.leaves(batch)[0].shape[0] == 1:  # a single step needs no loop
            state, metrics = one_step(state, data, jax.tree.map(lambda v: v[0], batch))
            return state, jax.tree.map(lambda v: v[None], metrics)
        return jax.lax.scan(lambda state, batch: one_step(state, data, batch), state, batch)

    return steps


def check_terms(objective: Objective, minimised: Any, shape: tuple[int, ...]) -> None:
    """Raises UserError if an objective does not return a dict of terms, nats per example."""
    name = f"objective {type(objective).__name__}"
    gives = "no term" if isinstance(minimised, dict) else f"a {_type(minimised)}"
    require(
        isinstance(minimised, dict) and len(minimised),
        f"{name} gives {gives}; accepted: a dict of terms, nats per example.",
    )
    for term, nats in minimised.items():
        require(
            isinstance(term, str) and term not in OTHER_METRICS,
            f"{name} calls a term {term!r}; accepted: a name other than {', '.join(OTHER_METRICS)}, which "
            "are other metrics.",
        )
        found = getattr(nats, "shape", None)
        kind = f"{nats.dtype} {list(found)}" if found is not None else type(nats).__name__
        require(
            found == shape and jnp.issubdtype(nats.dtype, jnp.floating),
            f"{name} gives the term {term!r} as {kind}; accepted: float32 {list(shape)}, nats per example.",
        )


def _type(value):
    """The type of a value, for messages; an array if it is traced."""
    return "float32 array" if isinstance(value, jax.Array) else type(value).__name__


def check_timed(objective: Objective, minimised: dict[str, Any]) -> None:
    """Raises UserError if an objective's attribute `timed` names a term that it does not have."""
    absent = [term for term in objective.timed if term not in minimised]
    require(
        not absent,
        f"objective {type(objective).__name__} declares in its attribute `timed`, from which "
        f"config.model.times learns, the terms {', '.join(map(repr, objective.timed))}; accepted: any of "
        f"{', '.join(map(repr, minimised))}.",
    )


def ema_decay(step: Int[Array, ""], largest: float) -> Float[Array, ""]:
    """The decay of the average after `step` steps: (1 + n)/(10 + n), but at most `largest`.

    So the average forgets the initial parameters: as long as n is below about 9/(1 − largest), the weight of
    a step grows with the eighth power of its index, and the last tenth of the steps has 61% of the weight.
    """
    n = step.astype(jnp.float32)
    return jnp.minimum(largest, (1.0 + n) / (10.0 + n))
