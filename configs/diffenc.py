"""DiffEnc (Nielsen et al. 2024) on the digits: a VDM with a learned encoder.

  python -m vdm.main --config=configs/diffenc.py --workdir=/tmp/diffenc

The same as configs/digits.py, except that the network predicts v, and that a smaller network, the encoder,
maps x to x_t at each noise level. The results are in docs/results/learned_encoder.md.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config():
    c = digits.get_config()
    c.model.name = "diffenc"
    c.model.parameterisation = "v"
    c.model.net.fourier = 2
    c.model.encoder = ConfigDict({"name": "learned", "net": ConfigDict()})
    c.model.encoder.net.name = "transformer"
    c.model.encoder.net.depth = 2
    c.model.encoder.net.width = 64
    c.model.encoder.net.heads = 2
    c.model.encoder.net.patch = 2
    c.model.encoder.net.dropout = 0.0
    c.model.encoder.net.fourier = 0
    return c
