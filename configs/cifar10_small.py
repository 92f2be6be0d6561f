"""CIFAR-10 with a small transformer, for trials on a laptop: minutes, and far from the paper's result.

  python -m vdm.main --config=configs/cifar10_small.py --workdir=/tmp/cifar10_small \\
      --config.data.data_dir=$HOME/tensorflow_datasets

Data: as in configs/cifar10.py.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config():
    c = cifar10.get_config()

    c.model.sampler = "dpm2m"
    c.model.sample_steps = 20
    c.model.net = ConfigDict()
    c.model.net.name = "transformer"
    c.model.net.depth = 4
    c.model.net.width = 128
    c.model.net.heads = 4
    c.model.net.patch = 4

    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup = 30
    c.optimizer.decay = "cosine"
    c.optimizer.clip = 1.0

    c.train.steps = 800
    c.train.batch_size = 64
    c.train.substeps = 10
    c.train.log_every = 100
    c.train.ema = 0.99
    c.train.eval_every = 400
    c.train.checkpoint_every = 400
    c.train.sample_every = 0

    c.eval.passes = 10
    return c
