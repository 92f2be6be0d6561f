"""The types of arrays of images that many modules share."""

from jaxtyping import Array, Float, UInt8
import numpy as np

Image = Float[Array, "batch height width channels"]  # real values: scaled images, noise, latents
Images = UInt8[np.ndarray, "images height width channels"]  # integer values below the vocab_size
