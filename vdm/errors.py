"""Errors that a user can mend: one line with the value, what is accepted, and the fix."""

from collections.abc import Iterable
import difflib
from typing import Any


class UserError(Exception):
    """Bad input. `main` prints it as one line, without a traceback, and exits with 2."""


def one_of(field: str, value: Any, accepted: Iterable[Any]) -> None:
    """Raises UserError unless `value` is among `accepted`; suggests the nearest name."""
    accepted = list(accepted)
    if value not in accepted:
        names = ", ".join(map(repr, accepted))
        raise UserError(f"{field} is {value!r}; accepted: {names}.{did_you_mean(str(value), accepted)}")


def did_you_mean(name: str, names: Iterable[Any]) -> str:
    """ " Did you mean 'x'?" with the nearest of `names`; "" where none is near."""
    near = difflib.get_close_matches(name, [str(one) for one in names], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def require(condition: Any, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def one_line(error: object) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split())
