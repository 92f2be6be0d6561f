"""scikit-learn's 8 × 8 digits: trains, evaluates and draws in two minutes on a laptop.

  python -m vdm.main --config=configs/digits.py --workdir=/tmp/digits

1,437 training and 360 held-out test images of 17 levels, embedded: nothing is downloaded.
"""

from configs import default


def get_config():
    c = default.get_config()
    return c
