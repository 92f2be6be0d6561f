"""The interface of every generative model: one draw of the ELBO, samples, and further abilities.

A model is a frozen dataclass without arrays; all state is in `params`. Losses are in nats per example, and
`bits_per_dim` is the only place where they become bits/dim.
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
    """A source of random numbers: randomness.Rng in training, randomness.QuasiRng in evaluation."""

    def keys(self, use: int) -> Array:
        """One key for each example."""

    def normal(self, use: int, shape: tuple[int, ...]) -> Array:
        """Independent standard normal values for each example."""

    def uniform(self, use: int) -> Array:
        """One value in [0, 1) for each example, stratified: spread evenly over the batch."""


# rng → diffusion times t [batch] in [0, 1), and 1/q(t), where q is the density that t is drawn from.
DrawTimes = Callable[[Random], tuple[Float[Array, "batch"], Float[Array, "batch"]]]


class Denoising(NamedTuple):
    """The parts of the diffusion term of one draw, ½ w(t)/q(t) ‖target − ε̂(z_t)‖².

    Attributes:
      t: the diffusion time, drawn from the density q.
      time_weight: 1/q(t).
      gamma: γ(t), one value for each example or one for each value of an image.
      weight: w(t), of the shape of γ: γ'(t) in continuous time, T (e^{γ_t − γ_s} − 1) in a chain of T steps.
      x: the data in [−1, 1], or the latent that is diffused in their place.
      eps: the noise ε in z_t.
      z_t: α x + σ ε, or α x_t + σ ε if an encoder maps x to x_t.
      target: the noise that ε̂ is to predict: ε, unless the encoder is learned.
      eps_hat: ε̂(z_t).
      denoiser: ε̂ as a function of z, with the γ, condition and dropout of this draw.
      rng: for random numbers that an objective needs (randomness.PROBE).
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
    """One draw of the ELBO for each image of a batch.

    `denoising` holds a function, so a jitted function returns `terms` or other parts, never the whole Draw.

    Attributes:
      terms: nats of each term by its name. Their sum is the negative ELBO, or for a model with
        Ability.EXACT the exact negative log-likelihood.
      denoising: with Ability.TIME, the parts of the diffusion term, for objectives; otherwise None.
    """

    terms: Terms
    denoising: Denoising = None  # type: ignore[assignment]  # an objective that reads it needs Ability.TIME


class Latents(NamedTuple):
    """The chain of latents z_1 … z_T of a model, for a codec: q(z_1|x), q(z_t|z_{t−1}), p(x|z_1),
    p(z_{t−1}|z_t) and p(z_T). All Gaussians are diagonal. t counts from 1, and may be traced.

    Attributes:
      timesteps: T.
      shape: the shape of a latent.
      q_1: (params, batch) → q(z_1|x).
      q: (params, t, z_{t−1}) → q(z_t|z_{t−1}), t ≥ 2.
      p: (params, t, z_t, batch, keys=None) → p(z_{t−1}|z_t), t ≥ 2. It reads the labels of the batch, not the
        images. With a key for each example, there is dropout.
      prior: (params) → p(z_T).
      logits: (params, z_1) → the logits of p(x|z_1), [batch, *image, vocab_size].
      deviations: (params) → the smallest standard deviation of each z_t under q and p, [T, *#shape], or an
        estimate of it where it is learned.
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
    """The values of an image in the order in which a model with Ability.EXACT predicts them, for a codec.

    The values of one stage are independent given those of the stages before it.

    Attributes:
      places: for each stage, the indices of its values in raster order: row, column, channel.
      start: (params, batch) → the state before the first stage. It does not read the images.
      logits: (params, state, places, levels [batch, values]) → [batch, len(places), vocab_size], and the next
        state. It does not read the levels of this stage or of later ones.
    """

    places: Sequence[Any]
    start: Callable[[Params, Batch], Any]
    logits: Callable[[Params, Any, Array, Array], tuple[Array, Any]]


class Flow(NamedTuple):
    """The probability-flow ODE, from one random point for each image of a batch.

    Attributes:
      z: the starting points, [batch, *latent].
      ends: γ at the start, and γ_1; with a `curve`, the times 0 and 1.
      eps_hat: (z, γ, given) → ε̂.
      given: what ε̂ is conditioned on: a pytree of arrays with a leading batch axis.
      curve: (time, given of one example) → γ of each value; None where all values share one γ.
      nats: the sum of this and of the flow's log p(z) is log p(x, …)/q(…|x), whose exponential has the mean
        p(x).
    """

    z: Array
    ends: tuple[Array, Array]
    eps_hat: Callable[[Array, Array, Any], Array]
    given: Any
    curve: Callable[[Array, Any], Array] | None
    nats: Float[Array, "batch"]


class Ability(enum.Enum):
    """What some models can do and others cannot. Each text completes the message "which needs …"."""

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
    """Raises UserError unless `needs`, of the component `name`, is a set of Ability."""
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

    Every model has the methods down to `roles`. Of those below, a model defines the ones whose docstrings
    begin with an ability that it has.
    """

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "Model":
        """The model that the section config.model describes, for images of the shape and levels of `spec`.

        Raises:
          UserError: a field has a value that is not accepted.
        """
        raise NotImplementedError

    @property
    def abilities(self) -> frozenset[Ability]:
        """The abilities of this model."""
        return frozenset()

    @property
    def given_label(self) -> bool:
        """Whether the likelihood is p(x|label), not p(x)."""
        return False

    @property
    def takes_label(self) -> bool:
        """Whether the model reads labels, whether or not its likelihood is p(x|label)."""
        return self.given_label

    @property
    def heavy(self) -> bool:
        """Whether a training step takes seconds on a CPU, so that several steps in one call gain nothing."""
        return False

    def init(self, key: Array, batch: Batch) -> Params:
        """Fresh parameters."""
        raise NotImplementedError

    def fit(self, split: Split) -> Params:
        """Parameters that are fitted in closed form to the training images, before the first step; by default
        none."""
        return {}

    def verify(self, params: Params) -> None:
        """Checks in a fraction of a second that the components have the properties that they claim.

        Raises:
          UserError: one has not; the message says which, and what was measured.
        """

    @property
    def times(self) -> Any:
        """TIME: how training draws diffusion times (diffusion.times.Times); None for other models."""
        return None

    def draw(
        self, params: Params, rng: Random, batch: Batch, train: bool = False, times: DrawTimes | None = None
    ) -> Draw:
        """One draw of the ELBO.

        Args:
          train: whether to apply dropout.
          times: with Ability.TIME, how to draw the diffusion times; None for uniform times, stratified over
            the batch. The choice changes the variance of the diffusion term, not its mean.
        """
        raise NotImplementedError

    def sample(
        self, params: Params, rng: Random, batch: Batch
    ) -> UInt8[Array, "batch height width channels"]:
        """Samples; a model that is conditioned on labels takes those of `batch`."""
        raise NotImplementedError

    def roles(self, params: Params) -> PyTree[Role]:
        """How the optimiser treats each parameter."""
        return alike(params, Role())

    def log_weight(self, params: Params, rng: Random, batch: Batch) -> Float[Array, "batch"]:
        """LOG_WEIGHT: log p(x, z)/q(z|x) of one z drawn from q(z|x), nats. The mean of its exponential is
        p(x)."""
        raise NotImplementedError

    def sample_and_log_weight(
        self, params: Params, rng: Random, batch: Batch
    ) -> tuple[UInt8[Array, "batch height width channels"], Float[Array, "batch"]]:
        """LOG_WEIGHT: images x and latents z drawn from the model, and log p(x, z)/q(z|x) of each, nats.
        Given x, this z is an exact draw from p(z|x), so that the mean of the logarithm is at least log p(x)
        (Grosse et al. 2015)."""
        raise NotImplementedError

    @property
    def flow_kinds(self) -> Sequence[str]:
        """FLOW: the ways in which the ODE can start; importance weights use the last."""
        raise NotImplementedError

    def flow(self, params: Params, rng: Random, batch: Batch, kind: str) -> Flow:
        """FLOW: the ODE of a batch of images; `kind` is one of `flow_kinds`."""
        raise NotImplementedError

    def latents(self, timesteps: int) -> Latents:
        """CODE, without EXACT: the chain of latents; of T = `timesteps`, if the model can have any depth."""
        raise NotImplementedError

    @property
    def stages(self) -> Stages:
        """CODE and EXACT: the order in which the values of an image are predicted."""
        raise NotImplementedError

    @property
    def depth(self) -> int | None:
        """T, with 0 for T → ∞; None if the model cannot have any depth."""
        return None

    def at_depth(self, timesteps: int) -> "Model":
        """With a `depth`: the same model with T = `timesteps`; 0 for T → ∞."""
        raise NotImplementedError

    def with_schedule(self, change: Callable[[Any], Any]) -> "Model":
        """INTERIOR: the same model with the noise schedule that `change` returns for its own."""
        raise NotImplementedError

    def gamma(self, params: Params, t: Float[Array, "*times"], condition: Array | None = None) -> Array:
        """DENOISER, TIME or FLOW: γ at times t: of the shape of t, or with the axes of an image after it."""
        raise NotImplementedError

    def eps_hat(
        self,
        params: Params,
        z_t: Array,
        gamma: Array,
        condition: Array | None,
        dropout_keys: Array | None = None,
    ) -> Array:
        """DENOISER: ε̂(z_t, γ), of the shape of z_t [batch, height, width, channels]; γ is [batch] or of the
        shape of z_t."""
        raise NotImplementedError

    def condition_of(self, batch: Batch) -> Float[Array, "batch size"] | None:
        """DENOISER: what the network is conditioned on besides γ; None for nothing."""
        raise NotImplementedError

    def x_hat(
        self, params: Params, rng: Random, batch: Batch, t: Float[Array, ""]
    ) -> Float[Array, "batch height width channels"]:
        """DENOISER: x̂(z_t) in [−1, 1], for a z_t that is drawn at time t from the images of a batch."""
        raise NotImplementedError


def check_draw(model: Model, draw: Any, batch: int) -> None:
    """Raises UserError unless each term of a model's draw has one value for each example of the batch, and ε̂
    has the shape of z_t."""
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
    """Nats per example as bits per dimension; each value of an array of `shape` is a dimension."""
    return nats / (math.prod(shape) * math.log(2.0))
