"""Noise schedules that are learned: end points, interior, or both (VDM app. H)."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.component import accept
from vdm.diffusion.schedule.base import Schedule
from vdm.diffusion.schedule.fixed import FixedLinear


class LearnedLinear(Schedule):
    """A straight line whose two end points are learned: γ(t) = b + |w| t (VDM app. H)."""

    @property
    def learned_ends(self) -> bool:
        return True

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        start = self.param("start", _constant(self.gamma_min))
        width = self.param("width", _constant(self.gamma_max - self.gamma_min))
        return start + jnp.abs(width) * t


class Interior(Schedule):
    """A schedule whose interior is learned, between end points that the interior cannot move.

    Attributes:
      learn_ends: whether the end points are learned too.
    """

    learn_ends: bool = False

    @property
    def learned_ends(self) -> bool:
        return self.learn_ends

    @property
    def learned_interior(self) -> bool:
        return True

    def is_interior(self, names: list[str]) -> bool:
        return "ends" not in names

    def ends(self) -> Schedule:
        """The straight line between the end points."""
        line = dict(shape=self.shape, gamma_min=self.gamma_min, gamma_max=self.gamma_max)
        return LearnedLinear(**line, name="ends") if self.learn_ends else FixedLinear(**line)


class LearnedNet(Interior):
    """The monotone network of VDM app. H, between given end points.

    With weights kept positive, f(t) = l1(t) + l3(sigmoid(l2(l1(t)))) increases, and
    γ(t) = γ_0 + (γ_1 − γ_0) (f(t) − f(0)) / (f(1) − f(0)) has end points that do not
    depend on f: learning the interior cannot move them.
    """

    hidden: int = 1024

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        ends = self.ends()
        # Sigmoids as narrow as a fifth of the way, spread over all of it, or it bends too slowly.
        layers = (Positive(1, 1.0), Positive(self.hidden, 10.0), Positive(1, 10.0 / self.hidden))

        def f(t):
            first = layers[0](t[..., None])
            return (first + layers[2](jax.nn.sigmoid(layers[1](first))))[..., 0]

        # All in one product, so that γ(0) and γ(1) are the end points to the last digit.
        t = jnp.asarray(t)
        values = f(jnp.append(t, jnp.array([0.0, 1.0])))
        f_t, f_0, f_1 = values[:-2].reshape(t.shape), values[-2], values[-1]
        return ends((f_t - f_0) / (f_1 - f_0))


class Piecewise(Interior):
    """Straight lines over `parts` equal parts of [0, 1], whose shares of the way from γ(0) to γ(1)
    are learned."""

    parts: int = 20

    def check(self) -> None:
        super().check()
        accept("parts", self.parts >= 1, "1 or more")

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        ends = self.ends()
        share = jax.nn.softmax(self.param("share", nn.initializers.zeros, (self.parts,)))
        at = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])
        at /= at[-1]  # 1 exactly, so that γ(1) stays where it is
        part = jnp.clip(jnp.floor(t * self.parts), 0, self.parts - 1).astype(jnp.int32)
        return ends(at[part] + (at[part + 1] - at[part]) * (t * self.parts - part))


class Positive(nn.Module):
    """A dense layer whose weights are positive, so that its output increases in its input."""

    features: int
    scale: float

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.normal(1.0), (self.features,))
        return self.scale * (x @ jax.nn.softplus(kernel) + bias)


def _constant(value):
    return lambda key: jnp.asarray(value, jnp.float32)
