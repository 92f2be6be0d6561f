"""Components: the classes that a config names, built in or custom.

A component is a frozen dataclass or a Flax module. Its fields with a default are its config fields: the field
`gamma_min` of the schedule that `config.model.schedule.name` selects is `config.model.schedule.gamma_min`.
The code that builds the component passes its fields without a default. A name is that of a built-in
component, or the import path "module:Class" of a custom one.
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

# The import path of a custom component; a TFDS name with a version, such as mnist:3.0.1, does not match.
OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Component:
    """The base class of every component.

    Attributes:
      sections: {name of a subsection of its config: kind of the component there (vdm/registries.py)}.
    """

    sections: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def config_fields(cls) -> dict[str, Any]:
        """{config field: default}."""
        return fields(cls)

    def check(self) -> None:
        """Raises Refused if a field has a value that is not accepted."""


def fields(cls: Any) -> dict[str, Any]:
    """The dataclass fields of `cls` that have a default, except its sections and Flax's own fields."""
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
    """Raises Refused unless `holds`; `accepted` states in words which values the field accepts."""
    if not holds:
        raise Refused(field, accepted)


def choose(field: str, value: Any, accepted: Any) -> None:
    """Raises Refused unless `value` is one of `accepted`; suggests the nearest name."""
    if value not in accepted:
        names = ", ".join(map(repr, accepted))
        raise Refused(field, f"{names}.{did_you_mean(str(value), map(str, accepted))}".removesuffix("."))


@dataclasses.dataclass(frozen=True)
class Registry:
    """The components of one kind.

    Attributes:
      base: import path of the base class.
      builtin: {name: import path}.
      otherwise: import path of the class for every other name that is not an import path; None if such names
        are not accepted.
    """

    base: str
    builtin: Mapping[str, str]
    otherwise: str | None = None

    def find(self, name: str, field: str) -> Any:
        """The class called `name`. Only its module is imported.

        Args:
          field: the config field whose value is the name, such as "config.model.schedule.name".

        Raises:
          UserError: the class does not exist.
        """
        if name in self.builtin:
            return _class(self.builtin[name])
        if OWN.fullmatch(name):
            return self._import(name, field)
        if self.otherwise is not None:
            return _class(self.otherwise)
        names = ", ".join(map(repr, self.builtin))
        raise UserError(
            f"{field} is {name!r}; accepted: {names}, or the import path of a custom component, "
            "'module:Class'." + did_you_mean(name, self.builtin)
        )

    def classes(self) -> dict[str, Any]:
        """{name: class} of the built-in classes; "any other name" stands for `otherwise`."""
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
                "module in the current folder, or of an installed module."
            ) from error
        except Exception as error:
            # The module may hold other classes, and one of these may cause the error.
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
            # Without imported classes, as the workdir keeps a copy of this file only.
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
            f"{field} is {name!r}, whose field {fields[0] if fields else ''!r} is not a config field, as the "
            "class is not a dataclass; write @dataclasses.dataclass(frozen=True) above it.",
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
    """Loads a Python file as a module called `name`; raises any exception of the file."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find(kind: str, name: str, field: str) -> Any:
    """The class of the component `name` of a kind (Registry.find)."""
    return REGISTRIES[kind].find(name, field)


def build(kind: str, section: Any, path: str, **given: Any) -> Any:
    """Builds and checks the component that a section of the config describes.

    Args:
      kind: one of registries.KINDS.
      section: the component's name and all its config fields (config.complete).
      path: the section's path, such as "config.model.schedule".
      **given: the component's fields without a default.

    Raises:
      UserError: the component is unknown, or does not accept the value of a field.
    """
    cls = find(kind, section.name, f"{path}.name")
    made = cls(**{field: section[field] for field in cls.config_fields()}, **given)
    check(made, section, path)
    return made


def check(made: Component, section: Any, path: str) -> None:
    """Raises UserError if a component does not accept the value of a field of its section."""
    try:
        made.check()
    except Refused as refused:
        raise UserError(
            f"{path}.{refused.field} is {section[refused.field]!r}; accepted: {_ended(refused.accepted)}"
        ) from None


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith(("?", ".")) else f"{sentence}."


def is_own(part: Any) -> bool:
    """Whether a component is custom: defined outside this package."""
    return type(part).__module__.partition(".")[0] != __name__.partition(".")[0]


@contextlib.contextmanager
def blamed(part: Any, name: str) -> Iterator[None]:
    """Replaces an error in a custom component, or in a custom component among the fields of `part`, by one
    line with its name, file and line.

    Raises:
      UserError: instead of the error.
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
