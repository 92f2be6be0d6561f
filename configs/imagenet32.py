"""ImageNet at 32 × 32, as in the paper.

  python -m vdm.main --config=configs/imagenet32.py --workdir=/tmp/imagenet32 \\
      --config.data.data_dir=$HOME/Imagenet32

Data: TFDS's downsampled_imagenet can no longer be downloaded, so this config reads the published Imagenet32
batches, a folder of train_data_batch_1.npz … and val_data.npz (1,281,167 and 50,000 images). They were
downsampled with a different filter from the paper's, so their bits/dim are comparable only with each other.
With the TFDS set prepared as array_record, set --config.data.name=downsampled_imagenet/32x32.
Hardware: one or more accelerators of 32 GB, for 2 M steps of batch 512.
Published: 3.72 bits/dim on the TFDS set (VDM, table 1). Not reproduced here.
"""

from configs import cifar10


def get_config():
    c = cifar10.get_config()

    c.data.name = "npz"

    c.model.condition = "none"
    c.model.net.width = 256

    c.train.steps = 2_000_000
    c.train.batch_size = 512

    c.eval.batch_size = 512
    c.eval.passes = 1
    c.eval.passes_in_training = 1
    return c
