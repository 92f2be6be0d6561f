"""The naive predictor on the digits: blurred averages, and what they cost in bits.

  python -m vdm.main --config=configs/naive.py --workdir=/tmp/naive

A small transformer is asked for the lower half of an image from the upper one, and for the upper half from
nothing, each in one shot. Its samples are what it answers: the average of all answers.
"""

from ml_collections import ConfigDict

from configs import digits


def get_config():
    c = digits.get_config()
    c.model = ConfigDict({"name": "naive", "net": c.model.net})
    c.train.steps = 500
    return c
