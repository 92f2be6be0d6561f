"""CIFAR-10 on a laptop: a denoiser that starts as a Gaussian of the data, and a small network for the rest.

  python -m vdm.main --config=configs/cifar10_laptop.py --workdir=/tmp/cifar10_laptop \\
      --config.data.data_dir=$HOME/tensorflow_datasets

The data are those of configs/cifar10.py, or a subset. Trained on 4,068 images with
--config.model.name=mirrored, the averaged weights reach 3.421 ± 0.022 bits/dim: the ELBO of 1,017 test
images, 10 passes, one seed (docs/results/natural_images.md). The 3,400 steps take 10 to 20 minutes on 2 CPU
cores. On a GPU or TPU, set --config.train.accumulate=1 and a larger batch; for bfloat16,
--config.model.net.dtype=bfloat16 --config.optimizer.dtype=bfloat16.
"""

from ml_collections import ConfigDict

from configs import cifar10


def get_config():
    c = cifar10.get_config()

    c.model.condition = "none"
    c.model.parameterisation = "leave_one_out"
    c.model.times = "importance"
    c.model.sampler = "dpm2m"
    c.model.sample_steps = 50
    c.model.schedule.name = "fixed_linear"
    c.model.net = ConfigDict()
    c.model.net.name = "pyramid"
    c.model.net.width = 48

    c.objective.name = "band"

    c.data.augment = "flip"

    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 3.5e-3
    c.optimizer.warmup = 100
    c.optimizer.decay = "cosine"
    c.optimizer.clip = 1.0

    c.train.steps = 3_400
    c.train.batch_size = 16
    c.train.accumulate = 4  # so that activations stay in a CPU's cache
    c.train.substeps = 1
    c.train.log_every = 100
    c.train.ema = 0.995
    c.train.eval_every = 850
    c.train.checkpoint_every = 850
    c.train.sample_every = 0

    c.eval.batch_size = 64
    c.eval.passes = 10
    c.sample.batch_size = 16  # progress is shown after each batch
    return c
