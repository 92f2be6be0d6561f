"""Components: their fields, the values that they refuse, and lookup by name."""

import dataclasses
import importlib

from flax import linen as nn
from ml_collections import ConfigDict
import pytest

from vdm import component
from vdm.component import Component, Refused, Registry, accept, choose
from vdm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Animal(Component):
    home: str
    legs: int = 4

    def check(self):
        accept("legs", self.legs >= 0, "0 or more")


@dataclasses.dataclass(frozen=True)
class Bird(Animal):
    legs: int = 2
    song: str = "none"

    def check(self):
        super().check()
        choose("song", self.song, ("none", "whistle"))


class Layer(nn.Module, Component):
    size: int
    scale: float = 1.0


ANIMALS = Registry(f"{__name__}:Animal", {"animal": f"{__name__}:Animal", "bird": f"{__name__}:Bird"})


@pytest.fixture(autouse=True)
def animals(monkeypatch):
    monkeypatch.setitem(component.REGISTRIES, "animal", ANIMALS)


def section(**fields):
    return ConfigDict(fields)


def test_fields_with_a_default_are_those_of_the_config():
    assert Animal.config_fields() == {"legs": 4}
    assert Bird.config_fields() == {"legs": 2, "song": "none"}
    assert Layer.config_fields() == {"scale": 1.0}, "not Flax's own fields"


def test_built_from_its_section_and_what_the_code_gives():
    made = component.build("animal", section(name="bird", legs=2, song="whistle"), "config.pet", home="tree")
    assert made == Bird("tree", 2, "whistle")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "bird", "legs": -1, "song": "none"}, r"^config\.pet\.legs is -1; accepted: 0 or more\.$"),
        (
            {"name": "bird", "legs": 2, "song": "whistel"},
            r"^config\.pet\.song is 'whistel'; accepted: 'none', 'whistle'\. Did you mean 'whistle'\?$",
        ),
        ({"name": "bird", "legs": 2, "song": "xyz"}, r"accepted: 'none', 'whistle'\.$"),
        (
            {"name": "brid", "legs": 2},
            r"^config\.pet\.name is 'brid'; accepted: 'animal', 'bird', or the import path of a custom "
            r"component, 'module:Class'\. Did you mean 'bird'\?$",
        ),
    ],
)
def test_what_is_not_accepted_is_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        component.build("animal", section(**fields), "config.pet", home="tree")


def test_refused_says_the_field():
    with pytest.raises(Refused) as refused:
        Animal("tree", -1).check()
    assert (refused.value.field, refused.value.accepted) == ("legs", "0 or more")


def test_an_import_path_is_no_version_of_a_data_set():
    assert component.OWN.fullmatch("my_package.my_file:Class")
    for name in ("mnist:3.0.1", "downsampled_imagenet/32x32", "cifar10", "a:b.c", "a b:C", ":C", "a:"):
        assert not component.OWN.fullmatch(name), name


def test_one_of_ones_own_must_derive_from_the_base():
    assert ANIMALS.find(f"{__name__}:Bird", "config.pet.name") is Bird
    with pytest.raises(UserError, match=r"defines no .*\.Animal called 'Layer'; it defines: Animal, Bird\."):
        ANIMALS.find(f"{__name__}:Layer", "config.pet.name")
    with pytest.raises(UserError, match=r"defines no .* called 'Component'"):
        ANIMALS.find(f"{__name__}:Component", "config.pet.name")


@pytest.mark.parametrize("kind", component.REGISTRIES)
def test_every_built_in_component_is_sound(kind):
    """It derives from the base class of its kind, its sections have registered kinds, and its fields have
    types that a config can hold."""
    registry = component.REGISTRIES[kind]
    module, _, base = registry.base.partition(":")
    base = getattr(importlib.import_module(module), base)
    for cls in registry.classes().values():
        assert issubclass(cls, base) and cls.__doc__, cls
        assert set(cls.sections.values()) <= set(component.REGISTRIES), cls
        for field, default in cls.config_fields().items():
            assert isinstance(default, int | float | str), (cls, field)
            assert field not in ("name", *cls.sections), (cls, field)
