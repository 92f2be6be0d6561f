"""A variational autoencoder on the digits, with one latent of 16 dimensions, to compare with the VDM.

  python -m vdm.main --config=configs/vae.py --workdir=/tmp/vae
  python -m vdm.main --workdir=/tmp/vae --mode=eval --config.eval.estimators=all

The second command adds importance-weighted bounds. On MNIST:

  python -m vdm.main --config=configs/vae.py --workdir=/tmp/vae_mnist --config.data.name=mnist \\
      --config.data.data_dir=$HOME/tensorflow_datasets
"""

from ml_collections import ConfigDict

from configs import digits


def get_config():
    c = digits.get_config()

    c.model = ConfigDict({"net": ConfigDict()})
    c.model.name = "vae"
    c.model.latent = 16
    c.model.net.name = "mlp"
    c.model.net.depth = 2
    c.model.net.width = 256
    c.model.net.dropout = 0.1

    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1e-3

    c.train.steps = 1_500
    return c
