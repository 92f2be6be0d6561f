"""A latent VDM on the digits: a VAE whose prior is a VDM conditioned on the class, trained jointly.

  python -m vdm.main --config=configs/latent.py --workdir=/tmp/latent
  python -m vdm.main --workdir=/tmp/latent --mode=sample --config.model.guidance=2.0

The second command draws samples with classifier-free guidance, for the classes 0, 1, … in turn. The bound is
on −log p(x), as one of its terms is the cost of the label. For MNIST, add the fields given in configs/vae.py.
"""

from ml_collections import ConfigDict

from configs import vae


def get_config():
    c = vae.get_config()
    c.model.name = "latent"
    c.model.schedule = ConfigDict()
    c.model.parameterisation = "v"
    c.model.condition = "label"
    c.model.drop_label = 0.1
    # Both end points are learned: the noise in z_0, and how much of μ(x) is left in z_1.
    c.model.schedule.gamma_min = -3.0
    c.model.schedule.gamma_max = 5.0
    c.model.net.depth = 3
    c.model.net.fourier = 0
    return c
