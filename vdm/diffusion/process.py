"""The forward process q: linear, Gaussian, variance preserving, and not learned (VDM sec. 3.1).

Computes q(z_t|x), q(z_t|z_s) and q(z_s|z_t, x). With x̂ in place of x, the last is also the reverse process
p(z_s|z_t) (VDM eq. 9; lecture (20)). All functions are pure functions of arrays; γ = −log SNR broadcasts
against z. Every coefficient is computed from γ in a way that is accurate in float32 for |γ| ≤ 20, where σ² or
α² is 2e-9: without 1 − sigmoid, and without the log of a difference.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

Values = Float[Array, "batch *shape"]
Gamma = Float[Array, "*#any"]  # broadcasts against Values


def alpha(gamma: Gamma) -> Gamma:
    """α = sqrt(sigmoid(−γ)): the scale of the signal."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(-gamma))


def sigma(gamma: Gamma) -> Gamma:
    """σ = sqrt(sigmoid(γ)): the scale of the noise. α² + σ² = 1."""
    return jnp.exp(0.5 * jax.nn.log_sigmoid(gamma))


def over_pixels(values: Float[Array, "batch *any"]) -> Float[Array, "batch _ _ _"]:
    """Reshapes [batch] to [batch, 1, 1, 1]; leaves any other shape unchanged."""
    return values[:, None, None, None] if values.ndim == 1 else values


def of_image(gamma: Float[Array, "batch *any"]) -> Float[Array, "batch"]:
    """The γ of each image; the mean over its values if γ differs between them."""
    return gamma if gamma.ndim == 1 else jnp.mean(gamma, axis=(1, 2, 3))


def scale(levels: Shaped[Array, "*any"], vocab_size: int) -> Float[Array, "*any"]:
    """Maps integer levels 0 … V−1 to the centres of V equal cells of [−1, 1]: (2i + 1)/V − 1."""
    return (2.0 * levels.astype(jnp.float32) + 1.0) / vocab_size - 1.0


def unscale(x: Float[Array, "*any"], vocab_size: int) -> Int[Array, "*any"]:
    """The integer level whose centre is nearest to x: the inverse of `scale`."""
    level = jnp.round((x + 1.0) * (vocab_size / 2.0) - 0.5)
    return jnp.clip(level, 0, vocab_size - 1).astype(jnp.int32)


def marginal(x: Values, gamma: Gamma) -> tuple[Values, Gamma]:
    """q(z_t|x) = N(α x, σ² I): its mean and its variance (VDM eq. 1)."""
    return alpha(gamma) * x, jax.nn.sigmoid(gamma)


def diffuse(x: Values, gamma: Gamma, eps: Values) -> Values:
    """A draw z_t = α x + σ ε of q(z_t|x), ε ~ N(0, I)."""
    return alpha(gamma) * x + sigma(gamma) * eps


def kl_to_standard(x: Values, gamma: Gamma) -> Float[Array, "batch"]:
    """KL(q(z_t|x) ‖ N(0, I)), nats: the lecture's prior matching term at γ = γ(1).

    ½ Σ (α² x² + σ² − 1 − log σ²), with σ² − 1 = −α².
    """
    alpha2 = jax.nn.sigmoid(-gamma)
    each = alpha2 * jnp.square(x) - alpha2 + jax.nn.softplus(-gamma)
    return 0.5 * jnp.sum(each, axis=tuple(range(1, each.ndim)))


def transition(z_s: Values, gamma_s: Gamma, gamma_t: Gamma) -> tuple[Values, Gamma]:
    """q(z_t|z_s), s < t: mean α_{t|s} z_s and variance σ²_{t|s} (VDM app. A.1).

    σ²_{t|s} = σ_t² − α²_{t|s} σ_s² is computed as σ_t² (1 − e^{γ_s − γ_t}), which avoids the difference.
    """
    ratio = jnp.exp(0.5 * (jax.nn.log_sigmoid(-gamma_t) - jax.nn.log_sigmoid(-gamma_s)))
    return ratio * z_s, -jnp.expm1(gamma_s - gamma_t) * jax.nn.sigmoid(gamma_t)


def posterior(z_t: Values, x: Values, gamma_s: Gamma, gamma_t: Gamma) -> tuple[Values, Gamma]:
    """q(z_s|z_t, x), s < t: its mean and its variance (VDM app. A.2).

    mean     α_{t|s} σ_s²/σ_t² z_t + α_s σ²_{t|s}/σ_t² x
    variance σ²_{t|s} σ_s²/σ_t² = σ_s² (1 − e^{γ_s − γ_t})
    """
    log_ratio = jax.nn.log_sigmoid(gamma_s) - jax.nn.log_sigmoid(gamma_t)
    log_alpha = 0.5 * (jax.nn.log_sigmoid(-gamma_t) - jax.nn.log_sigmoid(-gamma_s))
    fresh = -jnp.expm1(gamma_s - gamma_t)
    mean = jnp.exp(log_ratio + log_alpha) * z_t + alpha(gamma_s) * fresh * x
    return mean, jax.nn.sigmoid(gamma_s) * fresh
