"""MNIST, 28 × 28: a U-Net that one GPU trains in minutes and a laptop in hours.

  python -m vdm.main --config=configs/mnist.py --workdir=/tmp/mnist \\
      --config.data.data_dir=$HOME/tensorflow_datasets

Data: `tfds build mnist --file_format=array_record`, 60,000 and 10,000 images.
"""

from vdm import config


def get_config():
    c = config.default()

    c.data.name = "mnist"

    c.model.name = "diffusion"
    c.model.net.name = "unet"
    c.model.net.depth = 4
    c.model.net.width = 64

    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3
    c.optimizer.decay = "cosine"
    c.optimizer.clip = 1.0

    c.train.steps = 20_000
    c.train.ema = 0.9995
    c.train.eval_every = 2_000
    c.train.checkpoint_every = 1_000
    c.train.sample_every = 5_000

    c.eval.batch_size = 128
    c.eval.passes = 4
    c.eval.passes_in_training = 2
    return c
