"""A VDM whose denoiser is exact in closed form, and data drawn from what it models."""

import numpy as np

from configs import default
from vdm.data import dataset as data
from vdm.diffusion import model as diffusion_lib, schedule


class Constant:
    """A network whose output is log p(v) of each value, whatever it is given: read as `levels`
    it is the optimal denoiser of pictures whose values are independent and distributed so."""

    def __init__(self, log_p):
        self.log_p = log_p  # [height, width, channels, vocab_size]

    def init(self, *args):
        return {}

    def apply(self, params, z, *args):
        return np.broadcast_to(self.log_p.reshape(1, *self.log_p.shape[:2], -1).astype(np.float32),
                               (z.shape[0], *self.log_p.shape[:2], self.log_p[0, 0].size))


def log_probabilities(shape, vocab_size, seed=0):
    """Random log-probabilities of the levels of each value: [*shape, vocab_size]."""
    p = np.random.default_rng(seed).gamma(1.0, size=(*shape, vocab_size)) + 0.05
    return np.log(p / p.sum(axis=-1, keepdims=True))


def pictures(log_p, count, seed=1):
    """Pictures drawn from independent values with these log-probabilities, and the negative
    log-likelihood of each in bits/dim."""
    draw = np.random.default_rng(seed)
    gumbel = draw.gumbel(size=(count, *log_p.shape))
    image = np.argmax(log_p + gumbel, axis=-1)
    chosen = np.take_along_axis(log_p[None], image[..., None], axis=-1)[..., 0]
    bits = -chosen.reshape(count, -1).mean(axis=1) / np.log(2.0)
    return image.astype(np.uint8), bits


def model(log_p, gamma_min, gamma_max, timesteps=0, made=schedule.FixedLinear):
    """A Diffusion with the denoiser `Constant` and a schedule between these end points."""
    *shape, vocab_size = log_p.shape
    return diffusion_lib.Diffusion(
        schedule=made(gamma_min, gamma_max),
        net=Constant(log_p),
        parameterisation="levels",
        shape=tuple(shape),
        vocab_size=vocab_size,
        classes=0,
        condition="none",
        timesteps=timesteps,
        times="stratified",
        gamma_range=(gamma_min, gamma_max),
        sampler="ancestral",
        sample_steps=10,
    )


def split(images, vocab_size):
    """The pictures as a data set."""
    part = data.in_memory(images)
    return data.Data(part, part, data.Spec(images.shape[1:], vocab_size, 0))


def config(**changes):
    """The default config with fields of config.eval changed."""
    c = default.get_config()
    c.eval.batch_size = 512
    for name, value in changes.items():
        c.eval.update_from_flattened_dict({name.replace("__", "."): value})
    return c
