"""Randomness is independent between uses: no key is drawn from twice, or both drawn from and derived from."""

import collections

from flax import linen as nn
import jax
from jax.extend.core import primitives
import numpy as np
import pytest

from conftest import make_config
from vdm import run as run_lib
from vdm.runtime.randomness import NOISE, QuasiRng, Rng

MLP = {"model.net.name": "mlp", "model.net.depth": 1, "model.net.dropout": 0.5}
WIDTH = {"model.net.depth": 1, "model.net.width": 8, "model.net.dropout": 0.5}
CONFIGS = {  # file, fields, and whether images are drawn by it too
    "diffusion": ("digits", MLP | {"model.condition": "label", "model.drop_label": 0.5}, True),
    "mhvae": ("mhvae", WIDTH | {"model.timesteps": 2}, False),
    "latent": ("latent", WIDTH | {"model.schedule.name": "learned_net"}, True),
    "mulan": ("digits", MLP | {"model.name": "mulan", "model.schedule.name": "multivariate"}, False),
}


def bytes_of(keys):
    return [data.tobytes() for data in np.asarray(jax.random.key_data(keys)).reshape(-1, 2)]


class Seen:
    """Which keys were drawn from, which parameters were made of, and the key that each was derived from."""

    def __init__(self, monkeypatch):
        self.drawn, self.made = collections.Counter(), collections.Counter()
        self.parent: dict[bytes, bytes] = {}
        draw, init = primitives.random_bits_p.impl, nn.Module.init

        def bits(keys, **params):
            self.drawn.update(bytes_of(keys))
            return draw(keys, **params)

        def make(module, key, *args):
            self.made.update(bytes_of(key))
            return init(module, key, *args)

        monkeypatch.setattr(primitives.random_bits_p, "impl", bits)
        monkeypatch.setattr(nn.Module, "init", make)
        for primitive in (primitives.random_fold_in_p, primitives.random_split_p):
            monkeypatch.setattr(primitive, "impl", self.derived(primitive.impl))

    def derived(self, impl):
        def call(keys, *args, **params):
            children, parents = impl(keys, *args, **params), bytes_of(keys)
            names = bytes_of(children)
            for i, child in enumerate(names):
                self.parent[child] = parents[i * len(parents) // len(names)]
            return children

        return call

    def ancestors(self, key):
        while key in self.parent:
            key = self.parent[key]
            yield key


def assert_distinct(seen, keys):
    assert max(keys.values()) == 1
    assert not [key for key in keys for other in seen.ancestors(key) if other in keys]


@pytest.mark.parametrize("name", CONFIGS)
def test_each_use_has_a_key_of_its_own(name, monkeypatch):
    """For fresh parameters, for one draw with dropout, and for samples."""
    file, fields, samples = CONFIGS[name]
    fields |= {"model.sample_steps": 2} if samples else {}
    parts = run_lib.build(make_config(fields, f"configs/{file}.py"))
    batch = parts.data.train.read(np.arange(2))
    seen = Seen(monkeypatch)
    rng = lambda number: Rng(jax.random.key(number), np.arange(2), 2)
    with jax.disable_jit():  # so that each key is there to be looked at
        params = parts.model.init(jax.random.key(0), batch)
        parts.model.draw(params, rng(1), batch, train=True)
        if samples:
            parts.model.sample(params, rng(2), batch)
    assert len(seen.drawn) > 4 and len(seen.made) >= 2
    assert_distinct(seen, seen.drawn)
    assert_distinct(seen, seen.made)


def test_a_pass_alone_shares_no_key_with_its_set(monkeypatch):
    """For as many passes as there are uses, whose numbers are folded in, too."""
    seen = Seen(monkeypatch)
    with jax.disable_jit():
        for number in range(12):
            of_set = QuasiRng(jax.random.key(0), np.arange(12), np.int32(number), np.int32(12), np.int32(12))
            for rng in [of_set.alone()] + [of_set] * (number == 0):
                rng.normal(NOISE, (2,))
    assert len(seen.drawn) == 13 * 12
    assert_distinct(seen, seen.drawn)
