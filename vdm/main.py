"""Variational diffusion models: train, evaluate, sample, compress.

  python -m vdm.main --config=configs/digits.py --workdir=/tmp/digits
  python -m vdm.main --workdir=/tmp/digits --mode=eval --config.eval.estimators=all
  python -m vdm.main --workdir=/tmp/digits --mode=sample --config.sample.num=256
  python -m vdm.main --workdir=/tmp/digits --mode=compress --input=test --output=/tmp/test.vdm
  python -m vdm.main --workdir=/tmp/digits --mode=decompress --input=/tmp/test.vdm --output=/tmp/test.npz
  python -m vdm.main --workdir=/tmp/digits --mode=export --output=/tmp/model
  python -m vdm.main --workdir=/tmp/W --mode=import --input=/tmp/model
  python -m vdm.main --workdir=/tmp/again --rerun=/tmp/digits

The first command trains; repeated, it resumes an interrupted run. --config.FIELD=VALUE sets any field of the
config, as in --config.train.steps=5000, or selects a component, as in --config.model.schedule.name=cosine.
--config=FILE is a Python file with a function get_config; FILE:ARGUMENT calls get_config(ARGUMENT). Without
--config, the config is the one with which the workdir was started.
"""

from collections.abc import Sequence
import errno
import gc
import importlib
import logging as std_logging
import os
import pathlib
import re
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from vdm import commandline
from vdm.errors import Failed, Stopped, UserError, did_you_mean, flag_refused, one_line, one_of, require
from vdm.runtime import cache, hosts, stop

# The module and function of each mode.
MODES = {
    "train": "vdm.train:run",
    "eval": "vdm.evaluation.evaluate:run",
    "sample": "vdm.sample:run",
    "compress": "vdm.codec.modes:compress",
    "decompress": "vdm.codec.modes:decompress",
    "import": "vdm.exchange.importing:run",
    "export": "vdm.exchange.exporting:run",
}
# The modes that take --input and --output.
FILES = {"input": ("compress", "decompress", "import"), "output": ("compress", "decompress", "export")}
FOLDERS = ("decompress", "export")  # modes whose output may be a folder

# Errors of the machine: disk, quota, read-only file system, open files, memory, input and output.
MACHINE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "ENOMEM", "EIO", "EFBIG")
}

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, images.")
flags.DEFINE_string("mode", "train", f"What to do: {', '.join(MODES)}.")
flags.DEFINE_string(
    "input",
    None,
    "To compress: a folder of images, an .npz file, or 'test' for the test split of the run. To decompress: "
    "the compressed file. To import: the workdir of a run, a folder written by --mode=export, or a "
    "checkpoint ckpt-N.flax of google-research/vdm.",
)
flags.DEFINE_string(
    "output",
    None,
    "To compress: the file to write. To decompress: an .npz file, or a new folder for PNG files. To export: "
    "a new folder.",
)
flags.DEFINE_string(
    "rerun",
    None,
    "Workdir of a run: trains its config again in --workdir, and compares all numbers bit for bit.",
)
flags.DEFINE_string(
    "components",
    None,
    "Folder with the modules of components that the config names by import path, such as the folder "
    "components/ of a run from another machine. Their code is executed: read it first.",
)
flags.DEFINE_string(
    "cache", cache.FOLDER, "Folder for compiled programs and decoded images; '' disables the cache."
)
flags.DEFINE_bool("distributed", False, "Join other hosts. On a cluster that JAX recognises, this suffices.")
flags.DEFINE_string("coordinator", None, "With --distributed: host:port of process 0.")
flags.DEFINE_integer("processes", None, "With --distributed: the number of processes.")
flags.DEFINE_integer("process", None, "With --distributed: the index of this process, from 0.")


def main(argv: Sequence[str]) -> None:
    """Reads the flags and the config, joins the other hosts, and calls the mode."""
    given = commandline.split(argv)
    parse_flags([argv[0], *given.rest])
    one_of("--mode", FLAGS.mode, MODES)
    require(FLAGS.workdir, "--workdir is missing; give a folder for the run.")
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    files = read_files()
    config = read_config(given, workdir)
    check_workdir(workdir, FLAGS.mode)

    if FLAGS.distributed:
        hosts.join(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    cache.enable(FLAGS.cache)
    if FLAGS.rerun:
        from vdm import rerun

        rerun.run(config, workdir, pathlib.Path(FLAGS.rerun).expanduser())
        return
    module, function = MODES[FLAGS.mode].split(":")
    getattr(importlib.import_module(module), function)(config, workdir, *files)


def parse_flags(argv: Sequence[str]) -> None:
    """Parses all flags except those of the config.

    Raises:
      UserError: a flag is unknown, or has a bad value.
    """
    try:
        rest = FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name, names = f"--{error.flagname}", [f"--{flag}" for flag in [*FLAGS, "config"]]
        raise UserError(f"{name} is not a flag.{did_you_mean(name, names)} See --help.") from error
    except flags.Error as error:
        raise UserError(f"{flag_refused(error)} See --help.") from error
    require(not rest[1:], f"{' '.join(rest[1:])!r} is not a flag; see --help.")


def read_files() -> tuple[str, ...]:
    """--input and --output if the mode takes them; otherwise ().

    Raises:
      UserError: a file is missing, the mode does not take it, or the output cannot be written.
    """
    for name in ("input", "output"):
        value, taken = FLAGS[name].value, FLAGS.mode in FILES[name]
        require(
            taken or value is None,
            f"--{name} is {value!r}, which --mode={FLAGS.mode} does not take; leave it out.",
        )
        require(not taken or value, f"--{name} is missing; --mode={FLAGS.mode} needs it. See --help.")
    source = [FLAGS.input] if FLAGS.input else []
    if not FLAGS.output:
        return tuple(source)
    output = pathlib.Path(FLAGS.output).expanduser()
    folder = output.absolute().parent
    require(folder.is_dir(), f"--output is {FLAGS.output!r}, but the folder {str(folder)!r} does not exist.")
    require(
        os.access(folder, os.W_OK),
        f"--output is {FLAGS.output!r}, but {str(folder)!r} cannot be written; give another --output.",
    )
    require(
        output.absolute() not in [pathlib.Path(path).expanduser().absolute() for path in source],
        f"--input and --output are both {FLAGS.input!r}; give another --output.",
    )
    require(
        FLAGS.mode in FOLDERS or not output.is_dir(),
        f"--output is {FLAGS.output!r}, which is a folder; give the name of a file.",
    )
    return *source, str(output)


def read_config(given: commandline.Given, workdir: pathlib.Path) -> ConfigDict:
    """The complete config: that of --config, or else of the workdir or of the folder to import, with the
    fields set on the command line."""
    from vdm import config as config_lib, workdir as workdir_lib

    if FLAGS.components:
        workdir_lib.load_modules(pathlib.Path(FLAGS.components).expanduser())
    if FLAGS.rerun:
        require(
            not given.file and FLAGS.mode == "train",
            "--rerun takes the config of its run, and trains; leave out --config and --mode.",
        )
    if given.file:
        return commandline.apply(config_lib.load(given.file), given.args)
    require(
        not FLAGS.rerun or (pathlib.Path(FLAGS.rerun).expanduser() / "config.json").is_file(),
        f"--rerun is {FLAGS.rerun!r}, which holds no run; give the workdir of a run.",
    )
    folder = pathlib.Path(FLAGS.rerun or (FLAGS.input if FLAGS.mode == "import" else workdir)).expanduser()
    require(
        (folder / "config.json").is_file(),
        f"--config is missing, and {str(folder)!r} holds no run with a config; give a config file, such as "
        "--config=configs/digits.py.",
    )
    workdir_lib.require_modules(folder)
    return commandline.apply(workdir_lib.read_raw(folder), given.args, drop_unread=True)


def check_workdir(workdir: pathlib.Path, mode: str) -> None:
    """Makes the workdir if a run is to start there.

    Raises:
      UserError: the workdir cannot be written although the mode writes into it, or does not exist although
        the mode needs a trained run.
    """
    require(
        mode in ("train", "import") or workdir.is_dir(),
        f"--workdir is {str(workdir)!r}, which does not exist; --mode={mode} needs the workdir "
        "of a run: run --mode=train first.",
    )
    from vdm import workdir as workdir_lib

    if mode not in ("export", "compress", "decompress"):
        workdir_lib.make(workdir)


def show_help() -> None:
    """Prints the commands, the flags, and the components with their fields."""
    from vdm import config
    from vdm.reporting.text import print_to_pipe

    plain = (f"  {name} = {value!r}" for name, value in config.flat(config.default()).items())
    print_to_pipe(
        f"{__doc__}\n{FLAGS.main_module_help()}\n\ndocs/reference.md describes each of these fields.\n\n"
        f"Fields of components:\n{config.describe()}\n\nFields of every run:\n" + "\n".join(plain)
    )


def report(unraisable: Any) -> None:
    """Replaces sys.unraisablehook. Omits the exception that TensorStore raises after each failed write, since
    the caller of the write reports the failure."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def cli() -> int:
    """Runs main, and returns the exit code (stop.EXIT_CODES)."""
    # JAX makes millions of objects as it traces, and almost no garbage: garbage collection at Python's
    # usual rate would take a quarter of the startup time.
    gc.set_threshold(100_000)
    app.define_help_flags()
    # Hides the libraries' logs: the run reports a failure in one line.
    logging.set_verbosity(logging.FATAL)
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)  # Orbax's writers
    sys.unraisablehook = report
    try:
        if any(re.fullmatch("--?h(elp(=true)?)?", arg) for arg in sys.argv[1:]):
            show_help()
        else:
            main(sys.argv)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return stop.BAD_INPUT
    except Failed as failed:
        print(f"error: {one_line(failed)}", file=sys.stderr)
        return stop.FAILED
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        resumes = ", and training resumes from the newest intact checkpoint" if FLAGS.mode == "train" else ""
        print(
            f"error: {error.strerror}{where}. Remove the cause; then repeat the command{resumes}.",
            file=sys.stderr,
        )
        return stop.FAILED
    except Stopped as stopped:
        return stopped.code
    except (RuntimeError, ValueError) as error:
        if not FLAGS.distributed or not hosts.is_of_peer(error):
            raise
        print(hosts.LINE, file=sys.stderr, flush=True)
        os._exit(stop.QUEUE_AGAIN)  # does not wait for the other processes
    except KeyboardInterrupt:
        return stop.CTRL_C
    return stop.DONE


if __name__ == "__main__":
    many = any(re.fullmatch("--?distributed(=(true|t|1|yes|y))?", arg.lower()) for arg in sys.argv)
    ended = hosts.watched() if many else None
    if ended is None:
        stop.watch()
        ended = cli()
    stop.leave(ended, with_others=many)
