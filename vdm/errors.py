"""Exceptions for the ways in which a process can fail: bad input, a failing machine, a signal.

For each, `main` prints one line without a traceback.
"""

from collections.abc import Iterable
import difflib
import re
from typing import Any


class UserError(Exception):
    """Bad input: the message states the value, the accepted values and the remedy. Exit code 2."""


class Failed(Exception):
    """The machine failed, for example by a full disk. Once the cause is removed, the same command resumes.
    Exit code 1."""


class Stopped(Exception):
    """A signal asked the process to stop, and its state is saved. `code` is the exit code."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def one_of(field: str, value: Any, accepted: Iterable[Any]) -> None:
    """Raises UserError unless `value` is among `accepted`; suggests the nearest name."""
    accepted = list(accepted)
    if value not in accepted:
        names = ", ".join(map(repr, accepted))
        raise UserError(f"{field} is {value!r}; accepted: {names}.{did_you_mean(str(value), accepted)}")


def did_you_mean(name: str, names: Iterable[Any]) -> str:
    """ " Did you mean 'x'?" with the nearest of `names`; "" if none is near."""
    near = difflib.get_close_matches(name, [str(one) for one in names], n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# How Python and absl refuse a flag's value, and what is accepted instead.
_ACCEPTED = {
    "invalid literal for int": "a whole number",
    "could not convert string to float": "a number",
    "Non-boolean argument": "true or false",
}


def flag_refused(error: Exception) -> str:
    """absl's error about a flag, as a sentence with the value and what is accepted."""
    text = one_line(error).removesuffix(".")
    for refusal, accepted in _ACCEPTED.items():
        if match := re.fullmatch(rf"flag --([^=]+)=(.*): \W*{refusal}.*", text):
            name = match[1] if match[1].startswith("config.") else f"--{match[1]}"
            return f"{name} is {match[2]!r}; accepted: {accepted}."
    return f"{text}."


def require(condition: Any, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def one_line(error: object) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split())
