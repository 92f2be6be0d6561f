"""Randomness is independent between uses: no key is drawn from twice, or both drawn from and derived from."""

import collections

from flax import linen as nn
import jax
from jax.extend.core import primitives
from jax.interpreters.partial_eval import DynamicJaxprTracer
import numpy as np
import pytest

from conftest import make_config
from vdm import run as run_lib
from vdm.runtime.randomness import NOISE, QuasiRng, Rng

MLP = {"model.net.name": "mlp", "model.net.depth": 1, "model.net.dropout": 0.5}
WIDTH = {"model.net.depth": 1, "model.net.width": 8, "model.net.dropout": 0.5}
CONFIGS = {  # file, fields, and whether the test also samples
    "diffusion": ("digits", MLP | {"model.condition": "label", "model.drop_label": 0.5}, True),
    "mhvae": ("mhvae", WIDTH | {"model.timesteps": 2}, False),
    "latent": ("latent", WIDTH | {"model.schedule.name": "learned_net"}, True),
    "mulan": ("digits", MLP | {"model.name": "mulan", "model.schedule.name": "multivariate"}, False),
}


def bytes_of(data):
    return [key.tobytes() for key in np.asarray(data).reshape(-1, 2)]


class Seen:
    """Records the keys that were drawn from, the keys that made parameters, and the parent of each key."""

    def __init__(self, monkeypatch):
        self.drawn, self.made = collections.Counter(), collections.Counter()
        self.parent: dict[bytes, bytes] = {}
        self.traced = []
        init = nn.Module.init

        def make(module, key, *args):
            self.traced.append(("made", key))
            return init(module, key, *args)

        monkeypatch.setattr(nn.Module, "init", make)
        monkeypatch.setattr(jax, "eval_shape", self.unwatched(jax.eval_shape))
        for name in ("random_bits_p", "random_fold_in_p", "random_split_p"):
            primitive = getattr(primitives, name)
            monkeypatch.setattr(primitive, "bind", self.watched(name, primitive.bind))

    def unwatched(self, shape_of):
        """Ignores keys while Flax evaluates the shapes of its parameters, which draws nothing."""

        def call(*args):
            traced = list(self.traced)
            shapes = shape_of(*args)
            self.traced = traced
            return shapes

        return call

    def watched(self, name, bind):
        def call(keys, *args, **params):
            out = bind(keys, *args, **params)
            if isinstance(out, DynamicJaxprTracer):  # skips vmap's tracers: vmap binds again for the batch
                self.traced.append(("drawn", keys) if name == "random_bits_p" else ("derived", keys, out))
            return out

        return call

    def run(self, function):
        """Computes all keys in one program, without jit inside it, so that all is traced with the patches."""

        def every_key():
            with jax.disable_jit():
                function()
            return [tuple(map(jax.random.key_data, keys)) for _, *keys in self.traced]

        values = jax.jit(every_key)()
        for (use, *_), (keys, *children) in zip(self.traced, values, strict=True):
            parents = bytes_of(keys)
            if use == "derived":
                for i, child in enumerate(names := bytes_of(*children)):
                    self.parent[child] = parents[i * len(parents) // len(names)]
            else:
                getattr(self, use).update(parents)

    def ancestors(self, key):
        while key in self.parent:
            key = self.parent[key]
            yield key


def assert_distinct(seen, keys):
    assert max(keys.values()) == 1
    assert not [key for key in keys for other in seen.ancestors(key) if other in keys]


@pytest.mark.parametrize("name", CONFIGS)
def test_each_use_has_a_key_of_its_own(name, monkeypatch):
    """For initial parameters, for one draw with dropout, and for samples."""
    file, fields, samples = CONFIGS[name]
    fields = fields | ({"model.sample_steps": 2} if samples else {})
    parts = run_lib.build(make_config(fields, f"configs/{file}.py"))
    batch = parts.data.train.read(np.arange(2))
    seen = Seen(monkeypatch)
    rng = lambda number: Rng(jax.random.key(number), np.arange(2), 2)

    def uses():
        params = parts.model.init(jax.random.key(0), batch)
        parts.model.draw(params, rng(1), batch, train=True)
        if samples:
            parts.model.sample(params, rng(2), batch)

    seen.run(uses)
    assert len(seen.drawn) > 4 and len(seen.made) >= 2
    assert_distinct(seen, seen.drawn)
    assert_distinct(seen, seen.made)


def test_a_pass_alone_shares_no_key_with_its_set(monkeypatch):
    """For as many passes as there are uses, because the numbers of uses are folded into keys, too."""
    seen = Seen(monkeypatch)

    def passes():
        for number in range(12):
            of_set = QuasiRng(jax.random.key(0), np.arange(12), np.int32(number), np.int32(12), np.int32(12))
            for rng in [of_set.alone()] + [of_set] * (number == 0):
                rng.normal(NOISE, (2,))

    seen.run(passes)
    assert len(seen.drawn) == 13 * 12
    assert_distinct(seen, seen.drawn)
