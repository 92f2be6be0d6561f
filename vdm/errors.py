"""Errors that a user can mend: one line with the value, what is accepted, and the fix."""

import difflib


class UserError(Exception):
    """Bad input. `main` prints it as one line, without a traceback, and exits with 2."""


def one_of(field, value, accepted):
    """Raises UserError unless `value` is among `accepted`; suggests the nearest name."""
    if value in accepted:
        return
    near = difflib.get_close_matches(str(value), [str(name) for name in accepted], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(repr(name) for name in accepted)
    raise UserError(f"{field} is {value!r}; accepted: {names}.{hint}")


def require(condition, message):
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def one_line(error):
    """An exception's text without line breaks."""
    return " ".join(str(error).split())
