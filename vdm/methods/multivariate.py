"""MuLAN (Sahoo et al. 2024): a noise schedule for each value of an image, which depends on a context.

The context c is a small Gaussian latent of each image (discrete in the paper): c ~ q(c|x), with the prior
N(0, I). Schedule and denoiser are conditioned on it, and its KL is a further term of the ELBO.
"""

import dataclasses
import inspect
import math
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from vdm import gaussian
from vdm.component import accept
from vdm.contract import Ability, Batch, Params, Random
from vdm.diffusion import condition as condition_lib, process
from vdm.diffusion.model import Diffusion
from vdm.diffusion.schedule import Schedule
from vdm.gaussian import Gaussian
from vdm.parameters import Role, alike
from vdm.runtime import randomness


class Multivariate(Schedule):
    """A separate γ for each value of an image, which depends on the context of MuLAN (Sahoo et al. 2024, sec.
    3.2).

    γ_i(t) = γ_0 + (γ_1 − γ_0) f_i(t)/f_i(1), with f_i(t) = ∫_0^t (a τ² + b τ + d)² + δ dτ, where a, b and d
    are learned for each value, and shifted by a linear map of the context if there is one. The end points are
    the same for all values. Unlike with one schedule for all values, the ELBO depends on the interior.
    """

    per_value: ClassVar[bool] = True

    def is_interior(self, names: list[str]) -> bool:
        return True  # the end points are fixed

    @nn.compact
    def __call__(
        self, t: Float[Array, "*times"], context: Float[Array, "*times size"] | None = None
    ) -> Float[Array, "*times height width channels"]:
        start = jnp.array([0.0, 0.0, 1.0])  # a straight line
        bends = [self.param(name, nn.initializers.zeros, self.shape) for name in "abd"]
        if context is not None:
            size = math.prod(self.shape)
            shift = nn.Dense(3 * size, use_bias=False, kernel_init=nn.initializers.zeros, name="shift")
            times = context.shape[:-1]
            shift = jnp.moveaxis(shift(context).reshape(*times, 3, *self.shape), len(times), 0)
            bends = [bend + more for bend, more in zip(bends, shift)]
        a, b, d = (start[k] + _BEND_SCALE * bend for k, bend in enumerate(bends))
        t = t.reshape(*t.shape, *(1,) * len(self.shape))

        def f(t):
            square = a * a / 5 * t**5 + a * b / 2 * t**4 + (b * b + 2 * a * d) / 3 * t**3
            return square + b * d * t**2 + (d * d + _FLOOR) * t

        return self.gamma_min + (self.gamma_max - self.gamma_min) * f(t) / f(jnp.ones_like(t))


_FLOOR = 1e-3  # δ: γ_i increases even where the square is zero
_BEND_SCALE = (
    0.1  # Adam's steps have one size, but a single value's gradient is mostly noise: γ_i would drift
)


class Posterior(nn.Module):
    """q(c|x): maps x [batch, height, width, channels] to a Gaussian of shape [batch, size].

    Its variance is at most the prior's.
    """

    size: int
    hidden: int = 128

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Gaussian:
        x = x.reshape(x.shape[0], -1)
        # A step of Adam changes each weight by about the learning rate, and these changes add up over all
        # values of an image. Without the division, training on photographs diverges.
        x /= math.sqrt(x.shape[1])
        # tanh and softplus bound both outputs: from the context of a rare image, far from all others, the
        # scales of many layers would multiply to values beyond float32.
        h = nn.tanh(nn.Dense(self.hidden, kernel_init=nn.initializers.normal(1.0), name="pixels")(x))
        mean, narrower = jnp.split(nn.Dense(2 * self.size, name="context")(h), 2, axis=-1)
        return Gaussian(mean, -nn.softplus(narrower))


@dataclasses.dataclass(frozen=True)
class MuLAN(Diffusion):
    """A VDM with a context, a learned latent of each image on which its schedule depends (MuLAN: Sahoo et al.
    2024, sec. 3.3).

    The context is the entry "context" of a batch, and the last part of the condition.

    Attributes:
      context: dimension of the context.
    """

    context: int = 8

    @property
    def posterior(self) -> Posterior:
        """q(c|x)."""
        return Posterior(self.context)

    def condition_of(self, batch):
        return condition_lib.join(super().condition_of(batch), batch["context"])

    def schedule_given(self, condition):
        return () if condition is None else (condition[..., -self.context :],)

    def gammas(self, params, steps, condition):
        """γ for each image: [steps + 1, batch, height, width, channels]."""
        t = jnp.linspace(0.0, 1.0, steps + 1)
        return self.gamma(params, jnp.broadcast_to(t[:, None], (steps + 1, len(condition))), condition)

    def example(self, count):
        return super().example(count) | {"context": np.zeros((count, self.context), np.float32)}

    def unconditional(self, condition):
        return condition.at[..., : -self.context].set(0.0)

    def q(self, params: Params, x: Array) -> Gaussian:
        """q(c|x)."""
        return self.posterior.apply(params["context"], x)

    def of_prior(self, rng: Random, batch: Batch) -> Batch:
        """The batch with a context from the prior."""
        return {**batch, "context": rng.normal(randomness.CONTEXT, (self.context,))}

    def weighted(self, params: Params, rng: Random, batch: Batch, x: Array) -> tuple[Batch, Array]:
        """The batch with a draw of q(c|x), independent of all other draws, and log p(c)/q(c|x), nats."""
        c = gaussian.draw(self.q(params, x), gaussian.noise(rng.keys(randomness.CONTEXT), (self.context,)))
        return {**batch, "context": c}, _log_ratio(c, self.q(params, x))

    def bound(self, params, rng, batch, x, log_p, train=False, times=None):
        """The bound of a VDM, with the additional term `context`, KL(q(c|x) ‖ p(c))."""
        q = self.q(params, x)
        batch = {**batch, "context": gaussian.draw(q, rng.normal(randomness.CONTEXT, (self.context,)))}
        draw = super().bound(params, rng, batch, x, log_p, train, times)
        return draw._replace(terms={**draw.terms, "context": gaussian.kl(q, gaussian.STANDARD)})

    def log_weight_of(self, params, rng, batch, x, log_likelihood):
        batch, log_ratio = self.weighted(params, rng, batch, x)
        return log_ratio + super().log_weight_of(params, rng, batch, x, log_likelihood)

    def sample_and_log_weight_of(self, params, rng, batch, decode):
        batch = self.of_prior(rng, batch)

        def decode_too(z_0):
            drawn, x, log_p = decode(z_0)
            return drawn, x, log_p + _log_ratio(batch["context"], self.q(params, x))

        return super().sample_and_log_weight_of(params, rng, batch, decode_too)

    def flow(self, params, rng, batch, kind):
        x = process.scale(batch["image"], self.vocab_size)
        batch, log_ratio = self.weighted(params, rng, batch, x)
        flow = super().flow(params, rng, batch, kind)
        return flow._replace(nats=flow.nats + log_ratio)

    def flow_of_latents(self, params, rng, batch, x, log_likelihood):
        batch, log_ratio = self.weighted(params, rng, batch, x)
        flow = super().flow_of_latents(params, rng, batch, x, log_likelihood)
        return flow._replace(nats=flow.nats + log_ratio)

    def sample_z_0(self, params, rng, batch):
        return super().sample_z_0(params, rng, self.of_prior(rng, batch))

    def x_hat(self, params, rng, batch, t):
        q = self.q(params, process.scale(batch["image"], self.vocab_size))
        batch = {**batch, "context": gaussian.draw(q, rng.normal(randomness.CONTEXT, (self.context,)))}
        return super().x_hat(params, rng, batch, t)

    def init(self, key, batch):
        """The parameters of a VDM, and "context", the parameters of q(c|x)."""
        context = jnp.zeros((len(batch["image"]), self.context))
        own = self.posterior.init(jax.random.fold_in(key, 2), jnp.zeros((1, *self.shape)))
        return super().init(key, {**batch, "context": context}) | {"context": own}

    def roles(self, params):
        return super().roles(params) | {"context": alike(params["context"], Role())}

    @property
    def abilities(self):
        return super().abilities - {Ability.CODE}

    def check(self) -> None:
        super().check()
        accept("context", self.context >= 1, "1 or more; without a context config.model.name is 'diffusion'")
        takes = "context" in inspect.signature(type(self.schedule).__call__).parameters
        accept("schedule.name", takes, "'multivariate', or another schedule whose call takes a context")


def _log_ratio(c: Float[Array, "batch size"], q: Gaussian) -> Float[Array, "batch"]:
    """log p(c)/q(c|x), nats."""
    return gaussian.log_prob(gaussian.STANDARD, c) - gaussian.log_prob(q, c)
