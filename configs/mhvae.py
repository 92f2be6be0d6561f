"""A Markovian hierarchical VAE on the digits, and the lecture's three restrictions that turn it into a VDM.

  python -m vdm.main --config=configs/mhvae.py --workdir=/tmp/mhvae
  python -m vdm.main --config=configs/mhvae.py --workdir=/tmp/mhvae_I --config.model.restrictions=I
  python -m vdm.main --config=configs/mhvae.py --workdir=/tmp/mhvae_I_II --config.model.restrictions=I,II
  python -m vdm.main --config=configs/mhvae.py --workdir=/tmp/mhvae_vdm --config.model.restrictions=I,II,III

Each has 10 latents; the last is a VDM of 9 steps. For MNIST, add the fields given in configs/vae.py and, with
restriction II, --config.model.parameterisation=v --config.model.schedule.gamma_min=-13.3 for its 256 levels.
"""

from ml_collections import ConfigDict

from configs import vae


def get_config():
    c = vae.get_config()
    c.model.name = "mhvae"
    c.model.timesteps = 10
    c.model.schedule = ConfigDict()
    # Used with restriction II. With few steps, the end points matter. γ(0) moves little from its initial
    # value, which was chosen among −3, −4, −5, −6 and −9 on held-out training images.
    c.model.schedule.name = "learned_net"
    c.model.schedule.learn_ends = True
    c.model.schedule.gamma_min = -4.0
    c.model.parameterisation = "categorical"
    c.model.net.fourier = 0
    return c
