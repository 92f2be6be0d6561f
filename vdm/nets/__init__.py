"""Networks that know nothing of diffusion: pictures to pictures. `build` makes one of a config."""

import jax
import jax.numpy as jnp

from vdm.errors import one_of, require
from vdm.nets import mlp, transformer, unet
from vdm.nets.layers import REMAT

NETS = ("unet", "transformer", "mlp")


def build(net, spec, out_channels):
    """The network that `net` (config.model.net of configs/default.py) describes.

    Args:
      spec: data.Spec of the pictures that it sees.
      out_channels: channels of what it gives.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    one_of("config.model.net.name", net.name, NETS)
    check(net)
    height, width, _ = spec.shape
    common = dict(
        out_channels=out_channels,
        depth=net.depth,
        width=net.width,
        dropout=net.dropout,
        frequencies=tuple((net.highest or spec.vocab_size / 2.0) / 2.0**n for n in range(net.fourier)),
        dtype=jnp.dtype(net.dtype),
        remat=net.remat,
        # XLA's CPU backend runs small products inside a loop at half the speed. The U-Net's are
        # large.
        unroll=jax.default_backend() == "cpu" and net.name != "unet",
    )
    if net.name == "mlp":
        return mlp.MLP(**common)
    if net.name == "unet":
        return unet.UNet(attention=net.attention, heads=net.heads, **common)
    require(
        height % net.patch == 0 and width % net.patch == 0,
        f"config.model.net.patch is {net.patch}; it must divide the pictures' "
        f"height {height} and width {width}.",
    )
    return transformer.Transformer(heads=net.heads, patch=net.patch, **common)


def check(net):
    """Raises UserError where a number or a choice of config.model.net cannot be, for any network."""
    one_of("config.model.net.attention", net.attention, ("middle", "everywhere"))
    one_of("config.model.net.dtype", net.dtype, ("float32", "bfloat16"))
    one_of("config.model.net.remat", net.remat, REMAT)
    for name in ("depth", "width", "heads", "patch"):
        require(net[name] >= 1, f"config.model.net.{name} is {net[name]}; accepted: 1 or more.")
    require(net.highest >= 0, f"config.model.net.highest is {net.highest}; accepted: 0 (V/2) or more.")
    require(net.fourier >= 0, f"config.model.net.fourier is {net.fourier}; accepted: 0 or more.")
    require(
        0 <= net.dropout < 1,
        f"config.model.net.dropout is {net.dropout}; accepted: 0 up to, but not, 1.",
    )
    require(
        net.width % (2 * net.heads) == 0,
        f"config.model.net.width is {net.width}; it must be a multiple of "
        f"2 · config.model.net.heads = {2 * net.heads}.",
    )
