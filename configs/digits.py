"""scikit-learn's 8 × 8 digits: trains, evaluates and samples in one to five minutes on 2 CPU cores.

  python -m vdm.main --config=configs/digits.py --workdir=/tmp/digits

1,437 training and 360 held-out test images of 17 levels, which come with scikit-learn: no download.
The network is a small transformer that reads the image as 4 × 4 tokens and predicts, for
each pixel, a distribution over its levels (the parameterisation "categorical").
"""

from vdm import config


def get_config():
    c = config.default()

    c.data.name = "digits"

    c.model.name = "diffusion"
    c.model.parameterisation = "categorical"
    # The parameterisation includes the exact likelihood of a pixel's noisy value, so the network has nothing
    # left to learn below γ = −9, and Fourier features would only add noise.
    c.model.schedule.gamma_min = -9.0
    c.model.net.name = "transformer"
    c.model.net.depth = 4
    c.model.net.width = 64
    c.model.net.heads = 2
    c.model.net.patch = 2
    c.model.net.dropout = 0.15
    c.model.net.fourier = 0

    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 6e-3
    c.optimizer.warmup = 50
    c.optimizer.decay = "cosine"
    c.optimizer.clip = 1.0

    c.train.steps = 2_000
    c.train.log_every = 100
    c.train.eval_every = 500
    c.train.checkpoint_every = 500
    c.train.sample_every = 0  # only after the last step
    return c
