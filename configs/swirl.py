"""A 2-D spiral of points, to show a density: a minute on a laptop.

  python -m vdm.main --config=configs/swirl.py --workdir=/tmp/swirl

18,000 training and 2,000 test points, each an image of 1 × 1 with two channels of 256 levels, so that
bits/dim have the same meaning as for images. samples.png is a scatter plot.
"""

from vdm import config


def get_config():
    c = config.default()

    c.data.name = "swirl"

    c.model.name = "diffusion"
    c.model.parameterisation = "eps"
    c.model.net.name = "mlp"
    c.model.net.depth = 3
    c.model.net.width = 128
    c.model.net.dropout = 0.0
    c.model.net.fourier = 0

    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.decay = "cosine"

    c.train.batch_size = 512
    c.train.steps = 6_000
    c.train.substeps = 100
    c.train.log_every = 500
    c.train.eval_every = 1_000
    c.train.checkpoint_every = 1_000
    c.train.sample_every = 3_000

    c.eval.batch_size = 500
    c.sample.num = 2_000
    c.sample.batch_size = 2_000
    return c
