"""The command line of a study: flags of its own, and bad input as one line."""

from collections.abc import Callable, Sequence
import re
import sys
from typing import NoReturn

from absl import flags, logging

from vdm.errors import UserError, did_you_mean, one_line
from vdm.reporting.text import print_to_pipe
from vdm.runtime import stop


def main(
    doc: str | None,
    values: flags.FlagValues,
    run: Callable[[list[str]], int | None],
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Reads `args`, and calls run(those that are no flags); exits with the code that it returns, or with
    BAD_INPUT or CTRL_C.

    Args:
      doc: the study's docstring, for --help.
      values: where its flags are defined; they are set from `args`.
      args: sys.argv[1:] where None.
    """
    args = sys.argv[1:] if args is None else args
    if any(re.fullmatch("--?h(elp(=true)?)?", arg) for arg in args):
        print_to_pipe(f"{doc}\n{values.get_help()}")
        sys.exit(stop.DONE)
    logging.set_verbosity(logging.ERROR)  # the libraries' own reports are not the study's
    try:
        sys.exit(run(parse(values, args)))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(stop.BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(stop.CTRL_C)


def parse(values: flags.FlagValues, args: Sequence[str]) -> list[str]:
    """Sets the flags; returns the arguments that are no flags.

    Raises:
      UserError: one is unknown, or has a bad value.
    """
    try:
        return values([sys.argv[0], *args])[1:]
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, list(values))
        raise UserError(f"--{error.flagname} is no flag.{hint} See --help.") from error
    except flags.Error as error:
        raise UserError(f"{one_line(error).removesuffix('.')}. See --help.") from error


def refuse_others(others: Sequence[str]) -> None:
    """Raises UserError where there are arguments that are no flags."""
    if others:
        raise UserError(f"{' '.join(others)!r} is no flag; see --help.")
