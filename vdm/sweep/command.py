"""The command line of a study: its flags, and bad input as one line."""

from collections.abc import Callable, Sequence
import contextlib
import re
import signal
import sys
from typing import NoReturn

from absl import flags, logging

from vdm.errors import Failed, Stopped, UserError, did_you_mean, flag_refused, one_line
from vdm.reporting.text import print_to_pipe
from vdm.runtime import stop


def main(
    doc: str | None,
    values: flags.FlagValues,
    run: Callable[[list[str]], int | None],
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Parses `args`, and calls run(arguments that are not flags); exits with the code that `run` returns, or
    with that of its exception (stop.EXIT_CODES).

    Args:
      doc: the study's docstring, for --help.
      values: the FlagValues that define the study's flags; they are set from `args`.
      args: sys.argv[1:] if None.
    """
    args = sys.argv[1:] if args is None else args
    if any(re.fullmatch("--?h(elp(=true)?)?", arg) for arg in args):
        print_to_pipe(f"{doc}\n{values.get_help()}")
        sys.exit(stop.DONE)
    logging.set_verbosity(logging.ERROR)  # hides the libraries' reports
    try:
        sys.exit(run(parse(values, args)))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(stop.BAD_INPUT)
    except Failed as failed:
        print(f"error: {one_line(failed)}", file=sys.stderr)
        sys.exit(stop.FAILED)
    except Stopped as stopped:
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        sys.exit(stop.CTRL_C)


def stoppable() -> contextlib.AbstractContextManager[None]:
    """Within the context, SIGTERM and SIGUSR1 raise Stopped, unless they are ignored."""

    def stopped(number, frame):
        raise Stopped(stop.QUEUE_AGAIN)

    return stop.handling(stopped, signal.SIGTERM, signal.SIGUSR1)


def parse(values: flags.FlagValues, args: Sequence[str]) -> list[str]:
    """Sets the flags; returns the arguments that are not flags.

    Raises:
      UserError: a flag is unknown, or has a bad value.
    """
    try:
        return values([sys.argv[0], *args])[1:]
    except flags.UnrecognizedFlagError as error:
        name = f"--{error.flagname}"
        hint = did_you_mean(name, [f"--{flag}" for flag in values])
        raise UserError(f"{name} is not a flag.{hint} See --help.") from error
    except flags.Error as error:
        raise UserError(f"{flag_refused(error)} See --help.") from error


def refuse_others(others: Sequence[str]) -> None:
    """Raises UserError if there are arguments that are not flags."""
    if others:
        raise UserError(f"{' '.join(others)!r} is not a flag; see --help.")
