"""Components: what a config names, and how your own takes the place of a built-in one.

A component is a class: a frozen dataclass, or a Flax module. Its fields with a default are its config
fields, so `config.model.schedule.gamma_min` is the `gamma_min` of the schedule that
`config.model.schedule.name` names. Its fields without a default are given by the code that builds it.
A name is that of a built-in component, or the import path "module:Class" of your own.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import pathlib
import re
import traceback
from types import ModuleType
from typing import Any, ClassVar

from vdm import registries
from vdm.errors import Failed, Stopped, UserError, did_you_mean, one_line, require

# The import path of a component of your own, and no TFDS version, as in mnist:3.0.1.
OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Component:
    """What every component has in addition to its fields.

    Attributes:
      sections: those of the config below its own, each with the kind of its component (vdm/registries.py).
    """

    sections: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def config_fields(cls) -> dict[str, Any]:
        """Each config field and its default."""
        return fields(cls)

    def check(self) -> None:
        """Raises Refused where the value of a field is not accepted."""


def fields(cls: Any) -> dict[str, Any]:
    """The dataclass fields of `cls` that have a default, except for its sections and Flax's own."""
    others = ("parent", "name", *cls.sections)
    return {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING and field.name not in others
    }


class Refused(Exception):
    """A component does not accept the value of a field."""

    def __init__(self, field: str, accepted: str):
        super().__init__(field, accepted)
        self.field, self.accepted = field, accepted


def accept(field: str, holds: Any, accepted: str) -> None:
    """Raises Refused unless `holds`; `accepted` says in words what the field may be."""
    if not holds:
        raise Refused(field, accepted)


def choose(field: str, value: Any, accepted: Any) -> None:
    """Raises Refused unless `value` is one of `accepted`; suggests the nearest."""
    if value not in accepted:
        names = ", ".join(map(repr, accepted))
        raise Refused(field, f"{names}.{did_you_mean(str(value), map(str, accepted))}".removesuffix("."))


@dataclasses.dataclass(frozen=True)
class Registry:
    """The components of one kind.

    Attributes:
      base: import path of the class that each derives from.
      builtin: name to import path.
      otherwise: that of every other name that is no import path; None where there is none.
    """

    base: str
    builtin: Mapping[str, str]
    otherwise: str | None = None

    def find(self, name: str, field: str) -> Any:
        """The class that `name` names; its module is imported, and no other.

        Args:
          field: where the name stands, such as "config.model.schedule.name".

        Raises:
          UserError: there is none.
        """
        if name in self.builtin:
            return _class(self.builtin[name])
        if OWN.fullmatch(name):
            return self._import(name, field)
        if self.otherwise is not None:
            return _class(self.otherwise)
        names = ", ".join(map(repr, self.builtin))
        raise UserError(
            f"{field} is {name!r}; accepted: {names}, or the import path of your own, 'module:Class'."
            + did_you_mean(name, self.builtin)
        )

    def classes(self) -> dict[str, Any]:
        """Every built-in class by its name; "any other name" where there is one for those."""
        found = {name: _class(path) for name, path in self.builtin.items()}
        return found | ({} if self.otherwise is None else {"any other name": _class(self.otherwise)})

    def _import(self, name: str, field: str) -> Any:
        module, _, attribute = name.partition(":")
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if module != missing and not module.startswith(f"{missing}."):
                raise UserError(
                    f"{field} is {name!r}, which needs the module {missing!r}: {error}."
                ) from error
            raise UserError(
                f"{field} is {name!r}, but there is no module {missing!r}; accepted: 'module:Class' of a "
                "module in the current folder, or of an installed one."
            ) from error
        except Exception as error:
            # The module may hold other classes, and one of these may be what is wrong.
            frames = reversed(traceback.extract_tb(error.__traceback__))
            last = module.rpartition(".")[2]
            at = next(
                (f" (line {one.lineno})" for one in frames if pathlib.Path(one.filename).stem == last), ""
            )
            raise UserError(
                f"{field} is {name!r}, but {module!r} cannot be imported: {type(error).__name__}: {error}{at}"
            ) from error
        base = _class(self.base)
        own = [
            key
            for key, value in vars(found).items()
            # Not those that it imports, as this file alone is kept with the workdir.
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module
        ]
        require(
            attribute in own,
            f"{field} is {name!r}, but {module!r} defines no {self.base.replace(':', '.')} "
            f"called {attribute!r}; it defines: {', '.join(own) or 'none'}.{did_you_mean(attribute, own)}",
        )
        cls = getattr(found, attribute)
        fields = [
            name for name, kind in vars(cls).get("__annotations__", {}).items() if "ClassVar" not in str(kind)
        ]
        require(
            not fields or "__dataclass_fields__" in vars(cls),
            f"{field} is {name!r}, whose field {fields[0] if fields else ''!r} is none of the config, as the "
            "class is no dataclass; write @dataclasses.dataclass(frozen=True) above it.",
        )
        return cls


def _class(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


REGISTRIES = {
    kind: Registry(base, {name: path for name, path in names.items() if name != "*"}, names.get("*"))
    for kind, (base, names) in registries.KINDS.items()
}


def load_file(path: pathlib.Path | str, name: str) -> ModuleType:
    """The Python file as a module of this name; it raises what the file raises."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(kind: str, name: str, field: str) -> Any:
    """The class of the component of a kind that `name` names (Registry.find)."""
    return REGISTRIES[kind].find(name, field)


def build(kind: str, section: Any, path: str, **given: Any) -> Any:
    """The component that a section of the config describes, checked.

    Args:
      kind: of registries.KINDS.
      section: its name and all its config fields (config.complete).
      path: of the section, such as "config.model.schedule".
      **given: its fields without a default.

    Raises:
      UserError: it is unknown, or does not accept the value of a field.
    """
    cls = find(kind, section.name, f"{path}.name")
    made = cls(**{field: section[field] for field in cls.config_fields()}, **given)
    check(made, section, path)
    return made


def check(made: Component, section: Any, path: str) -> None:
    """Raises UserError where a component does not accept the value of a field of its section."""
    try:
        made.check()
    except Refused as refused:
        raise UserError(
            f"{path}.{refused.field} is {section[refused.field]!r}; accepted: {_ended(refused.accepted)}"
        ) from None


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(("?", ".")) else f"{sentence}."


def is_own(part: Any) -> bool:
    """Whether a component comes from outside of this package; those inside are tested."""
    return type(part).__module__.partition(".")[0] != __name__.partition(".")[0]


@contextlib.contextmanager
def blamed(part: Any, name: str) -> Iterator[None]:
    """An error that a component of your own raises, or one of its fields, becomes a line with its name, and
    its file and line.

    Raises:
      UserError: in place of the error.
    """
    try:
        yield
    except (UserError, Refused, Failed, Stopped, OSError):
        raise
    except Exception as error:
        own = {inspect.getfile(type(part)): name} if is_own(part) else {}
        for field in dataclasses.fields(part):
            value = getattr(part, field.name, None)
            if isinstance(value, Component) and is_own(value):
                own[inspect.getfile(type(value))] = f"{field.name} {type(value).__name__}"
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if frame.filename in own), None)
        if place is None and not is_own(part):
            raise
        if type(error) is NotImplementedError and not str(error):
            raise UserError(f"{name} does not define `{frames[-1].name}`.") from error
        at = f" ({place.filename}:{place.lineno})" if place else ""
        text = one_line(next((line for line in str(error).splitlines() if line.strip()), ""))
        said = own[place.filename] if place else name
        raise UserError(f"{said} fails with {type(error).__name__}: {text}{at}") from error
