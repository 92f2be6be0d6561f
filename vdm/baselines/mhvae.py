"""The Markovian hierarchical VAE (lecture (17), (18)), and the three restrictions that make it a VDM.

  p(x, z_1 … z_T) = p(z_T) p(z_{T−1}|z_T) … p(z_1|z_2) p(x|z_1)        (17)
  q(z_1 … z_T|x)  = q(z_1|x) q(z_2|z_1) … q(z_T|z_{T−1})               (18)

A path z_1 … z_T is drawn from q. The ELBO has reconstruction, −log p(x|z_1), and a term for each latent. In
the order of (18), with x for z_0, these are

  level_t = log q(z_t|z_{t−1}) − log p(z_t|z_{t+1}), t < T;    prior = KL(q(z_T|z_{T−1}) ‖ p(z_T)).

Only the last is a KL in closed form: z_{t+1} depends on z_t, so that, given both its neighbours, z_t is not a
draw of q(z_t|z_{t−1}). If q(z_t|z_{t+1}, x) is known, Bayes' rule reverses q, and all terms are KLs in closed
form (lecture (21)):

  level_t = KL(q(z_t|z_{t+1}, x) ‖ p(z_t|z_{t+1})), t < T;     prior = KL(q(z_T|x) ‖ p(z_T)).

The restrictions are independent, except that II needs I:

  I    A latent has the dimension of an image, not config.model.latent.
  II   q is not learned; it is the linear Gaussian of process.py. Then q(z_{t−1}|z_t, x) is known, and p only
       has to learn a prediction x̂(z_t) that replaces x in it (lecture (20)).
  III  p(z_T) is N(0, I), not a learned Gaussian. The term `prior` measures how close q(z_T|x) is to p(z_T);
       under II, this depends on γ_max.

The T latents are those of a VDM with T − 1 steps: the lecture numbers the latents z_1 … z_T, and the VDM has
times from 0 to 1.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from vdm import component, gaussian
from vdm.baselines import vae as vae_lib
from vdm.baselines.mhvae_chains import DiffusionChain, LearnedChain
from vdm.component import accept, choose
from vdm.contract import Ability, Draw, Latents, Model, Params
from vdm.data.dataset import Spec
from vdm.diffusion import decoder
from vdm.diffusion.model import Diffusion
from vdm.errors import one_of
from vdm.gaussian import Gaussian
from vdm.nets import residual
from vdm.parameters import Role, alike
from vdm.runtime import randomness

RESTRICTIONS = ("I", "II", "III")

Chain = LearnedChain | DiffusionChain


@dataclasses.dataclass(frozen=True)
class MHVAE(Model):
    """A Markovian hierarchical VAE: a chain of latents.

    Attributes:
      chain: q, and all of p except p(z_T).
      vocab_size: number of levels of a value.
      timesteps: T, the number of latents.
      restrictions: any of I, II, III, separated by commas.
      latent: dimension of a latent, without restriction I.

    The sections schedule and parameterisation are used only under restriction II.
    """

    chain: Chain
    vocab_size: int
    timesteps: int = 10
    restrictions: str = ""
    latent: int = 16

    sections = {"schedule": "schedule", "net": "network", "parameterisation": "parameterisation"}

    def check(self) -> None:
        names = _names(self.restrictions)
        for name in names:
            choose("restrictions", name, RESTRICTIONS)
        accept(
            "restrictions",
            "I" in names or "II" not in names,
            "'I,II' instead of only II, as a linear encoder of each value has latents of the data's "
            "dimension",
        )
        accept(
            "timesteps",
            self.timesteps >= (2 if "II" in names else 1),
            f"{2 if 'II' in names else 1} or more, the number of latents",
        )
        accept("latent", self.latent >= 1, "1 or more")

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset({Ability.LOG_WEIGHT, Ability.CODE})

    @property
    def learned_prior(self) -> bool:
        """Whether p(z_T) is learned, that is, without restriction III."""
        return "III" not in _names(self.restrictions)

    def roles(self, params: Params) -> PyTree[Role]:
        of_prior = {"prior": alike(params["prior"], Role())} if self.learned_prior else {}
        return self.chain.roles(params) | of_prior

    def init(self, key, batch):
        """Initial parameters: those of the chain, and "prior" if p(z_T) is learned."""
        zeros = jnp.zeros(self.chain.shape)
        prior = {"prior": {"mean": zeros, "log_variance": zeros}} if self.learned_prior else {}
        return self.chain.init(key, batch) | prior

    def fit(self, split):
        return self.chain.vdm.fit(split) if isinstance(self.chain, DiffusionChain) else {}

    def verify(self, params):
        if isinstance(self.chain, DiffusionChain):
            self.chain.vdm.verify(params)

    def prior(self, params: Params) -> Gaussian:
        """p(z_T)."""
        return Gaussian(**params["prior"]) if self.learned_prior else gaussian.STANDARD

    def draw(self, params, rng, batch, train=False, times=None) -> Draw:
        """The terms reconstruction, level_1 … level_{T−1} and prior, from one path."""
        keys = rng.keys(randomness.DROPOUT) if train else None
        eps = rng.normal(randomness.LATENT, (self.timesteps, *self.chain.shape))
        z, q = self.path(params, batch["image"], eps, keys)
        matching, last = self.chain.matching(params, batch["image"], z, q, self.reverse(params, z, keys))
        p_x = self.chain.decode(params, z[0], keys)
        return Draw(
            {
                "reconstruction": -vae_lib.log_likelihood(batch["image"], p_x, self.vocab_size),
                **{f"level_{t}": matching[t - 1] for t in range(1, self.timesteps)},
                "prior": gaussian.kl(last, self.prior(params)),
            }
        )

    def log_weight(self, params, rng, batch):
        """The log weight of one path z_1 … z_T."""
        eps = gaussian.noise(rng.keys(randomness.LATENT), (self.timesteps, *self.chain.shape))
        z, q = self.path(params, batch["image"], eps)
        p_x = self.chain.decode(params, z[0])
        log_prob = jax.vmap(gaussian.log_prob)
        log_q = jnp.sum(log_prob(q, z), axis=0)
        log_p = jnp.sum(log_prob(self.reverse(params, z), z[:-1]), axis=0)
        log_p += gaussian.log_prob(self.prior(params), z[-1])
        return vae_lib.log_likelihood(batch["image"], p_x, self.vocab_size) + log_p - log_q

    def latents(self, timesteps) -> Latents:
        return Latents(
            self.timesteps,
            self.chain.shape,
            q_1=lambda params, batch: self.chain.q_1(params, batch["image"]),
            q=self.chain.q,
            p=lambda params, t, z, batch, keys=None: self.chain.p(params, t, z, keys),
            prior=self.prior,
            logits=lambda params, z: decoder.logits(*self.chain.decode(params, z), self.vocab_size),
            deviations=self.chain.deviations,
        )

    def path(
        self,
        params: Params,
        levels: Int[Array, "batch height width channels"],
        eps: Float[Array, "batch T *latent"],
        keys: Array | None = None,
    ) -> tuple[Float[Array, "T batch *latent"], Gaussian]:
        """z_1 … z_T drawn from q, and the distributions q(z_1|x), q(z_2|z_1), … they are drawn from, as one
        Gaussian with the leading axis T."""
        eps = jnp.moveaxis(eps, 1, 0)
        q_1 = self.chain.q_1(params, levels, keys)
        z_1 = gaussian.draw(q_1, eps[0])

        def step(z, given):
            q = self.chain.q(params, given[0], z, keys)
            z = gaussian.draw(q, given[1])
            return z, (z, q)

        _, above = jax.lax.scan(step, z_1, (jnp.arange(2, self.timesteps + 1), eps[1:]))
        return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), (z_1, q_1), above)

    def reverse(
        self, params: Params, z: Float[Array, "T batch *latent"], keys: Array | None = None
    ) -> Gaussian:
        """p(z_1|z_2) … p(z_{T−1}|z_T) on a path, as one Gaussian with the leading axis T − 1."""
        p = jax.vmap(lambda t, z: self.chain.p(params, t, z, keys))
        return p(jnp.arange(2, self.timesteps + 1), z[1:])

    def sample(self, params, rng, batch):
        """Samples: z_T from the prior, then z_{T−1} … z_1 and x (lecture (17))."""
        return self._sample(params, rng)[0]

    def sample_and_log_weight(self, params, rng, batch):
        image, z = self._sample(params, rng)
        log_p = jnp.sum(jax.vmap(gaussian.log_prob)(self.reverse(params, z), z[:-1]), axis=0)
        log_p += gaussian.log_prob(self.prior(params), z[-1])
        log_p += vae_lib.log_likelihood(image, self.chain.decode(params, z[0]), self.vocab_size)
        above = jax.vmap(lambda t, below: self.chain.q(params, t, below))
        q = above(jnp.arange(2, self.timesteps + 1), z[:-1])
        log_q = jnp.sum(jax.vmap(gaussian.log_prob)(q, z[1:]), axis=0)
        return image, log_p - log_q - gaussian.log_prob(self.chain.q_1(params, image), z[0])

    def _sample(self, params, rng):
        """x, and z_1 … z_T."""
        keys = rng.keys(randomness.NOISE)

        def step(z, t):
            eps = gaussian.noise(
                randomness.fold_in(keys, jnp.broadcast_to(t - 2, keys.shape)), self.chain.shape
            )
            below = gaussian.draw(self.chain.p(params, t, z), eps)
            return below, below

        z_last = gaussian.draw(self.prior(params), rng.normal(randomness.LATENT, self.chain.shape))
        z_1, below = jax.lax.scan(step, z_last, jnp.arange(2, self.timesteps + 1), reverse=True)
        image = vae_lib.sample_x(rng.keys(randomness.DECODE), self.chain.decode(params, z_1), self.vocab_size)
        return image, jnp.concatenate([below, z_last[None]])

    @classmethod
    def build(cls, section: Any, spec: Spec) -> "MHVAE":
        """The MHVAE that config.model describes.

        Raises:
          UserError: a field has a value that is not accepted.
        """
        names, steps = _names(section.restrictions), section.timesteps
        chain: Chain
        if "II" in names:
            chain = DiffusionChain(Diffusion.assemble(section, spec, timesteps=steps - 1), steps)
        else:
            one_of("config.model.net.name", section.net.name, ("mlp",))
            size = math.prod(spec.shape) if "I" in names else section.latent
            up, down = (residual.build(section.net, 2 * size) for _ in range(2))
            chain = LearnedChain(vae_lib.of_size(section.net, spec, size), up, down, steps)
        fields = {field: section[field] for field in component.fields(cls)}
        made = cls(chain, spec.vocab_size, **fields)
        component.check(made, section, "config.model")
        if isinstance(chain, DiffusionChain):
            component.check(chain.vdm, section, "config.model")
        return made


def _names(restrictions):
    return tuple(filter(None, restrictions.split(",")))
