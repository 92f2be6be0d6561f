"""Optimisers, learning rates and clipping. A custom optimiser is a class that derives from Optimizer."""

from collections.abc import Callable
import dataclasses
from typing import Any, ClassVar

import jax
from jaxtyping import PyTree
import optax

from vdm import component
from vdm.component import Component, accept, choose
from vdm.errors import require
from vdm.parameters import Role

MOMENTUM = 0.95  # momentum of Muon, Optax's default

Rate = Callable[[Any], Any]  # step → learning rate


@dataclasses.dataclass(frozen=True)
class Optimizer(Component):
    """An optimiser, its learning rate and its clipping.

    Attributes:
      learning_rate: the rate after warm-up.
      warmup: number of steps in which the rate rises from 0 to learning_rate.
      decay: the rate after warm-up: constant, or cosine, which falls to 0 at the last step.
      weight_decay: weight decay per step, relative to the learning rate.
      clip: largest norm of the gradient; 0: not clipped. The interior of a schedule is clipped separately, as
        the gradient of a variance has other units.
      needs_matrices: whether the optimiser is of no use if no parameter is a matrix.
    """

    learning_rate: float = 2e-4
    warmup: int = 100
    decay: str = "constant"
    weight_decay: float = 0.01
    clip: float = 0.0

    needs_matrices: ClassVar[bool] = False

    def check(self) -> None:
        choose("decay", self.decay, ("constant", "cosine"))
        for name in ("learning_rate", "warmup", "weight_decay", "clip"):
            accept(name, getattr(self, name) >= 0, "0 or more")

    def updates(self, rate: Rate, roles: PyTree[Role]) -> optax.GradientTransformation:
        """The transformation of gradients to updates with the learning rate `rate`, without clipping."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    Attributes:
      b1: decay of Adam's mean of the gradients.
      b2: decay of Adam's mean of the squared gradients.
      eps: the constant that Adam adds to the root of the mean square.
    """

    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8

    def updates(self, rate: Rate, roles: PyTree[Role]) -> optax.GradientTransformation:
        return optax.adamw(
            rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decayed(roles),
        )


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Muon for the parameters that are matrices, and NAdamW for the others (Jordan et al. 2024).

    Orthogonalises the update of a matrix, and scales it to the size of an Adam update, so that one learning
    rate suits both.

    Optax's Muon has no mask for the weight decay of the other parameters, so it decays a schedule, too.

    Attributes:
      dtype: type of the matrix products that orthogonalise an update: float32, or bfloat16 for GPUs. Momentum
        and parameters are float32; with bfloat16 the momentum has no bias correction.
    """

    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    dtype: str = "float32"

    needs_matrices: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        choose("dtype", self.dtype, ("float32", "bfloat16"))

    def updates(self, rate: Rate, roles: PyTree[Role]) -> optax.GradientTransformation:
        if self.dtype == "float32":
            return self._muon(rate, roles)
        # Optax's Muon computes its products in the type of its input, so the momentum is computed before it.
        narrow, wide = (
            optax.stateless(lambda tree, _, to=to: optax.tree.cast(tree, to))
            for to in (self.dtype, "float32")
        )
        matrices = optax.chain(
            optax.trace(MOMENTUM, nesterov=True),
            narrow,
            self._muon(rate, roles, beta=0.0, nesterov=False, mu_dtype=self.dtype),
            wide,
        )
        others = optax.nadamw(rate, self.b1, self.b2, self.eps, weight_decay=self.weight_decay)

        def labels(params):  # for trees in which some parts may be masked
            of = lambda role, part: jax.tree.map(lambda _: "matrix" if role.matrix else "other", part)
            return jax.tree.map(of, roles, params)

        return optax.partition({"matrix": matrices, "other": others}, labels)

    def _muon(self, rate, roles, **momentum):
        def axes(role):
            return optax.contrib.MuonDimensionNumbers(*role.matrix) if role.matrix else None

        return optax.contrib.muon(
            rate,
            **momentum,
            weight_decay=self.weight_decay,
            weight_decay_mask=decayed(roles),
            adam_b1=self.b1,
            adam_b2=self.b2,
            eps=self.eps,
            adam_weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=jax.tree.map(axes, roles),
            consistent_rms=0.2,
        )


def build(
    section: Any, steps: int, roles: PyTree[Role], params: PyTree | None = None
) -> optax.GradientTransformation:
    """The optimiser that `config.optimizer` describes, for a run of `steps` steps.

    Args:
      roles: the roles of the parameters.
      params: shapes and types of the parameters, with which a custom optimiser is verified.

    Raises:
      UserError: a field has a value that is not accepted, the model has no matrices for an optimiser that
        needs them, or the optimiser does not return an update of each parameter.
    """
    made = component.build("optimizer", section, "config.optimizer")
    require(
        not made.needs_matrices or any(role.matrix for role in jax.tree.leaves(roles)),
        f"config.optimizer.name is {section.name!r}, but this model declares no parameter as a matrix; "
        "accepted for this model: 'adamw'.",
    )
    name = f"optimiser {type(made).__name__}"
    with component.blamed(made, name):
        own = made.updates(learning_rate(made, steps), roles)
        require(
            isinstance(own, optax.GradientTransformation),
            f"updates() of {name} returns a {type(own).__name__}; accepted: an optax.GradientTransformation.",
        )
        if params is not None and component.is_own(made):
            _verify(name, own, params)
    clipping = [optax.stateless(_clip(made.clip, roles))] if made.clip > 0 else []
    updates = optax.chain(*clipping, own)
    if not any(role.fixed for role in jax.tree.leaves(roles)):
        return updates
    labels = jax.tree.map(lambda role: "fixed" if role.fixed else "trained", roles)
    return optax.partition({"trained": updates, "fixed": optax.set_to_zero()}, labels)


def _verify(name: str, updates: optax.GradientTransformation, params: PyTree) -> None:
    """Raises UserError if an optimiser does not return an update for each parameter, or changes the form of
    its state."""
    like = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    state = jax.eval_shape(updates.init, params)
    update, after = jax.eval_shape(updates.update, params, state, params)
    for what, found, wanted in (("updates", update, params), ("a state", after, state)):
        require(
            like(found) == like(wanted),
            f"{name} returns {what} unlike {'the parameters' if wanted is params else 'the one before'}; "
            "accepted: the same tree, shapes and types.",
        )


def learning_rate(optimizer: Optimizer, steps: int) -> Rate:
    """Step → learning rate: linear warm-up, then constant, or a cosine down to 0 at `steps`."""
    if optimizer.decay == "constant":
        after = optax.constant_schedule(optimizer.learning_rate)
    else:
        after = optax.cosine_decay_schedule(optimizer.learning_rate, max(1, steps - optimizer.warmup))
    warmup = optax.linear_schedule(0.0, optimizer.learning_rate, max(1, optimizer.warmup))
    return optax.join_schedules([warmup, after], [optimizer.warmup])


def decayed(roles: PyTree[Role]) -> PyTree[bool]:
    """Which parameters are decayed: the mask for Optax's optimisers."""
    return jax.tree.map(lambda role: role.decayed, roles)


def _clip(largest, roles):
    def clip(updates, _):
        for interior in (False, True):
            mask = jax.tree.map(lambda role: role.interior == interior, roles)
            part = optax.masked(optax.clip_by_global_norm(largest), mask)
            updates, _ = part.update(updates, part.init(updates))
        return updates

    return clip
