"""The Markovian hierarchical VAE (lecture (17), (18)), and the three restrictions that make it a VDM.

  p(x, z_1 … z_T) = p(z_T) p(z_{T−1}|z_T) … p(z_1|z_2) p(x|z_1)        (17)
  q(z_1 … z_T|x)  = q(z_1|x) q(z_2|z_1) … q(z_T|z_{T−1})               (18)

A path z_1 … z_T is drawn from q. The ELBO has reconstruction, −log p(x|z_1), and a term for each latent.
In the order of (18), with x for z_0, these are

  level_t = log q(z_t|z_{t−1}) − log p(z_t|z_{t+1}), t < T;    prior = KL(q(z_T|z_{T−1}) ‖ p(z_T)).

Only the last is a KL in closed form: z_{t+1} comes of z_t, so that, given both its neighbours, z_t is no
draw of q(z_t|z_{t−1}). Where q(z_t|z_{t+1}, x) is known, Bayes' rule turns q around, and all of them are
(lecture (21)):

  level_t = KL(q(z_t|z_{t+1}, x) ‖ p(z_t|z_{t+1})), t < T;     prior = KL(q(z_T|x) ‖ p(z_T)).

The restrictions, each on its own but that II needs I:

  I    A latent has as many numbers as a picture, not config.model.latent.
  II   q is not learned but linear Gaussian, that of encoder.py; and of q(z_{t−1}|z_t, x), which is known
       then, p(z_{t−1}|z_t) has to learn x alone: x̂(z_t) (lecture (20)).
  III  p(z_T) is N(0, I), not a Gaussian that is learned. The term `prior` says how near q(z_T|x) comes to
       it; under II that is a matter of γ_max.

The T latents are those of a VDM's chain of T − 1 steps: the lecture counts z_1 … z_T, the VDM its times
from 0 to 1.
"""

import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from vdm.diffusion import denoiser, encoder, gaussian, model as diffusion_lib
from vdm.runtime import randomness
from vdm.baselines import vae as vae_lib
from vdm.errors import one_of, require
from vdm.diffusion.gaussian import Gaussian
from vdm.nets import residual
from vdm.nets.layers import layer_keys


@dataclasses.dataclass(frozen=True)
class MHVAE:
    """A chain of latents; keeps the contract of model.Model.

    Attributes:
      chain: Networks, or under restriction II Linear: q, and p but for p(z_T).
      timesteps: T, how many latents there are.
      learned_prior: whether p(z_T) is learned: no restriction III.
      vocab_size: integer levels of each value.
    """

    chain: "Networks | Linear"
    timesteps: int
    learned_prior: bool
    vocab_size: int

    def init(self, key, batch):
        """Fresh parameters: those of the chain and, where it is learned, "prior"."""
        zeros = jnp.zeros(self.chain.shape)
        prior = {"prior": {"mean": zeros, "log_variance": zeros}} if self.learned_prior else {}
        return self.chain.init(key, batch) | prior

    def prior(self, params):
        """p(z_T)."""
        return Gaussian(**params["prior"]) if self.learned_prior else gaussian.STANDARD

    def loss(self, params, rng, batch, train):
        """reconstruction, level_1 … level_{T−1} and prior, nats [batch], by one path."""
        keys = rng.keys(randomness.DROPOUT) if train else None
        eps = rng.normal(randomness.LATENT, (self.timesteps, *self.chain.shape))
        z, q = self.path(params, batch["image"], eps, keys)
        matching, last = self.chain.matching(params, batch["image"], z, q, self.reverse(params, z, keys))
        p_x = self.chain.decode(params, z[0], keys)
        return {
            "reconstruction": -vae_lib.log_likelihood(batch["image"], p_x, self.vocab_size),
            **{f"level_{t}": matching[t - 1] for t in range(1, self.timesteps)},
            "prior": gaussian.kl(last, self.prior(params)),
        }

    def log_weight(self, params, rng, batch):
        """log p(x, z_1 … z_T)/q(z_1 … z_T|x) of one path drawn from q, nats [batch]. The mean of its
        exponential is p(x)."""
        eps = gaussian.noise(rng.keys(randomness.LATENT), (self.timesteps, *self.chain.shape))
        z, q = self.path(params, batch["image"], eps)
        p_x = self.chain.decode(params, z[0])
        log_prob = jax.vmap(gaussian.log_prob)
        log_q = jnp.sum(log_prob(q, z), axis=0)
        log_p = jnp.sum(log_prob(self.reverse(params, z), z[:-1]), axis=0)
        log_p += gaussian.log_prob(self.prior(params), z[-1])
        return vae_lib.log_likelihood(batch["image"], p_x, self.vocab_size) + log_p - log_q

    def path(self, params, levels, eps, keys=None):
        """z_1 … z_T of q for pictures [batch, …] and noise [batch, T, …]: [T, batch, …]; and the
        q(z_1|x), q(z_2|z_1), … that they are draws of, one Gaussian with T in front."""
        eps = jnp.moveaxis(eps, 1, 0)
        q_1 = self.chain.q_1(params, levels, keys)
        z_1 = gaussian.draw(q_1, eps[0])

        def step(z, given):
            q = self.chain.q(params, given[0], z, keys)
            z = gaussian.draw(q, given[1])
            return z, (z, q)

        _, above = jax.lax.scan(step, z_1, (jnp.arange(2, self.timesteps + 1), eps[1:]))
        return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), (z_1, q_1), above)

    def reverse(self, params, z, keys=None):
        """p(z_1|z_2) … p(z_{T−1}|z_T) on a path [T, batch, …]: one Gaussian with T − 1 in front."""
        p = jax.vmap(lambda t, z: self.chain.p(params, t, z, keys))
        return p(jnp.arange(2, self.timesteps + 1), z[1:])

    def sample(self, params, rng, batch):
        """Samples, uint8 [batch, height, width, channels]: z_T of the prior, down to x (lecture (17))."""
        keys = rng.keys(randomness.NOISE)

        def step(z, t):
            eps = gaussian.noise(randomness.fold_in(keys, jnp.broadcast_to(t - 2, keys.shape)), self.chain.shape)
            return gaussian.draw(self.chain.p(params, t, z), eps), None

        z_last = gaussian.draw(self.prior(params), rng.normal(randomness.LATENT, self.chain.shape))
        z_1, _ = jax.lax.scan(step, z_last, jnp.arange(2, self.timesteps + 1), reverse=True)
        return vae_lib.draw_x(rng.keys(randomness.DECODE), self.chain.decode(params, z_1), self.vocab_size)


@dataclasses.dataclass(frozen=True)
class Networks:
    """q and p are networks: z_1 is the latent of a VAE, and each z_t that of the z_{t−1} below it.

    Attributes:
      vae: q(z_1|x) and p(x|z_1).
      up, down: of q(z_t|z_{t−1}) and p(z_{t−1}|z_t), one network for all t: [batch, latent + T], the latter
        to tell t, to mean and log variance, [batch, 2 · latent].
      timesteps: T.
    """

    vae: vae_lib.VAE
    up: nn.Module
    down: nn.Module
    timesteps: int

    @property
    def shape(self):
        """Of a latent."""
        return (self.vae.latent,)

    def init(self, key, batch):
        """{"encoder": …, "decoder": …, "up": …, "down": …}: fresh parameters."""
        up, down = jax.random.split(jax.random.fold_in(key, 0))
        told = jnp.zeros((1, self.vae.latent + self.timesteps))
        more = {"up": self.up.init(up, told), "down": self.down.init(down, told)}
        return self.vae.init(key, batch) | more

    def q_1(self, params, levels, keys=None):
        """q(z_1|x)."""
        return self.vae.encode(params, levels, keys)

    def q(self, params, t, z, keys=None):
        """q(z_t|z_{t−1}), t = 2 … T."""
        return self._gaussian(self.up, params["up"], t, z, layer_keys(keys, 2 * t))

    def p(self, params, t, z, keys=None):
        """p(z_{t−1}|z_t), t = 2 … T."""
        return self._gaussian(self.down, params["down"], t, z, layer_keys(keys, 2 * t + 1))

    def decode(self, params, z, keys=None):
        """p(x|z_1), for decoder.py."""
        return self.vae.decode(params, z, keys)

    def matching(self, params, levels, z, q, p):
        """log q(z_t|z_{t−1}) − log p(z_t|z_{t+1}), [T − 1, batch], and q(z_T|z_{T−1})."""
        below, last = jax.tree.map(lambda v: v[:-1], q), jax.tree.map(lambda v: v[-1], q)
        log_prob = jax.vmap(gaussian.log_prob)
        return log_prob(below, z[:-1]) - log_prob(p, z[:-1]), last

    def _gaussian(self, net, params, t, z, keys):
        told = jnp.broadcast_to(jax.nn.one_hot(t - 1, self.timesteps), (z.shape[0], self.timesteps))
        output = net.apply(params, jnp.concatenate([z, told], axis=-1), keys)
        return Gaussian(*jnp.split(output, 2, axis=-1))


@dataclasses.dataclass(frozen=True)
class Linear:
    """Restriction II: q is linear Gaussian and not learned, and p is q with x̂(z_t) for x (lecture (20)).

    Attributes:
      vdm: has γ(t) and the denoiser.
      timesteps: T, of z_1 at γ(0) to z_T at γ(1).
    """

    vdm: diffusion_lib.Diffusion
    timesteps: int

    @property
    def shape(self):
        """Of a latent: restriction I."""
        return self.vdm.shape

    def init(self, key, batch):
        """{"schedule": …, "net": …}: fresh parameters."""
        return self.vdm.init(key, batch)

    def q_1(self, params, levels, keys=None):
        """q(z_1|x)."""
        return _with_log(encoder.marginal(self._x(levels), self._gamma(params, 1)))

    def q(self, params, t, z, keys=None):
        """q(z_t|z_{t−1}), t = 2 … T."""
        return _with_log(encoder.transition(z, self._gamma(params, t - 1), self._gamma(params, t)))

    def p(self, params, t, z, keys=None):
        """p(z_{t−1}|z_t) = q(z_{t−1}|z_t, x = x̂(z_t)), t = 2 … T."""
        gamma = self._gamma(params, t)
        each = jnp.broadcast_to(gamma, z.shape if gamma.ndim else z.shape[:1])
        eps_hat = self.vdm.eps_hat(params, z, each, None, layer_keys(keys, t))
        return self._posterior(params, t, z, denoiser.x_from_eps(eps_hat, z, gamma))

    def decode(self, params, z, keys=None):
        """p(x|z_1), for decoder.py."""
        return z, jnp.broadcast_to(self._gamma(params, 1), z.shape)

    def matching(self, params, levels, z, q, p):
        """KL(q(z_t|z_{t+1}, x) ‖ p(z_t|z_{t+1})), [T − 1, batch], and q(z_T|x)."""
        x = self._x(levels)
        posterior = jax.vmap(lambda t, z: self._posterior(params, t, z, x))
        kl = jax.vmap(gaussian.kl)(posterior(jnp.arange(2, self.timesteps + 1), z[1:]), p)
        return kl, _with_log(encoder.marginal(x, self._gamma(params, self.timesteps)))

    def _posterior(self, params, t, z, x):
        """q(z_{t−1}|z_t, x)."""
        return _with_log(encoder.posterior(z, x, self._gamma(params, t - 1), self._gamma(params, t)))

    def _gamma(self, params, t):
        return self.vdm.gamma(params, jnp.asarray((t - 1) / (self.timesteps - 1)))

    def _x(self, levels):
        return encoder.scale(levels, self.vdm.vocab_size)


def _with_log(moments):
    mean, variance = moments
    return Gaussian(mean, jnp.log(variance))


RESTRICTIONS = ("I", "II", "III")


def build(config, spec):
    """The MHVAE that `config` (config.model of configs/default.py) describes.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    names = tuple(filter(None, config.restrictions.split(",")))
    for name in names:
        one_of("config.model.restrictions", name, RESTRICTIONS)
    require(
        "I" in names or "II" not in names,
        f"config.model.restrictions is {config.restrictions!r}, but II needs I, as a linear encoder of each "
        "value has latents of the data's size; set 'I,II'.",
    )
    steps, least = config.timesteps, 2 if "II" in names else 1
    require(
        steps >= least,
        f"config.model.timesteps is {steps}; accepted for 'mhvae' with config.model.restrictions = "
        f"{config.restrictions!r}: {least} or more, the number of latents.",
    )
    if "II" in names:
        chain = _linear(config, spec)
    else:
        size = math.prod(spec.shape) if "I" in names else config.latent
        nets = (residual.build(config.net, 2 * size) for _ in range(2))
        chain = Networks(vae_lib.of_size(config, spec, size), *nets, steps)
    return MHVAE(chain, steps, "III" not in names, spec.vocab_size)


def _linear(config, spec):
    one_of("config.model.condition", config.condition, ("none",))
    context = config.schedule.context
    require(context == 0, f"config.model.schedule.context is {context}; accepted for 'mhvae': 0.")
    vdm = dataclasses.replace(diffusion_lib.build(config, spec), timesteps=config.timesteps - 1)
    return Linear(vdm, config.timesteps)
