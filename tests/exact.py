"""A VDM whose denoiser is exact in closed form, and data drawn from its distribution."""

import numpy as np

from conftest import make_config
from vdm.data import dataset
from vdm.diffusion import model as diffusion_lib
from vdm.diffusion.denoiser import Categorical
from vdm.diffusion.schedule import FixedLinear


class Constant:
    """A network whose output is log p(v) of each value, whatever its input. With the parameterisation
    `categorical`, it is the optimal denoiser of images of independent values with these probabilities."""

    def __init__(self, log_p):
        self.log_p = log_p  # [height, width, channels, vocab_size]

    @property
    def out_channels(self):
        return self.log_p.shape[-2] * self.log_p.shape[-1]

    def init(self, *args):
        return {}

    def predict(self, params, z, *args):
        *shape, channels, vocab_size = self.log_p.shape
        output = self.log_p.reshape(1, *shape, channels * vocab_size).astype(np.float32)
        return np.broadcast_to(output, (z.shape[0], *output.shape[1:]))


def log_probabilities(shape, vocab_size, seed=0):
    """Random log-probabilities of the levels of each value: [*shape, vocab_size]."""
    p = np.random.default_rng(seed).gamma(1.0, size=(*shape, vocab_size)) + 0.05
    return np.log(p / p.sum(axis=-1, keepdims=True))


def images(log_p, count, seed=1):
    """Images drawn from independent values with these log-probabilities, and the negative
    log-likelihood of each in bits/dim."""
    random = np.random.default_rng(seed)
    gumbel = random.gumbel(size=(count, *log_p.shape))
    image = np.argmax(log_p + gumbel, axis=-1)
    chosen = np.take_along_axis(log_p[None], image[..., None], axis=-1)[..., 0]
    bits = -chosen.reshape(count, -1).mean(axis=1) / np.log(2.0)
    return image.astype(np.uint8), bits


def model(log_p, gamma_min, gamma_max, timesteps=0, schedule=FixedLinear):
    """A Diffusion with the denoiser `Constant` and a schedule between these end points."""
    *shape, vocab_size = log_p.shape
    return diffusion_lib.Diffusion(
        schedule=schedule(shape=tuple(shape), gamma_min=gamma_min, gamma_max=gamma_max),
        net=Constant(log_p),
        shape=tuple(shape),
        vocab_size=vocab_size,
        classes=0,
        parameterisation=Categorical(),
        timesteps=timesteps,
        sample_steps=10,
    )


def split(images, vocab_size):
    """A data set with these images as its training and its test split."""
    part = dataset.in_memory(images)
    return dataset.Data(part, part, dataset.Spec(images.shape[1:], vocab_size, 0))


def config(**changes):
    """The default config with fields of config.eval changed; __ for a dot."""
    fields = {f"eval.{name.replace('__', '.')}": value for name, value in changes.items()}
    return make_config({"eval.batch_size": 512} | fields)
