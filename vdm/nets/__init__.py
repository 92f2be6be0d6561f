"""Networks from images to images, independent of diffusion. A custom one derives from Network."""

from typing import Any

from vdm import component
from vdm.nets.network import Network
from vdm.runtime import devices

__all__ = ["Network", "build"]


def build(
    section: Any,
    shape: tuple[int, int, int],
    vocab_size: int,
    out_channels: int,
    path: str = "config.model.net",
) -> Network:
    """The network that the section at `path` describes, for images of this shape.

    Raises:
      UserError: a field has a value that is not accepted.
    """
    kind = component.find("network", section.name, f"{path}.name")
    return component.build(
        "network",
        section,
        path,
        shape=shape,
        vocab_size=vocab_size,
        out_channels=out_channels,
        unroll=devices.platform() == kind.unrolled_on,
    )
