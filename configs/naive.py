"""The naive predictor on the digits: blurred averages, and their cost in bits.

  python -m vdm.main --config=configs/naive.py --workdir=/tmp/naive

A small transformer predicts the lower half of an image from the upper half, and the upper half from no input,
each in one pass. Its samples are its predictions: the average of all possible images.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config():
    c = digits.get_config()
    c.model = ConfigDict({"name": "naive", "net": c.model.net})
    c.train.steps = 500
    return c
