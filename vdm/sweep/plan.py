"""The trials of a study: its runs, and whether they have finished."""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from vdm import commandline, config as config_lib, workdir as workdir_lib
from vdm.config import flat
from vdm.errors import UserError, require
from vdm.reporting.metrics import lacks_final

Grid = Callable[[ConfigDict], Mapping[str, Mapping[str, Any]]]

# Fields that change the results of a finished run, and that a resumed run may change.
DONE_WITH = (
    "train.steps", "eval.passes", "eval.images", "eval.depths", "codec.timesteps", "codec.fineness",
    "codec.lanes", "codec.seed", "codec.images", "sample.num", "model.sampler.name", "model.sample_steps",
    "model.guidance",
)  # fmt: skip


POINTS = 10  # number of points of a curve, if no --config.train.eval_every is given


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a study: a variant with a seed.

    Attributes:
      folder: the workdir of the run.
      config: the complete config.
      command: the command that trains the run, or resumes its training.
    """

    variant: str
    folder: pathlib.Path
    config: ConfigDict
    command: list[str]

    @property
    def steps(self) -> int:
        """The number of training steps."""
        return self.config.train.steps


def make_trials(
    grid: Grid,
    file: str,
    args: Sequence[str],
    workdir: pathlib.Path,
    seeds: int,
    usual: Sequence[str] = (),
) -> list[Trial]:
    """The trials of every variant and seed, the first seed of all variants first.

    Args:
      grid: as in study.main.
      file: file of the base config.
      args: the arguments --config.FIELD=VALUE of all variants.
      usual: the study's arguments --config.FIELD=VALUE, for fields that neither `args` nor a variant sets.

    Raises:
      UserError: the config file does not exist, or the grid sets an unknown field, or a field that `args`
        sets, too.
    """
    load = functools.cache(config_lib.load)
    given, trials = commandline.fields_of(args), []
    configs: dict[str, ConfigDict] = {}
    require("seed" not in given, "--config.seed is set, but the study sets the seeds; give --seeds=NUMBER.")
    variants = grid(commandline.apply(load(file), [*usual, *args]))
    for seed, (variant, fields) in itertools.product(range(seeds), variants.items()):
        own_file = fields.get("config", file)
        fields = {name: value for name, value in fields.items() if name != "config"}
        require("seed" not in fields, f"variant {variant!r} sets the seed; give --seeds=NUMBER instead.")
        own = {commandline.component_field(name) for name in fields}
        twice = sorted(name for name in given if commandline.component_field(name) in own)
        require(
            not twice,
            f"--config.{' and --config.'.join(twice)} cannot be set: the study sets the field in "
            f"{variant!r}.",
        )
        # The config is built from the same arguments that the run's process gets.
        set_already = {*own, *map(field_of, args)}
        before = [arg for arg in usual if field_of(arg) not in set_already]
        all_args = [*before, *args, *(f"--config.{name}={value}" for name, value in fields.items())]
        if variant not in configs:
            try:
                configs[variant] = commandline.apply(load(own_file), all_args)
            except UserError as error:
                raise UserError(f"variant {variant!r}: {error}") from error
        config = configs[variant].copy_and_resolve_references()
        config.seed = seed
        for name, value in often(config, commandline.fields_of(all_args)).items():
            config.train[name] = value
            all_args.append(f"--config.train.{name}={value}")
        all_args.append(f"--config.seed={seed}")
        folder = workdir / f"{variant}-{seed}"
        trials.append(Trial(variant, folder, config, command(own_file, folder, all_args)))
    return trials


def field_of(arg: str) -> str:
    """The field of --config.FIELD=VALUE, as commandline.component_field."""
    (field,) = commandline.fields_of([arg])
    return commandline.component_field(field)


def check_file(variants: Mapping[str, Mapping[str, Any]], file: str) -> None:
    """Raises UserError if no variant of a study uses this config file."""
    own = {str(fields.get("config", file)) for fields in variants.values()}
    require(
        resolved(file) in map(resolved, own),
        f"--config is {file!r}, but this study uses its own configs: {', '.join(sorted(own))}; leave it "
        "out, and set fields by --config.FIELD=VALUE.",
    )


def often(config: ConfigDict, given: Collection[str]) -> dict[str, int]:
    """Fields of config.train that give a curve POINTS points or a few more; {} if eval_every is given.

    A call of the device ends where something is due, and each length of a call is compiled separately. So
    points divide the run evenly, if possible, and other actions fall on points, or evenly between them.
    """
    train = config.train
    if "train.eval_every" in given:
        return {}
    most = max(1, train.steps // POINTS)
    even = [every for every in range(most, most // 2, -1) if train.steps % every == 0]
    whole = [every for every in even if every % train.substeps == 0 or every < train.substeps]
    every = [*whole, *even, most][0]
    own = {"eval_every": every}
    for name in ("log_every", "checkpoint_every", "sample_every"):
        if f"train.{name}" not in given and train[name] and train[name] % every and every % train[name]:
            own[name] = every * max(1, round(min(train[name], train.steps / 2) / every))
    return own


def resolved(file: str) -> str:
    """FILE or FILE:ARGUMENT with the absolute path of the file."""
    path, colon, argument = file.partition(":")
    return f"{pathlib.Path(path).resolve()}{colon}{argument}"


def command(file: str, folder: pathlib.Path, args: Sequence[str]) -> list[str]:
    """The command of a run with a config file and --config.FIELD=VALUE."""
    return [sys.executable, "-m", "vdm.main", f"--config={file}", f"--workdir={folder}", *args]


def finished(trial: Trial) -> bool:
    """Whether the last step was saved, and the final estimate was made after it."""
    newest = workdir_lib.newest(trial.folder) or 0
    estimated = (trial.folder / "eval.json").exists() and not lacks_final(trial.folder, newest)
    return estimated and newest >= trial.steps


def check_configs(done: Sequence[Trial]) -> None:
    """Raises UserError if a finished run has another config than its trial, or was evaluated differently, so
    that it is not a result of this study."""
    for trial in done:
        if not (trial.folder / "config.json").exists():
            continue
        workdir_lib.check_config(trial.folder, trial.config)
        was, asked = flat(workdir_lib.read_config(trial.folder)), flat(trial.config)
        other = [name for name in DONE_WITH if was.get(name) != asked.get(name)]
        require(
            not other,
            f"{str(trial.folder)!r} was done with another {' and '.join(other)}; set "
            + ", ".join(f"--config.{name}={was.get(name)}" for name in other)
            + ", or give another --workdir.",
        )
