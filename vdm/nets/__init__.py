"""Networks that know nothing of diffusion: pictures to pictures. A new one derives from Network."""

from typing import Any

import jax

from vdm import component
from vdm.nets.mlp import MLP
from vdm.nets.network import Network
from vdm.nets.pyramid import Pyramid
from vdm.nets.transformer import Transformer
from vdm.nets.unet import UNet

__all__ = ["NETWORKS", "Network", "build"]

NETWORKS = component.Registry(
    Network, {"unet": UNet, "transformer": Transformer, "mlp": MLP, "pyramid": Pyramid}
)


def build(
    section: Any,
    shape: tuple[int, int, int],
    vocab_size: int,
    out_channels: int,
    path: str = "config.model.net",
) -> Network:
    """The network that the section at `path` describes, for pictures of this shape.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    heavy = NETWORKS.find(section.name, f"{path}.name").heavy
    return component.build(
        NETWORKS,
        section,
        path,
        shape=shape,
        vocab_size=vocab_size,
        out_channels=out_channels,
        unroll=jax.default_backend() == "cpu" and not heavy,
    )
