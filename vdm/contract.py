"""The contract that every generative model keeps: what it draws, and its further abilities.

A model is a frozen value that holds no arrays: all state is in `params`. Losses are nats per example; they
become bits/dim in `bits_per_dim` alone.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import enum
import math
from typing import Any, NamedTuple, Protocol

from jaxtyping import Array, Float, PyTree, UInt8

from vdm.component import Component
from vdm.data.dataset import Spec, Split
from vdm.errors import require
from vdm.gaussian import Gaussian
from vdm.parameters import Role, alike

Params = Any
# "image": integer levels [batch, height, width, channels]; "label": int32 [batch]; "augmented": float32
# [batch], 1 where the image was changed.
Batch = Mapping[str, Any]
Terms = dict[str, Float[Array, "batch"]]


class Random(Protocol):
    """Where a model's draws come from: randomness.Rng in training, randomness.QuasiRng in evaluation."""

    def keys(self, use: int) -> Array:
        """One key for each example."""

    def normal(self, use: int, shape: tuple[int, ...]) -> Array:
        """Standard normal draws for each example."""

    def uniform(self, use: int) -> Array:
        """Uniform on [0, 1) for each example, and stratified: spread evenly over the batch."""


# (rng) → diffusion times t [batch] in [0, 1), and 1/q(t) of the density q that they have.
DrawTimes = Callable[[Random], tuple[Float[Array, "batch"], Float[Array, "batch"]]]


class Denoising(NamedTuple):
    """What the diffusion term of one draw is made of: ½ w(t)/q(t) ‖target − ε̂(z_t)‖².

    Attributes:
      t: the time, with the density q.
      time_weight: 1/q(t).
      gamma: γ(t), of each example or of each value.
      weight: w(t) like γ: γ'(t) in continuous time, T (e^{γ_t − γ_s} − 1) in a chain of T steps.
      x: the data in [−1, 1], or the latent that stands for them.
      eps: the noise ε in z_t.
      z_t: α x + σ ε.
      target: the noise that ε̂ is to predict: ε, unless the encoder is learned.
      eps_hat: ε̂(z_t).
      denoiser: ε̂ of this draw as a function of z, with the same γ, condition and dropout.
      rng: for what a loss draws itself, by a use of its own (randomness.PROBE).
    """

    t: Float[Array, "batch"]
    time_weight: Float[Array, "batch"]
    gamma: Float[Array, "batch *any"]
    weight: Float[Array, "batch *any"]
    x: Float[Array, "batch *shape"]
    eps: Float[Array, "batch *shape"]
    z_t: Float[Array, "batch *shape"]
    target: Float[Array, "batch *shape"]
    eps_hat: Float[Array, "batch *shape"]
    denoiser: Callable[[Float[Array, "batch *shape"]], Float[Array, "batch *shape"]]
    rng: Random


class Draw(NamedTuple):
    """One draw of the ELBO for each image of a batch. It holds a function, so that what leaves a jitted
    function is some of it.

    Attributes:
      terms: name of each term to nats; their sum is the negative ELBO, or the exact negative log-likelihood
        of a model with Ability.EXACT.
      denoising: what else a loss may want of a model with Ability.TIME; None of any other.
    """

    terms: Terms
    denoising: Denoising = None  # type: ignore[assignment]  # an objective that reads it needs Ability.TIME


class Latents(NamedTuple):
    """The latents z_1 … z_T of a model, one above the other, for a codec: q(z_1|x), q(z_t|z_{t−1}),
    p(x|z_1), p(z_{t−1}|z_t), p(z_T). All Gaussians are diagonal; t counts from 1, and may be traced.

    Attributes:
      timesteps: T.
      shape: of a latent.
      q_1: (params, batch) → q(z_1|x).
      q: (params, t, z_{t−1}) → q(z_t|z_{t−1}), t ≥ 2.
      p: (params, t, z_t, batch, keys=None) → p(z_{t−1}|z_t), t ≥ 2; of the batch it reads what the model is
        conditioned on, and not the images; with keys of each example, there is dropout.
      prior: (params) → p(z_T).
      logits: (params, z_1) → those of p(x|z_1), [batch, *image, vocab_size].
      deviations: (params) → the smallest standard deviation of each z_t under q and p, [T, *#shape], or what
        may stand for it where that is learned.
    """

    timesteps: int
    shape: tuple[int, ...]
    q_1: Callable[[Params, Batch], Gaussian]
    q: Callable[[Params, Any, Array], Gaussian]
    p: Callable[..., Gaussian]
    prior: Callable[[Params], Gaussian]
    logits: Callable[[Params, Array], Array]
    deviations: Callable[[Params], Any]


class Stages(NamedTuple):
    """How a model with Ability.EXACT gives the values of an image, for a codec: in stages, of which each is
    given by those before it.

    Attributes:
      places: of the values of each stage, in raster order: row, column, channel.
      start: (params, batch) → what is carried into the first stage; it does not read the images.
      logits: (params, carried, places, levels [batch, values], of which those of later stages are not read)
        → [batch, len(places), vocab_size], and what is carried on.
    """

    places: Sequence[Any]
    start: Callable[[Params, Batch], Any]
    logits: Callable[[Params, Any, Array, Array], tuple[Array, Any]]


class Flow(NamedTuple):
    """The probability-flow ODE of the images of a batch, of one random point of each.

    Attributes:
      z: where it starts, [batch, *latent].
      ends: γ there and γ_1; or with a `curve` the times 0 and 1.
      eps_hat: (z, γ, given) → ε̂.
      given: a tree of arrays of each example.
      curve: (time, given of one example) → γ of each value; None where all have one γ.
      nats: with log p(z) of the flow they make log p(x, …)/q(…|x), whose exponential has the mean p(x).
    """

    z: Array
    ends: tuple[Array, Array]
    eps_hat: Callable[[Array, Array, Any], Array]
    given: Any
    curve: Callable[[Array, Any], Array] | None
    nats: Float[Array, "batch"]


class Ability(enum.Enum):
    """What not every model can do; the text completes "which needs …"."""

    EXACT = "a likelihood in closed form"
    TIME = "a model that draws a diffusion time"
    DENOISER = "a denoiser of the images themselves"
    ONE_GAMMA = "one γ for all values of an image"
    LOG_WEIGHT = "latents with importance weights"
    FLOW = "a probability-flow ODE"
    INTERIOR = "continuous time and a schedule that is learned between its end points"
    FIXED_ENDS = "a schedule whose end points are not learned"
    PREDICTS_NOISE = "a denoiser that predicts the noise in z_t, with one γ for all values of an image"
    CODE = "distributions that a codec can use one after the other"


def check_needs(name: str, needs: Any) -> None:
    """Raises UserError where what a component needs is no set of Ability."""
    wrong = [] if isinstance(needs, frozenset | set) else [needs]
    wrong += [] if wrong else [one for one in needs if not isinstance(one, Ability)]
    require(
        not wrong,
        f"{name} needs {wrong[0] if wrong else ''!r}; accepted: needs = frozenset of vdm.contract.Ability."
        f"{', Ability.'.join(ability.name for ability in Ability)}.",
    )


@dataclasses.dataclass(frozen=True)
class Model(Component):
    """A generative model of images.

    The first block of methods is every model's; each of the second belongs to the abilities that its
    docstring names.
    """

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "Model":
        """The model that a section config.model describes, for images as `spec` has them.

        Raises:
          UserError: a field has a value that is not accepted.
        """
        raise NotImplementedError

    @property
    def abilities(self) -> frozenset[Ability]:
        """What it can do that not every model can."""
        return frozenset()

    @property
    def given_label(self) -> bool:
        """Whether its likelihood is that of an image given its label."""
        return False

    @property
    def takes_label(self) -> bool:
        """Whether it is conditioned on labels, in whatever way they count in its likelihood."""
        return self.given_label

    @property
    def heavy(self) -> bool:
        """Whether one step of training takes seconds on a CPU, so that a call takes one step alone."""
        return False

    def init(self, key: Array, batch: Batch) -> Params:
        """Fresh parameters."""
        raise NotImplementedError

    def fit(self, split: Split) -> Params:
        """Those parameters that start as the training images give them in closed form: none."""
        return {}

    def verify(self, params: Params) -> None:
        """Measures, in a fraction of a second, whether its components are what they say.

        Raises:
          UserError: one is not; the line says what is wrong.
        """

    @property
    def times(self) -> Any:
        """TIME: how training draws diffusion times (diffusion.times.Times); None of any other model."""
        return None

    def draw(
        self, params: Params, rng: Random, batch: Batch, train: bool = False, times: DrawTimes | None = None
    ) -> Draw:
        """One draw of the ELBO.

        Args:
          train: whether there is dropout.
          times: of a model with Ability.TIME, how to draw the diffusion times; None for uniform ones,
            stratified over the batch. The choice changes only the variance of the diffusion term.
        """
        raise NotImplementedError

    def sample(
        self, params: Params, rng: Random, batch: Batch
    ) -> UInt8[Array, "batch height width channels"]:
        """Samples, under the labels of `batch` where the model is conditioned on them."""
        raise NotImplementedError

    def roles(self, params: Params) -> PyTree[Role]:
        """What each parameter is to the optimiser."""
        return alike(params, Role())

    def log_weight(self, params: Params, rng: Random, batch: Batch) -> Float[Array, "batch"]:
        """LOG_WEIGHT: log p(x, z)/q(z|x) of one z drawn from q(z|x), nats. The mean of its exponential is
        p(x)."""
        raise NotImplementedError

    def sample_and_log_weight(
        self, params: Params, rng: Random, batch: Batch
    ) -> tuple[UInt8[Array, "batch height width channels"], Float[Array, "batch"]]:
        """LOG_WEIGHT: images x drawn from the model together with their latents z, and log p(x, z)/q(z|x) of
        these, nats. Here z is an exact draw of p(z|x), so that the mean of the logarithm is at least
        log p(x) (Grosse et al. 2015)."""
        raise NotImplementedError

    @property
    def flow_kinds(self) -> Sequence[str]:
        """FLOW: how its ODE can start; the last is the one that takes importance weights."""
        raise NotImplementedError

    def flow(self, params: Params, rng: Random, batch: Batch, kind: str) -> Flow:
        """FLOW: the ODE of the images; `kind` is one of `flow_kinds`."""
        raise NotImplementedError

    def latents(self, timesteps: int) -> Latents:
        """CODE, without EXACT: its latents; of a chain of so many steps, where any depth is possible."""
        raise NotImplementedError

    @property
    def stages(self) -> Stages:
        """CODE and EXACT: the stages of its values."""
        raise NotImplementedError

    @property
    def depth(self) -> int | None:
        """T of its chain, 0 for T → ∞; None where the model is no chain of any depth."""
        return None

    def at_depth(self, timesteps: int) -> "Model":
        """Of a model with a `depth`: the same as a chain of so many steps; 0 for T → ∞."""
        raise NotImplementedError

    def with_schedule(self, change: Callable[[Any], Any]) -> "Model":
        """INTERIOR: the same with `change` of its noise schedule in place of it."""
        raise NotImplementedError

    def gamma(self, params: Params, t: Float[Array, "*times"], condition: Array | None = None) -> Array:
        """DENOISER: γ at times t: of the same shape, or with the axes of an image behind."""
        raise NotImplementedError

    def eps_hat(
        self,
        params: Params,
        z_t: Array,
        gamma: Array,
        condition: Array | None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """DENOISER: ε̂(z_t, γ), like z_t [batch, height, width, channels]; γ is [batch], or like z_t."""
        raise NotImplementedError

    def condition_of(self, batch: Batch) -> Float[Array, "batch size"] | None:
        """DENOISER: what the network is conditioned on in addition to γ; None for nothing."""
        raise NotImplementedError

    def x_hat(
        self, params: Params, rng: Random, batch: Batch, t: Float[Array, ""]
    ) -> Float[Array, "batch height width channels"]:
        """DENOISER: x̂(z_t) of the images of a batch at one time, z_t drawn, in [−1, 1]."""
        raise NotImplementedError


def check_draw(model: Model, draw: Any, batch: int) -> None:
    """Raises UserError where a model's draw is none of its batch: terms that are no nats of each example, or
    an ε̂ that is not like z_t."""
    name = f"model {type(model).__name__}"
    require(
        isinstance(draw, Draw) and draw.terms,
        f"{name} draws {_kind(draw)}; accepted: a Draw of vdm/contract.py with at least one term.",
    )
    for term, nats in draw.terms.items():
        require(
            getattr(nats, "shape", None) == (batch,) and nats.dtype == "float32",
            f"{name} draws the term {term!r} as {_kind(nats)}; accepted: float32 [{batch}], nats of each "
            "example.",
        )
    times = Ability.TIME in model.abilities
    require(
        not times or draw.denoising is not None and "diffusion" in draw.terms,
        f"{name} draws a diffusion time, and its draw has no "
        f"{'term diffusion' if draw.denoising else 'denoising'}; accepted: both. Its terms: "
        f"{', '.join(draw.terms)}.",
    )
    if draw.denoising is not None:
        z_t, eps_hat = draw.denoising.z_t, draw.denoising.eps_hat
        require(
            eps_hat.shape == z_t.shape and eps_hat.dtype == "float32",
            f"{name} predicts ε̂ as {_kind(eps_hat)} of z_t as {_kind(z_t)}; accepted: the same. Its "
            "parameterisation, or an eps_hat of its own, gives another shape or type.",
        )


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else f"a {type(value).__name__}"


def bits_per_dim(nats: Any, shape: tuple[int, ...]) -> Any:
    """Nats per example to bits per dimension, a dimension being one of the values of `shape`."""
    return nats / (math.prod(shape) * math.log(2.0))
