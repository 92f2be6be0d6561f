"""The command line: --config=FILE and --config.FIELD=VALUE become one complete config."""

from collections.abc import Mapping, Sequence
import re
import sys
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from vdm.errors import UserError, flag_refused

_FIELD = re.compile(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_FILE = re.compile(r"--?config(?:=(.*))?", re.DOTALL)


class Given(NamedTuple):
    """The arguments of a command line.

    Attributes:
      file: the value of --config; "" if the flag is missing.
      args: the arguments --config.FIELD=VALUE, unchanged.
      rest: all other arguments.
    """

    file: str
    args: list[str]
    rest: list[str]


def split(argv: Sequence[str]) -> Given:
    """Separates the arguments of the config from all others; argv[0] is the program."""
    file, args, rest = "", [], []
    left = list(argv[1:])
    while left:
        arg = left.pop(0)
        takes_next = "=" not in arg and left and not left[0].startswith("--")
        if match := _FILE.fullmatch(arg):
            file = left.pop(0) if takes_next else match[1] or ""
        elif _FIELD.fullmatch(arg):
            args.append(f"{arg}={left.pop(0)}" if takes_next else arg)
        else:
            rest.append(arg)
    return Given(file, args, rest)


def fields_of(args: Sequence[str]) -> dict[str, str]:
    """{dotted field: value as text} of arguments --config.FIELD=VALUE."""
    found = {}
    for arg in args:
        match = _FIELD.fullmatch(arg)
        assert match is not None, arg
        found[match[1]] = match[2] if match[2] is not None else "true"
    return found


def component_field(field: str) -> str:
    """The field without the ending ".name": model.net.name and model.net select the same component."""
    return field.removesuffix(".name")


def apply(raw: Mapping[str, Any], args: Sequence[str], drop_unread: bool = False) -> ConfigDict:
    """The complete, locked config from the fields of a config file and the arguments --config.FIELD=VALUE.

    Raises:
      UserError: config.complete refuses the config, or an argument sets an unknown field or has a value of
        another type, or a component is named by two arguments.
    """
    from vdm import config as config_lib  # imported late, as it imports JAX: bad flags are refused at once

    set_fields = fields_of(args)
    for field in set_fields:
        section_of = component_field(field)
        if section_of != field and section_of in set_fields:
            raise UserError(
                f"--config.{section_of} and --config.{field} are both given; leave one of them out."
            )
    config = config_lib.complete(raw, set_fields, drop_unread)
    for field in set_fields:
        section: Any = config
        path: list[str] = []
        for part in field.split("."):
            if not isinstance(section, ConfigDict) or part not in section:
                nearest = section if isinstance(section, ConfigDict) else config
                raise config_lib.unread(nearest, ".".join(path), part)
            section, path = section[part], [*path, part]
        if isinstance(section, ConfigDict):
            by_name = "name" in section and path[0] in config_lib.COMPONENTS  # --config.model.net=mlp
            if not by_name:
                raise UserError(f"config.{field} is a section; set one of its fields: {', '.join(section)}.")
            args = [arg for arg in args if field not in fields_of([arg])]
    values, line = flags.FlagValues(), [sys.argv[0], *args]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=line)
    try:
        values(line)
    except flags.Error as error:
        raise UserError(flag_refused(error)) from error
    return values.config
