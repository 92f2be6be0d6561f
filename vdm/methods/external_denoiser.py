"""A VDM that was trained elsewhere: its denoiser and its schedule are functions, from any framework."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vdm.component import choose
from vdm.diffusion import denoiser as denoiser_lib, process
from vdm.diffusion.model import Diffusion
from vdm.diffusion.schedule import Schedule
from vdm.errors import require

# (z [batch, height, width, channels], γ [batch], labels int32 [batch] or None) → like z.
Denoiser = Callable[[Array, Array, Array | None], Array]
PREDICTS = ("eps", "x", "v")


class Curve(Schedule):
    """A schedule that is a given function, without learned parameters.

    Attributes:
      function: t → γ(t), for times of any shape; JAX differentiates it.
    """

    function: Callable[[Array], Array] = lambda t: t

    @classmethod
    def of(cls, shape: tuple[int, int, int], function: Callable[[Array], Array]) -> "Curve":
        """The Curve of a function, with the end points γ(0) and γ(1) of the function."""
        low, high = (float(function(jnp.float32(t))) for t in (0.0, 1.0))
        return cls(shape=shape, gamma_min=low, gamma_max=high, function=function)

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        return self.function(t)


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The scale of the data of another model: level i is at a x + b, where x is `process.scale` of i.

    That model's z is α (a x + b) + σ ε. A linear map turns it into a z of the data x at γ − 2 log a: the same
    process in other units.
    """

    a: float = 1.0
    b: float = 0.0

    @classmethod
    def of_range(cls, low: float, high: float, vocab_size: int) -> "Scaling":
        """The Scaling of data whose lowest level is at `low`, and the highest at `high`."""
        half = 0.5 * (high - low) * vocab_size / (vocab_size - 1)
        return cls(half, 0.5 * (high + low))

    def ours(self, gamma: Array) -> Array:
        """γ for the data x, if γ for the other model's data is `gamma`."""
        return gamma - 2.0 * math.log(self.a)

    def theirs(self, z: Array, gamma: Array) -> tuple[Array, Array]:
        """(z, γ) of the other model, from those for the data x; γ broadcasts against z."""
        other = gamma + 2.0 * math.log(self.a)
        return z * process.sigma(other) / process.sigma(gamma) + process.alpha(other) * self.b, other


@dataclasses.dataclass(frozen=True)
class External(Diffusion):
    """A VDM that was trained elsewhere; `schedule` is a Curve of γ for the data x.

    Attributes:
      denoise: the denoiser, in the units of the external model.
      predicts: what the denoiser predicts: ε̂, x̂ or v̂.
      scaling: the Scaling of the external model's data.
      labelled: whether the denoiser is conditioned on labels.
    """

    denoise: Denoiser | None = None
    predicts: str = "eps"
    scaling: Scaling = Scaling()
    labelled: bool = False

    def verify(self, params: Any) -> None:
        """Checks nothing: evaluation/audit.py finds mistakes, and reports them beside the numbers."""

    def check(self) -> None:
        choose("predicts", self.predicts, PREDICTS)

    @property
    def given_label(self) -> bool:
        return self.labelled

    def condition_of(self, batch: Any) -> Any:
        return batch["label"] if self.labelled else None

    def eps_hat(self, params, z_t, gamma, condition, dropout_keys=None) -> Array:
        assert self.denoise is not None
        z, other = self.scaling.theirs(z_t, process.over_pixels(gamma))
        found = self.denoise(z, jnp.ravel(other), condition)
        if self.predicts == "x":
            return denoiser_lib.eps_from_x(found, z, other)
        return denoiser_lib.eps_from_v(found, z, other) if self.predicts == "v" else found


def on_host(function: Callable[..., Any], vjp: Callable[..., Any] | None = None) -> Denoiser:
    """Wraps a denoiser of another framework, so that JAX can call it.

    Args:
      function: (z, γ, labels) → an array like z, on NumPy arrays: float32 [batch, height, width, channels],
        float32 [batch], and int32 [batch] or None.
      vjp: (z, γ, labels, cotangent like z) → the gradient in z of the sum of function · cotangent. Without
        `vjp` the ODE, which needs a derivative, is omitted.
    """

    def call(target, images, numbers):
        z = images[0]

        def on_arrays(images, numbers):
            # Under vmap, each array has further leading axes.
            shape = images[0].shape
            flat = [np.asarray(part, np.float32).reshape(-1, *shape[-3:]) for part in images]
            gamma, *labels = (np.asarray(part).reshape(-1) for part in numbers)
            found = target(flat[0], gamma, *(labels or [None]), *flat[1:])
            return np.asarray(found, np.float32).reshape(shape)

        like = jax.ShapeDtypeStruct(z.shape, jnp.float32)
        return jax.pure_callback(on_arrays, like, images, numbers, vmap_method="broadcast_all")

    @jax.custom_vjp
    def apply(z, numbers):
        return call(function, (z,), numbers)

    def pull(inputs, cotangent):
        require(vjp is not None, "the denoiser runs on the host and has no vjp: give on_host(function, vjp).")
        z, numbers = inputs
        return call(vjp, (z, cotangent), numbers), None

    def push(z, numbers):
        return apply(z, numbers), (z, numbers)

    apply.defvjp(push, pull)

    def denoise(z: Array, gamma: Array, labels: Array | None) -> Array:
        return apply(z, (gamma,) if labels is None else (gamma, labels))

    return denoise
