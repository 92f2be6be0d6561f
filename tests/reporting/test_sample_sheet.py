"""Samples as one image: it shows every sample, and points at their coordinates."""

import numpy as np
from PIL import Image

from vdm.diffusion import process
from vdm.reporting import sample_sheet


def test_grid_shows_every_sample(tmp_path):
    """The grid shows each sample, row by row, with the lowest level black and the highest white."""
    samples = np.zeros((5, 8, 8, 1), np.uint8)
    samples[4] = 16
    sample_sheet.save_samples(tmp_path / "grid.png", samples, 17)
    with Image.open(tmp_path / "grid.png") as image:
        grid = np.asarray(image)
    side = grid.shape[1] // (3 * 9 + 1)  # three columns of 8 pixels and a line
    small = grid[::side, ::side]
    np.testing.assert_array_equal(small[10:18, 10:18], 255)
    np.testing.assert_array_equal(small[1:9, 1:9], 0)


def test_points_are_plotted_where_they_are(tmp_path):
    """Points in the upper right quarter give blue pixels only there; 8 bits do not wrap."""
    points = np.full((50, 1, 1, 2), 224, np.uint8)
    assert np.all(process.scale(points, 256) == 0.75390625)
    sample_sheet.save_samples(tmp_path / "points.png", points, 256)
    with Image.open(tmp_path / "points.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = np.argwhere(pixels[..., 2] - pixels[..., 0] > 60)  # rows from the top, columns
    assert len(blue) and (blue[:, 0] < 300).all() and (blue[:, 1] > 300).all()
