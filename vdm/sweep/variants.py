"""Variants of a study from flags: a grid of fields, and named variants."""

from collections.abc import Mapping, Sequence
import itertools
import re
import shlex
from typing import Any

from vdm.errors import UserError, require

Fields = Mapping[str, Any]  # {dotted field: value}

_NAME = re.compile(r"[\w.=+-]+")


def of_grid(vary: Sequence[str]) -> dict[str, Fields]:
    """{name: fields} of every combination of --vary=FIELD=VALUE,VALUE…; {} without --vary.

    The name of a variant is its values, joined by +: the name of a component, or field=value.

    Raises:
      UserError: a text does not have this form, or two combinations have the same name.
    """
    axes: dict[str, list[str]] = {}
    for text in vary:
        field, equals, values = text.partition("=")
        field = field.strip().removeprefix("config.")
        require(
            equals and field and values.strip(),
            f"--vary is {text!r}; accepted: a field and its values, such as "
            "config.model.schedule.name=fixed_linear,cosine.",
        )
        require(field not in axes, f"--vary has {field!r} twice; give all its values once.")
        axes[field] = [value.strip() for value in _split(values)]
    found: dict[str, Fields] = {}
    for chosen in itertools.product(*axes.values()) if axes else ():
        fields = dict(zip(axes, chosen))
        name = "+".join(_label(field, value) for field, value in fields.items())
        require(name not in found, f"--vary makes two variants named {name!r}; name them by --variant.")
        found[name] = fields
    return found


def _split(values):
    """Splits at each comma that is not inside brackets."""
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _label(field, value):
    value = re.sub(r"[^\w.=+-]", "_", value.rpartition(":")[2])
    return value if field.endswith(".name") else f"{field.rpartition('.')[2]}={value}"


def named(texts: Sequence[str]) -> dict[str, Fields]:
    """{name: fields} of --variant='NAME: FIELD=VALUE FIELD=VALUE'.

    Raises:
      UserError: a text does not have this form, or a name occurs twice.
    """
    found: dict[str, Fields] = {}
    for text in texts:
        name, _, rest = text.partition(":")
        name = name.strip()
        try:
            pairs = [word.partition("=") for word in shlex.split(rest)]
        except ValueError as error:
            raise UserError(f"--variant is {text!r}: {error}.") from error
        require(
            _NAME.fullmatch(name) and all(equals and field for field, equals, _ in pairs),
            f"--variant is {text!r}; accepted: a name of letters, digits and _.=+-, and fields, such as "
            "'cubic: config.model.schedule.name=mine:Cubic config.train.steps=400'.",
        )
        require(name not in found, f"--variant has two variants named {name!r}; give them different names.")
        found[name] = {field.removeprefix("config."): value for field, _, value in pairs}
    return found


def merge(*of: Mapping[str, Fields]) -> dict[str, Fields]:
    """All variants together.

    Raises:
      UserError: two variants have the same name and different fields.
    """
    found: dict[str, Fields] = {}
    text = lambda fields: {field: str(value) for field, value in fields.items()}
    for variants in of:
        for name, fields in variants.items():
            require(
                name not in found or text(found[name]) == text(fields),
                f"variant {name!r} is {_shown(fields)}, but this study has a variant of that name: "
                f"{_shown(found.get(name, {}))}; give it another name.",
            )
            found.setdefault(name, fields)
    return found


def _shown(fields):
    return " ".join(f"config.{field}={value}" for field, value in fields.items()) or "the config itself"
