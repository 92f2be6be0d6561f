"""Other roads to log p(x) than the ELBO: a chain of T steps, and the probability-flow ODE.

Each gives, for an image x, a log weight log w = log p(x, z)/q(z|x) of a random z ~ q(z|x).
As E[w] = p(x), the mean of log w is at most log p(x), and so is that of log (w_1 + … + w_K)/K,
which rises towards log p(x) with K (Burda et al. 2016).

`eps_hat` is a denoiser (z [batch, …], γ [batch], told) → ε̂ [batch, …].
"""

import math

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from vdm.diffusion import decoder, encoder
from vdm.errors import require

# ---- a chain of T steps ---------------------------------------------------------------


def chain(eps_hat, levels, told, gammas, keys, vocab_size):
    """log p(x, z_0 … z_1)/q(z_0 … z_1|x) of one path drawn from q, nats [batch].

    A path is drawn from z_1 down, by q(z_s|z_t, x). In terms of the noise ε_t in z_t this is
    ε_s = e^{(γ_s − γ_t)/2} ε_t + (1 − e^{γ_s − γ_t})^½ e, and the means of p(z_s|z_t) and of
    q(z_s|z_t, x) lie d = (e^{γ_t − γ_s} − 1)^½ (ε̂ − ε_t) standard deviations apart, so that
    each step adds −½‖d‖² − e·d (VDM eq. 13, 14, before the expectation).

    Args:
      levels: integers [batch, …].
      gammas: [T + 1], γ at times 0, 1/T, …, 1.
      keys: [batch], one key for each example.
    """
    shape = levels.shape[1:]
    x = encoder.scale(levels, vocab_size)
    steps = gammas.shape[0] - 1

    def noise(i):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, i), shape))(keys)

    def step(carry, i):
        eps, log_w = carry
        gamma_s, gamma_t = gammas[i], gammas[i + 1]
        z_t = encoder.diffuse(x, gamma_t, eps)
        predicted = eps_hat(z_t, jnp.broadcast_to(gamma_t, z_t.shape[:1]), told)
        d = jnp.sqrt(jnp.expm1(gamma_t - gamma_s)) * (predicted - eps)
        e = noise(i)
        log_w -= _sum(0.5 * jnp.square(d) + e * d)
        kept = jnp.exp(0.5 * (gamma_s - gamma_t))
        return (kept * eps + jnp.sqrt(-jnp.expm1(gamma_s - gamma_t)) * e, log_w), None

    eps = noise(steps)
    z_1 = encoder.diffuse(x, gammas[-1], eps)
    log_w = _log_normal(z_1) - _log_normal(eps) + x[0].size * jnp.log(encoder.sigma(gammas[-1]))
    (eps, log_w), _ = jax.lax.scan(step, (eps, log_w), jnp.arange(steps), reverse=True)
    z_0 = encoder.diffuse(x, gammas[0], eps)
    return log_w + _sum(decoder.log_prob(levels, z_0, gammas[0], vocab_size))


# ---- the probability-flow ODE ---------------------------------------------------------


def velocity(eps_hat, z, gamma, told):
    """dz/dγ = ½ σ (ε̂ − σ z) of the probability-flow ODE, z [batch, …], γ scalar.

    Song et al. 2021, eq. 13, for dα/dγ = −½ α σ² and dσ/dγ = ½ σ α².
    """
    sigma = encoder.sigma(gamma)
    predicted = eps_hat(z, jnp.broadcast_to(gamma, z.shape[:1]), told)
    return 0.5 * sigma * (predicted - sigma * z)


def flow_log_density(eps_hat, z_0, told, gammas, key, nodes, tolerance, exact):
    """log p_0(z_0) under the flow that takes N(0, I) at γ_1 to γ_0.

    log p_0(z_0) = log N(z_1; 0, I) + ∫ div dγ from γ_0 to γ_1, along the path of z_0 (Chen et
    al. 2018). The path is solved by Tsit5, each image with steps of its own, which keep the
    local error in z within `tolerance`, relative or absolute. The integral is taken by
    Clenshaw–Curtis quadrature on the path, where a divergence is asked for at the nodes only.

    Args:
      z_0: [batch, …].
      gammas: γ_0 and γ_1.
      key: the probes' randomness: a key for each example, [batch].
      nodes: n, a multiple of 4: intervals of the quadrature, and of its half.
      exact: the divergence as the trace of the whole Jacobian, or else as Hutchinson's
        estimate with a fresh ±1 probe at each node, which leaves log p_0 without bias.

    Returns:
      "log_density", nats [batch]; "steps" taken [batch]; and "quadrature", nats [batch]: how
      far the rule with half the nodes is from the one used, more than its own error.
    """
    points, weights = clenshaw_curtis(nodes)
    low, high = gammas
    at = low + (high - low) * jnp.asarray(points, jnp.float32)
    path, steps = _path(eps_hat, z_0, told, at, tolerance)

    def divergence(args):
        i, gamma, z = args
        _, pull = jax.vjp(lambda z: velocity(eps_hat, z, gamma, told), z)
        if exact:
            return _trace(pull, z.shape)
        probe = jax.vmap(
            lambda key: jax.random.rademacher(jax.random.fold_in(key, i), z.shape[1:], z.dtype)
        )(key)
        return _sum(probe * pull(probe)[0])

    divergences = jax.lax.map(divergence, (jnp.arange(nodes + 1), at, path))
    fine = (high - low) * jnp.tensordot(jnp.asarray(weights, jnp.float32), divergences, 1)
    half = jnp.asarray(clenshaw_curtis(nodes // 2)[1], jnp.float32)
    coarse = (high - low) * jnp.tensordot(half, divergences[::2], 1)
    return {
        "log_density": _log_normal(path[-1]) + fine,
        "steps": steps,
        "quadrature": jnp.abs(coarse - fine),
    }


def _path(eps_hat, z_0, told, at, tolerance):
    """z along the flow from z_0, at each γ of `at`: [n, batch, …], and the steps [batch]."""

    def one(z, told):
        term = diffrax.ODETerm(
            lambda gamma, z, _: velocity(
                eps_hat, z[None], gamma, None if told is None else told[None]
            )[0]
        )
        solution = diffrax.diffeqsolve(
            term,
            diffrax.Tsit5(),
            at[0],
            at[-1],
            None,  # the solver finds the first step
            z,
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            saveat=diffrax.SaveAt(ts=at),
            max_steps=MAX_STEPS,
            throw=False,  # what is not reached is inf, and `require_solved` tells of it
        )
        return solution.ys, solution.stats["num_steps"]

    return jax.vmap(one, out_axes=(1, 0))(z_0, told)


MAX_STEPS = 10_000


def _trace(pull, shape):
    """The trace of a linear map that acts on each example alone, from its transpose: [batch]."""
    size = math.prod(shape[1:])

    def entry(i):
        unit = jax.nn.one_hot(i, size).reshape(1, *shape[1:])
        (row,) = pull(jnp.broadcast_to(unit, shape))
        return row.reshape(shape[0], size)[:, i]

    return jnp.sum(jax.lax.map(entry, jnp.arange(size)), axis=0)


def clenshaw_curtis(n):
    """The points (1 − cos(πj/n))/2 of [0, 1] and their weights, float64 [n + 1], n even.

    Exact for polynomials up to degree n; every other point is the rule for n/2.
    """
    j = np.arange(n + 1)
    points = 0.5 * (1.0 - np.cos(np.pi * j / n))
    even = np.arange(0, n + 1, 2)  # the integral of cos(kθ) sin(θ)/2 over [0, π] is 1/(1 − k²)
    ends = np.where((j == 0) | (j == n), 0.5, 1.0)
    terms = np.where((even == 0) | (even == n), 0.5, 1.0) / (1.0 - even**2)
    weights = (2.0 / n) * ends * (np.cos(np.pi * np.outer(j, even) / n) @ terms)
    return points, weights


def dequantise(kind, keys, levels, gamma_0, vocab_size):
    """A point z of the cell of each value, where a density is to stand for a probability.

    P(x) is the density's integral over the cell α (x ± 1/V), so that for any q on the cell
    log P(x) ≥ E_q[log p(z) − log q(z)] (Theis et al. 2016).

    uniform: z = α (x + u), u uniform on the cell, at the γ where α² times the variance of u
      is σ², or at γ_0 where that is less noise than the model knows.
    normal: z = α x + σ ε at γ_0, ε normal and cut off at the borders of the cell, as the
      model meets it in training (Zheng et al. 2023, sec. 4).

    Returns:
      z [batch, …], its γ, and −log q(z) in nats [batch].
    """
    x = encoder.scale(levels, vocab_size)
    if kind == "uniform":
        gamma = jnp.maximum(gamma_0, -2.0 * math.log(vocab_size * math.sqrt(3.0)))
        u = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], minval=-1.0))(keys)
        z = encoder.alpha(gamma) * (x + u / vocab_size)
        nats = x[0].size * jnp.log(2.0 * encoder.alpha(gamma) / vocab_size)
        return z, gamma, jnp.broadcast_to(nats, x.shape[:1])
    if kind == "normal":
        border = jnp.exp(-0.5 * gamma_0) / vocab_size  # of the cell, in standard deviations
        eps = jax.vmap(
            lambda key: jax.random.truncated_normal(key, -border, border, x.shape[1:])
        )(keys)
        inside = jnp.log(jax.scipy.special.erf(border / math.sqrt(2.0)))
        nats = x[0].size * (jnp.log(encoder.sigma(gamma_0)) + inside) - _log_normal(eps)
        return encoder.diffuse(x, gamma_0, eps), gamma_0, nats
    raise ValueError(f"kind is {kind!r}; accepted: 'uniform', 'normal'")


def importance_bound(log_weights, samples):
    """log (w_1 + … + w_K)/K for each group of K = `samples`: [n·K, …] to [n, …], float64."""
    log_weights = np.asarray(log_weights, np.float64)
    groups = log_weights[: len(log_weights) // samples * samples]
    groups = groups.reshape(-1, samples, *log_weights.shape[1:])
    top = groups.max(axis=1)
    return top + np.log(np.mean(np.exp(groups - top[:, None]), axis=1))


def require_solved(steps, tolerance):
    """Raises UserError where the ODE was not solved within MAX_STEPS."""
    require(
        np.max(steps) < MAX_STEPS,
        f"the ODE of an image was not solved in {MAX_STEPS} steps; config.eval.ode.tolerance "
        f"is {tolerance}: set a larger one.",
    )


def _log_normal(z):
    """log N(z; 0, I), nats [batch]."""
    return -0.5 * _sum(jnp.square(z) + math.log(2.0 * math.pi))


def _sum(values):
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))
