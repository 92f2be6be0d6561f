"""Samples as one image: a grid, or a scatter of points."""

import math
import pathlib

from jaxtyping import UInt8
import numpy as np

from vdm.diffusion import process
from vdm.reporting.figures import new_figure
from vdm.runtime.atomic import atomic_path


def save_samples(
    path: pathlib.Path | str, samples: UInt8[np.ndarray, "images height width channels"], vocab_size: int
) -> None:
    """Writes samples, values below vocab_size, as a PNG: a grid of images, or a scatter of 2-D points."""
    if samples.shape[1:] == (1, 1, 2):
        _save_points(path, samples[:, 0, 0], vocab_size)
    else:
        _save_grid(path, samples, vocab_size)


def write_samples(
    workdir: pathlib.Path, samples: UInt8[np.ndarray, "images height width channels"], vocab_size: int
) -> None:
    """Writes samples.png, and samples.npz, whose "image" the data source "npz" reads."""
    save_samples(workdir / "samples.png", samples, vocab_size)
    with atomic_path(workdir / "samples.npz") as part:
        np.savez_compressed(part, image=samples)


def _save_grid(path, samples: UInt8[np.ndarray, "images height width channels"], vocab_size: int) -> None:
    from PIL import Image

    count, height, width, channels = samples.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    # Dark lines between images, and small images enlarged to be visible.
    grid = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 40, np.uint8)
    grays = np.round(samples * (255.0 / (vocab_size - 1))).astype(np.uint8)
    for i, image in enumerate(grays):
        top, left = i // columns * (height + 1) + 1, i % columns * (width + 1) + 1
        grid[top : top + height, left : left + width] = image
    shown = {1: grid[..., 0], 2: np.pad(grid, ((0, 0), (0, 0), (0, 1)))}.get(channels, grid[..., :3])
    image = Image.fromarray(shown)
    enlarge = max(1, 640 // max(image.size))
    with atomic_path(path) as part:
        image.resize([side * enlarge for side in image.size], Image.Resampling.NEAREST).save(part)


def _save_points(path, points, vocab_size: int) -> None:
    figure, axes = new_figure(1, 1, (5, 5))
    axes.scatter(*process.scale(points, vocab_size).T, s=4, alpha=0.5, linewidths=0)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", title=f"{len(points)} samples")
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120)
