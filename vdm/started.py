"""The config that a workdir was started with, as a config file: started.py:W/config.json."""

import json

from ml_collections import ConfigDict


def get_config(path):
    with open(path) as file:
        return ConfigDict(json.load(file))
