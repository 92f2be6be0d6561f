"""CIFAR-10 with flips, 90° rotations and channel permutations, as in the paper.

  python -m vdm.main --config=configs/cifar10_aug.py --workdir=/tmp/cifar10_aug \\
      --config.data.data_dir=$HOME/tensorflow_datasets

The model is conditioned on whether an image was changed, and is evaluated on unchanged images.
Data: `tfds build cifar10 --file_format=array_record`.
Hardware: the paper's batch of 1,024 needs a pod slice or 8 large GPUs.
Published: 2.49 bits/dim on the test set (VDM, table 1). Not reproduced here.
"""

from configs import cifar10


def get_config():
    c = cifar10.get_config()

    c.data.augment = "flip,rotate,channels"

    c.model.schedule.name = "learned_net"
    c.model.schedule.learn_ends = True
    c.model.net.width = 256
    c.model.net.dropout = 0.05
    c.model.net.attention = "everywhere"

    c.train.batch_size = 1_024
    c.train.steps = 100_000_000

    c.eval.batch_size = 1_024
    return c
