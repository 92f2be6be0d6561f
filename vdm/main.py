"""Variational diffusion models: train, evaluate, sample.

  python -m vdm.main --config=configs/digits.py --workdir=/tmp/digits
  python -m vdm.main --workdir=/tmp/digits --mode=eval --config.eval.estimators=all
  python -m vdm.main --workdir=/tmp/digits --mode=sample --config.sample.num=256

The first command trains; given again, it goes on where it was stopped. Any field of the
config can be set, as in --config.train.steps=5000; configs/default.py says what each does.
Without --config, the config is the one that the workdir was started with.
"""

import difflib
import gc
import importlib
import os
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vdm import config as fields_lib
from vdm.runtime import cache
from vdm.errors import UserError, one_line, one_of, require

MODES = {"train": "vdm.train", "eval": "vdm.estimators", "sample": "vdm.sample"}

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "A config file, such as configs/digits.py.")
flags.DEFINE_string("workdir", None, "Folder of the run: its checkpoints, metrics, pictures.")
flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
flags.DEFINE_string(
    "cache", cache.FOLDER, "Folder where compiled programs and decoded images are kept; '' for none."
)
flags.DEFINE_bool(
    "distributed", False, "Join other hosts. On a cluster that JAX knows, this is enough."
)
flags.DEFINE_string("coordinator", None, "With --distributed: host:port of process 0.")
flags.DEFINE_integer("processes", None, "With --distributed: how many processes there are.")
flags.DEFINE_integer("process", None, "With --distributed: which of them this is, from 0 on.")


def main(argv):
    """Checks the flags, joins the other hosts, and calls the mode."""
    require(not argv[1:], f"{' '.join(argv[1:])!r} is no flag; see --help.")
    one_of("--mode", FLAGS.mode, MODES)
    require(FLAGS.workdir, "--workdir is missing; give a folder for the run.")
    require(
        FLAGS.config is not None,
        f"--config is missing, and {FLAGS.workdir!r} holds no run whose config could be taken; "
        "give a file, such as --config=configs/digits.py.",
    )
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    check_workdir(workdir, FLAGS.mode)

    import jax  # only now: bad flags are told at once

    if FLAGS.distributed:
        jax.distributed.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    cache.enable(FLAGS.cache)
    importlib.import_module(MODES[FLAGS.mode]).run(FLAGS.config, workdir)


def check_workdir(workdir, mode):
    """Makes the workdir where a run is to start there.

    Raises:
      UserError: it cannot be written; or, unless a run is to start, it is not there.
    """
    require(
        mode == "train" or workdir.is_dir(),
        f"--workdir is {str(workdir)!r}, which does not exist; --mode={mode} needs the workdir "
        "of a run: run --mode=train first.",
    )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir is {str(workdir)!r}, which cannot be written ({error.strerror}); "
            "give a folder that can."
        ) from error


def parse(argv):
    """Parses the flags.

    Raises:
      UserError: what ml_collections and absl say of a bad flag, in one line with the fix.
    """
    argv = with_config_of_workdir(argv)
    try:
        rest = FLAGS(argv)
        # A config file that cannot be read is told of only where something of it is asked for.
        getattr(FLAGS.config, "seed", None)
        return rest
    except flags.UnrecognizedFlagError as error:
        if str(error.flagname).startswith("config."):
            raise UserError(
                f"--{error.flagname} is set, but no --config; give --config=FILE before it."
            ) from error
        raise UserError(f"--{error.flagname} is no flag. {nearest(error.flagname, FLAGS)}") from error
    except flags.Error as error:
        raise UserError(f"{one_line(error)}. See configs/default.py for what is accepted.") from error
    except (AttributeError, KeyError) as error:
        raise UserError(unknown_field(argv, error)) from error
    except OSError as error:
        path = value_of("config", argv)
        raise UserError(
            f"--config is {path!r}, which cannot be read as a config file; accepted: a Python "
            f"file with get_config(), such as configs/digits.py. {nearest_file(path)}"
        ) from error


def with_config_of_workdir(argv):
    """argv with the config of the workdir's run put in where no --config is given."""
    path = pathlib.Path(value_of("workdir", argv)).expanduser() / "config.json"
    if value_of("config", argv) or not path.is_file():
        return argv
    return [argv[0], f"--config={pathlib.Path(__file__).with_name('started.py')}:{path}", *argv[1:]]


def value_of(name, argv):
    """The value of --name=value or --name value; "" where it is not given."""
    found = re.search(rf"^--?{name}[=\n](.*)$", "\n".join(argv), re.MULTILINE)
    return found[1] if found else ""


def unknown_field(argv, error):
    """Says which --config.field is none, and which is near."""
    try:
        config = load_config(value_of("config", argv))
    except Exception:
        return one_line(error)
    fields = fields_lib.flat(config)
    for arg in argv:
        match = re.match(r"--?config\.([^=]+)", arg)
        if match and match[1] not in fields:
            return f"--config.{match[1]} is no field of the config. {nearest(match[1], fields)}"
    return one_line(error)


def load_config(path):
    """get_config() of a config file."""
    import importlib.util

    path, _, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("given_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


def nearest(name, names):
    """Suggests the name that is near, or says where all are."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else "See --help and configs/default.py."


def nearest_file(path):
    """Suggests a file of configs/ that is near."""
    files = [str(file) for file in sorted(pathlib.Path("configs").glob("*.py"))]
    near = difflib.get_close_matches(path, files, n=1, cutoff=0.3)
    return f"Did you mean {near[0]!r}?" if near else ""


def cli():
    """Runs main; bad input ends in one line and exit code 2, Ctrl-C in exit code 130."""
    # JAX makes millions of objects as it traces and next to no garbage among them: to look for it
    # as often as Python does by itself takes a quarter of a start.
    gc.set_threshold(100_000)
    app.define_help_flags()
    logging.set_verbosity(logging.ERROR)  # the libraries' own reports are not the run's
    if any(re.fullmatch("--?h(elp(=true)?)?", arg) for arg in sys.argv[1:]):
        print(__doc__ + "\n" + FLAGS.main_module_help())
        return 0
    try:
        main(parse(sys.argv))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(cli())
