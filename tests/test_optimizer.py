"""Optimisers: AdamW against NumPy, weight decay, clipping, and learning rates."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optimizer_helpers import flat, model_of, random_like, section
from vdm import optimizer as optimizer_lib
from vdm.errors import UserError
from vdm.optimizer import AdamW, Optimizer

# ---- AdamW ---------------------------------------------------------------------------


def test_adamw_is_its_formula():
    """Three steps with warm-up and decay, in float64 (Loshchilov & Hutter 2019, algorithm 2)."""
    model, params = model_of()
    fields = {"learning_rate": 0.02, "weight_decay": 0.3, "b1": 0.8, "b2": 0.9, "eps": 1e-3, "warmup": 2}
    tx = optimizer_lib.build(section("adamw", **fields), 10, model.roles(params))
    value = random_like(params)
    state, path = tx.init(value), "layers/Dense_0/kernel"
    expected = np.asarray(flat(value)[path], np.float64)
    first, second = 0.0, 0.0
    for n in (1, 2, 3):
        grads = random_like(params, n)
        update, state = jax.jit(tx.update)(grads, state, value)
        value = optax.apply_updates(value, update)
        g = np.asarray(flat(grads)[path], np.float64)
        first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g * g
        adam = first / (1 - 0.8**n) / (np.sqrt(second / (1 - 0.9**n)) + 1e-3)
        rate = 0.02 * min(1.0, (n - 1) / 2)
        expected = expected - rate * (adam + 0.3 * expected)
        np.testing.assert_allclose(flat(value)[path], expected, rtol=2e-5, atol=2e-6)


MUON_DECAYS = pytest.mark.xfail(strict=True, reason="optax.contrib.muon gives its Adam no mask")


@pytest.mark.parametrize("name", ["adamw", pytest.param("muon", marks=MUON_DECAYS)])
@pytest.mark.parametrize("schedule", ["learned_linear", "learned_net", "multivariate"])
def test_a_schedule_is_not_decayed(name, schedule):
    """With zero gradients, a schedule stays, and all other parameters shrink by rate · weight decay."""
    more = {
        "learned_net": {"model__schedule__learn_ends": True},
        "multivariate": {"model__name": "mulan", "model__context": 3},
    }
    model, params = model_of(model__net__name="mlp", model__schedule__name=schedule, **more.get(schedule, {}))
    tx = optimizer_lib.build(section(name, learning_rate=0.1, weight_decay=0.5), 10, model.roles(params))
    value, zeros = random_like(params), jax.tree.map(lambda s: jnp.zeros(s.shape), params)
    update, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(zeros, value)
    decayed = 0
    for path, moved in flat(update).items():
        if path.startswith("schedule/"):
            assert not np.any(moved), path
        else:
            np.testing.assert_allclose(moved, -0.05 * flat(value)[path], rtol=1e-5, err_msg=path)
            decayed += 1
    assert 0 < decayed < len(flat(update))


# ---- clipping ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plain(Optimizer):
    """Returns the gradients unchanged, to show the effect of clipping."""

    def updates(self, rate, roles):
        return optax.identity()


@pytest.mark.parametrize("clip", [0.0, 2.0, 1e6])
def test_the_interior_of_a_schedule_is_clipped_apart(clip):
    fields = {"model__schedule__name": "learned_net", "model__schedule__learn_ends": True}
    model, params = model_of(model__net__name="mlp", **fields)
    tx = optimizer_lib.build(section(f"{__name__}:Plain", clip=clip), 10, model.roles(params))
    # The interior's gradient is a thousand times as large.
    grads, roles = random_like(params), model.roles(params)
    grads = jax.tree.map(lambda role, g: 1e3 * g if role.interior else g, roles, grads)
    found, _ = tx.update(grads, tx.init(params))
    parts = {"interior": [], "others": []}
    for path in flat(grads):
        inside = path.startswith("schedule/") and "/ends/" not in path
        parts["interior" if inside else "others"].append(path)
    assert len(parts["interior"]) == 6 and "schedule/params/ends/start" in parts["others"]
    for paths in parts.values():
        norm = math.sqrt(sum(float(np.sum(np.float64(flat(grads)[path]) ** 2)) for path in paths))
        share = min(1.0, clip / norm) if clip else 1.0
        assert (share < 1) == (clip == 2.0)
        for path in paths:
            np.testing.assert_allclose(flat(found)[path], share * np.asarray(flat(grads)[path]), rtol=1e-5)


# ---- learning rates ------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["constant", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(10, 50), (0, 20), (1, 20), (30, 20)])
def test_learning_rates_are_their_formula(decay, warmup, steps):
    rate = optimizer_lib.learning_rate(AdamW(learning_rate=0.3, warmup=warmup, decay=decay), steps)
    for n in range(steps + 1):
        if n < warmup:
            expected = 0.3 * n / warmup
        elif decay == "constant":
            expected = 0.3
        else:
            way = min(1.0, (n - warmup) / max(1, steps - warmup))
            expected = 0.15 * (1.0 + math.cos(math.pi * way))
        assert float(rate(n)) == pytest.approx(expected, abs=1e-6), n


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"decay": "cosin"}, "decay is 'cosin'; accepted: 'constant', 'cosine'. Did you mean 'cosine'?"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; accepted: 0 or more."),
        ({"warmup": -1}, "warmup is -1; accepted: 0 or more."),
        ({"clip": -0.5}, "clip is -0.5; accepted: 0 or more."),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; accepted: 0 or more."),
    ],
)
def test_values_that_are_not_accepted(fields, text):
    model, params = model_of()
    for name in ("adamw", "muon"):
        with pytest.raises(UserError) as error:
            optimizer_lib.build(section(name, **fields), 10, model.roles(params))
        assert str(error.value) == f"config.optimizer.{text}"


@dataclasses.dataclass(frozen=True)
class Wrong(Optimizer):
    """An optimiser with the error that `how` names."""

    how: str = "nothing"

    def updates(self, rate, roles):
        half = lambda tree: jax.tree.map(lambda leaf: -0.5 * leaf, tree)
        step = {
            "nothing": lambda grads, state, params: (half(grads), state),
            "leaves": lambda grads, state, params: (jax.tree.leaves(half(grads)), state),
            "scalars": lambda grads, state, params: (jax.tree.map(jnp.sum, grads), state),
            "state": lambda grads, state, params: (half(grads), (state, state)),
            "error": lambda grads, state, params: (half(grads) * rate, state),
            "function": None,
        }[self.how]
        return optax.GradientTransformation(lambda params: jnp.zeros(()), step) if step else half


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("leaves", "optimiser Wrong returns updates unlike the parameters"),
        ("scalars", "optimiser Wrong returns updates unlike the parameters"),
        ("state", "optimiser Wrong returns a state unlike the one before"),
        ("error", r"optimiser Wrong fails with TypeError: .*test_optimizer.py:\d+"),
        ("function", r"updates\(\) of optimiser Wrong returns a function; accepted: an optax.Gradient"),
    ],
)
def test_an_optimiser_that_gives_no_update_of_each_parameter_is_refused(how, text):
    model, params = model_of()
    like = jax.eval_shape(lambda: params)
    build = lambda how: optimizer_lib.build(
        section(f"{__name__}:Wrong", how=how), 10, model.roles(params), like
    )
    build("nothing")
    with pytest.raises(UserError, match=text):
        build(how)
