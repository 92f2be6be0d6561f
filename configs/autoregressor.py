"""The autoregressor on the digits: a causal transformer over their 64 values, with an exact likelihood.

  python -m vdm.main --config=configs/autoregressor.py --workdir=/tmp/autoregressor

Training takes a few minutes on a laptop. The cost of the transformer grows with the square of the number of
values; for larger images use a PixelCNN:

  python -m vdm.main --config=configs/autoregressor.py --workdir=/tmp/autoregressor_mnist \\
      --config.model.net.name=pixelcnn \\
      --config.data.name=mnist \\
      --config.data.data_dir=$HOME/tensorflow_datasets --config.train.steps=20000
"""

from ml_collections import ConfigDict

from configs import digits


def get_config():
    c = digits.get_config()
    c.model = ConfigDict({"net": ConfigDict()})
    c.model.name = "autoregressor"
    c.model.net.name = "transformer"  # a token is one value
    c.model.net.depth = 4
    c.model.net.width = 64
    c.model.net.heads = 4
    # The network soon memorises the 1,437 images, since its inputs have no noise.
    c.model.net.dropout = 0.3

    c.optimizer.learning_rate = 1e-2

    c.train.steps = 500
    c.train.batch_size = 64
    c.train.log_every = 50
    c.train.eval_every = 100
    c.train.checkpoint_every = 100

    # The likelihood is exact: the second pass shows that it has no Monte-Carlo error.
    c.eval.passes = 2
    c.eval.passes_in_training = 1
    return c
