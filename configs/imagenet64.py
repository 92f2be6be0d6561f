"""ImageNet at 64 × 64, as in the paper.

  python -m vdm.main --config=configs/imagenet64.py --workdir=/tmp/imagenet64 \\
      --config.data.data_dir=$HOME/Imagenet64

Data: the published Imagenet64 batches, as in configs/imagenet32.py, or, with the TFDS set prepared,
--config.data.name=downsampled_imagenet/64x64.
Hardware: a pod slice or 8 large GPUs, for 2 M steps of batch 512.
Published: 3.40 bits/dim on the TFDS set (VDM, table 1). Not reproduced here.
"""

from configs import imagenet32


def get_config():
    c = imagenet32.get_config()
    c.model.net.depth = 64
    return c
