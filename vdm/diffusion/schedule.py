"""The noise schedule γ(t) = −log SNR(t), increasing from γ(0) to γ(1) (VDM sec. 3.2)."""

from collections.abc import Callable
import functools
import math
from typing import Any, ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vdm.component import Component, accept
from vdm.parameters import Role, by_path


class Schedule(nn.Module, Component):
    """A Flax module that maps times t to γ(t); t = 0 is data, t = 1 is noise.

    With the same γ for all values of an image, the ELBO for T → ∞ depends only on γ(0) and γ(1). The
    interior, γ between these end points, changes the variance of the ELBO's estimate (VDM sec. 5.1, app.
    I.2). A condition may change the interior, but not the end points.

    Attributes:
      shape: height, width and channels of an image.
      gamma_min: γ(0), or its initial value if it is learned. At this γ the network's input is 0.
      gamma_max: γ(1), or its initial value if it is learned. At this γ the network's input is 1.
      per_value: whether γ differs between the values of an image and has the shape [..., *shape].
    """

    shape: tuple[int, int, int]
    gamma_min: float = -13.3
    gamma_max: float = 5.0

    per_value: ClassVar[bool] = False

    @property
    def learned_ends(self) -> bool:
        """Whether γ(0) and γ(1) are learned."""
        return False

    @property
    def learned_interior(self) -> bool:
        """Whether γ is learned between its end points, where it does not change the expected ELBO."""
        return False

    def check(self) -> None:
        accept(
            "gamma_min",
            self.gamma_min < self.gamma_max,
            f"less than gamma_max, which is {self.gamma_max}, as γ = −log SNR grows from data to noise",
        )

    @nn.nowrap
    def at(
        self, params: PyTree, t: Float[Array, "batch"], timesteps: int, *given: Array
    ) -> tuple[Array | None, Array, Array]:
        """γ_s, γ_t and the weight w of the diffusion term: each [batch], or [batch, *shape] if γ differs
        between values.

        T = 0, continuous time: None, γ(t) and γ'(t) (VDM eq. 17). T > 0: t is rounded up to i/T, s = (i −
        1)/T, and w = T (e^{γ_t − γ_s} − 1); with the factor T, one uniformly drawn step estimates the sum
        over all steps (VDM eq. 13, 14).

        Args:
          timesteps: T; 0 for continuous time.
          *given: the arguments of γ besides t.
        """
        gamma = lambda t: self.apply(params, t, *given)
        if timesteps == 0:
            return None, *with_slope(gamma, t)
        step = jnp.minimum(jnp.floor(t * timesteps) + 1.0, timesteps)
        gamma_s, gamma_t = gamma((step - 1.0) / timesteps), gamma(step / timesteps)
        return gamma_s, gamma_t, timesteps * jnp.expm1(gamma_t - gamma_s)

    def is_interior(self, names: list[str]) -> bool:
        """Whether a parameter changes γ only between the end points; `names` is the path to the parameter."""
        return False

    def roles(self, params: PyTree) -> PyTree[Role]:
        """The role of each parameter. There is no weight decay, as a noise level of zero is no simpler than
        any other."""
        return by_path(params, lambda names, _: Role(decayed=False, interior=self.is_interior(names)))


def with_slope(gamma: Callable[[Any], Array], t: Float[Array, "batch"]) -> tuple[Array, Array]:
    """γ(t) and its exact derivative γ'(t) by forward differentiation."""
    return jax.jvp(gamma, (t,), (jnp.ones_like(t),))


# ---- schedules without parameters: a straight line, and published ones ----


class FixedLinear(Schedule):
    """γ(t) = γ_min + (γ_max − γ_min) t, without learned parameters."""

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t


class Cosine(Schedule):
    """γ = 2 log tan(π s/2), so that α = cos(π s/2) (Nichol & Dhariwal 2021), with s linear in t between its
    values at the two end points."""

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        s = (2.0 / math.pi * math.atan(math.exp(0.5 * g)) for g in (self.gamma_min, self.gamma_max))
        low, high = s
        return 2.0 * jnp.log(jnp.tan(0.5 * math.pi * (low + (high - low) * t)))


class LinearBeta(Schedule):
    """γ = log expm1(b s + (B − b) s²/2): noise is added at a rate that grows from b to B, as in DDPM (Ho et
    al. 2020; Song et al. 2021, app. C), with s linear in t between its values at the two end points.

    Attributes:
      slow: b, the rate at s = 0.
      fast: B, the rate at s = 1.
    """

    slow: float = 0.1  # b
    fast: float = 20.0  # B

    def check(self) -> None:
        super().check()
        accept("slow", self.slow >= 0, "0 or more")
        accept("fast", self.fast > self.slow, f"more than slow, which is {self.slow}")

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        ends = self.gamma_min, self.gamma_max
        low, high = (time_of(math.log1p(math.exp(gamma)), self.slow, self.fast) for gamma in ends)
        s = low + (high - low) * t
        return jnp.log(jnp.expm1(self.slow * s + 0.5 * (self.fast - self.slow) * s * s))


def time_of(added: Any, slow: float, fast: float) -> Any:
    """The s at which −log(1 − σ²) is `added`, the integral of DDPM's rate of noise from 0 to s: the root of
    b s + (B − b) s²/2, with b = `slow` and B = `fast`. Takes numbers and arrays."""
    return 2.0 * added / ((slow**2 + 2.0 * (fast - slow) * added) ** 0.5 + slow)


class Sigmoid(Schedule):
    """α² decreases from 1 to 0 as a sigmoid does from `steep` to −`steep` (Jabri et al. 2022), with s linear
    in t between its values at the two end points.

    Attributes:
      steep: half the length of the interval of the sigmoid; 3 in the paper.
    """

    steep: float = 3.0

    def check(self) -> None:
        super().check()
        accept("steep", self.steep > 0, "more than 0")

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        a = self.steep
        whole = math.tanh(0.5 * a)  # sigmoid(a) − sigmoid(−a)

        def time_of(gamma):
            noise = 1.0 / (1.0 + math.exp(-gamma)) * whole + 1.0 / (1.0 + math.exp(a))
            return (math.log(noise) - math.log1p(-noise) + a) / (2.0 * a)

        low, high = time_of(self.gamma_min), time_of(self.gamma_max)
        s = low + (high - low) * t
        # sigmoid(b) − sigmoid(a) = sigmoid(b) sigmoid(−a) (1 − e^{a − b}) loses no digits.
        noise = jax.nn.log_sigmoid(2.0 * a * s - a) + jnp.log(-jnp.expm1(-2.0 * a * s))
        signal = jax.nn.log_sigmoid(a - 2.0 * a * s) + jnp.log(-jnp.expm1(2.0 * a * (s - 1.0)))
        return noise - signal


class Polynomial(Schedule):
    """α = 1 − s² (Hoogeboom et al. 2022), with s linear in t between its values at the two end points."""

    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        def time_of(gamma):
            alpha2 = 1.0 / (1.0 + math.exp(gamma))
            return math.sqrt(1.0 / (1.0 + math.exp(-gamma)) / (1.0 + math.sqrt(alpha2)))

        low, high = time_of(self.gamma_min), time_of(self.gamma_max)
        square = jnp.square(low + (high - low) * t)
        return jnp.log(square) + jnp.log(2.0 - square) - 2.0 * jnp.log1p(-square)


# ---- learned end points, interior, or both (VDM app. H) ----


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
    """A schedule with a learned interior, which cannot move the end points.

    Attributes:
      learn_ends: whether the end points are learned, too.
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
    γ(t) = γ_0 + (γ_1 − γ_0) (f(t) − f(0)) / (f(1) − f(0)) has end points that do not depend on f: learning
    the interior cannot move them.

    Attributes:
      hidden: number of units of l2, the middle layer.
    """

    hidden: int = 1024

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        ends = self.ends()
        # The sigmoids are spread over the interval, and each is a fifth of it wide: with wider ones, γ learns
        # its shape too slowly.
        layers = (Positive(1, 1.0), Positive(self.hidden, 10.0), Positive(1, 10.0 / self.hidden))

        def f(t):
            first = layers[0](t[..., None])
            return (first + layers[2](jax.nn.sigmoid(layers[1](first))))[..., 0]

        # One matrix product computes all f, so that γ(0) and γ(1) are the end points to the last digit.
        t = jnp.asarray(t)
        values = f(jnp.append(t, jnp.array([0.0, 1.0])))
        f_t, f_0, f_1 = values[:-2].reshape(t.shape), values[-2], values[-1]
        return ends((f_t - f_0) / (f_1 - f_0))


class Piecewise(Interior):
    """Linear over each of `parts` equal parts of [0, 1]; the share of each part in γ(1) − γ(0) is learned.

    Attributes:
      parts: number of parts.
    """

    parts: int = 20

    def check(self) -> None:
        super().check()
        accept("parts", self.parts >= 1, "1 or more")

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        ends = self.ends()
        share = jax.nn.softmax(self.param("share", nn.initializers.zeros, (self.parts,)))
        at = jnp.concatenate([jnp.zeros(1), jnp.cumsum(share)])
        at /= at[-1]  # exactly 1 at the end, so that γ(1) does not move
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
        return self.scale * (_product(x, jax.nn.softplus(kernel)) + bias)


# Full float32: accelerators would otherwise round the factors to 8 or 11 bits.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _constant(value):
    return lambda key: jnp.asarray(value, jnp.float32)


class MovingNet(Schedule):
    """The learned schedule of the authors' code, in which all parameters move the end points, too:
    γ(t) = b + |w| t + 1/n Σ |v_i| tanh(½ (|u_i| (2t − 1) + c_i)), with n = `hidden` (google-research/vdm).

    Unlike those of LearnedNet, all its parameters move γ(0) and γ(1), so that all of them change the ELBO.

    Attributes:
      hidden: n, the number of tanh functions.
    """

    hidden: int = 1024

    @property
    def learned_ends(self) -> bool:
        return True

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        small, zeros = nn.initializers.normal(), nn.initializers.zeros
        start = self.param("start", _constant(self.gamma_min))
        width = self.param("width", _constant(self.gamma_max - self.gamma_min))
        steep, height = (self.param(name, small, (self.hidden,)) for name in ("steep", "height"))
        bias = self.param("bias", zeros, (self.hidden,))
        t = jnp.asarray(t)
        bends = 2.0 * jax.nn.sigmoid((2.0 * t[..., None] - 1.0) * jnp.abs(steep) + bias) - 1.0
        return start + jnp.abs(width) * t + _product(bends, jnp.abs(height)) / self.hidden
