"""The learned schedule of the authors' own code, whose end points move with what lies between them."""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm.diffusion.schedule.base import Schedule


class MovingNet(Schedule):
    """γ(t) = b + |w| t + 1/n Σ |v_i| tanh(½ (|u_i| (2t − 1) + c_i)), with n = `hidden` (google-research/vdm).

    Unlike LearnedNet, all its parameters move γ(0) and γ(1), so that all of them change the ELBO.
    """

    hidden: int = 1024

    @property
    def learned_ends(self) -> bool:
        return True

    @nn.compact
    def __call__(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        small, zeros = nn.initializers.normal(), nn.initializers.zeros
        start = self.param("start", lambda key: jnp.asarray(self.gamma_min, jnp.float32))
        width = self.param("width", lambda key: jnp.asarray(self.gamma_max - self.gamma_min, jnp.float32))
        steep, height = (self.param(name, small, (self.hidden,)) for name in ("steep", "height"))
        bias = self.param("bias", zeros, (self.hidden,))
        t = jnp.asarray(t)
        bends = 2.0 * jax.nn.sigmoid((2.0 * t[..., None] - 1.0) * jnp.abs(steep) + bias) - 1.0
        return start + jnp.abs(width) * t + bends @ jnp.abs(height) / self.hidden
