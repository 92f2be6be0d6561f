"""CIFAR-10 without augmentation, as in the paper: 30,578,181 parameters.

  python -m vdm.main --config=configs/cifar10.py --workdir=/tmp/cifar10 \\
      --config.data.data_dir=$HOME/tensorflow_datasets

Data: `tfds build cifar10 --file_format=array_record`, 50,000 and 10,000 images.
Hardware: one accelerator of 16 GB or more, for 10 M steps.
Published: 2.65 bits/dim on the test set (VDM, table 1). Not reproduced here.
"""

from vdm import config


def get_config():
    c = config.default()
    c.seed = 1

    c.data.name = "cifar10"

    c.model.name = "diffusion"
    # The flag is always 0 here; it gives the network the same inputs as in cifar10_aug.py.
    c.model.condition = "augmented"
    c.model.sample_steps = 1_000
    c.model.net.name = "unet"
    c.model.net.depth = 32
    c.model.net.width = 128
    c.model.net.dropout = 0.1

    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 2e-4
    c.optimizer.warmup = 100
    c.optimizer.weight_decay = 0.01

    c.train.steps = 10_000_000
    c.train.batch_size = 128
    c.train.substeps = 100
    c.train.ema = 0.9999
    c.train.log_every = 1_000
    c.train.eval_every = 10_000
    c.train.checkpoint_every = 10_000
    c.train.sample_every = 50_000

    c.eval.batch_size = 128
    c.eval.passes_in_training = 2
    return c
