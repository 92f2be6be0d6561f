"""The config that a workdir was started with, as a config file: started.py:W/config.json."""

import json

from configs import default


def get_config(path):
    """Fields of default.py that the workdir, made by an older version, has not are added."""
    with open(path) as file:
        config = default.get_config()
        config.update(json.load(file))
    return config
