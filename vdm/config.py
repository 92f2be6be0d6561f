"""The config: the fields of a run, from a config file and the command line.

A config file's get_config() starts from `default()` and changes some fields. A section that describes a
component contains the component's `name` and only fields of that component. `complete` then adds the fields
that were not set, with the component's defaults, and refuses a field that the component does not read.
"""

from collections.abc import Iterator, Mapping
import difflib
import pathlib
import sys
from typing import Any

from ml_collections import ConfigDict

from vdm.component import OWN, REGISTRIES, find, load_file
from vdm.errors import UserError, did_you_mean, one_line, require

# The sections that describe a component, and the kind of the component.
COMPONENTS = {"data": "source", "model": "model", "objective": "objective", "optimizer": "optimizer"}
# The fields that name several components, separated by commas, and their kind.
LISTS = {"eval.estimators": "estimator", "loggers": "logger"}


def default() -> ConfigDict:
    """The fields that every run has, and an empty section for each component.

    docs/reference.md shows the comment of each field.
    """
    c = ConfigDict()
    c.seed = 0  # seed of the parameters, of the order of the data, and of all noise
    c.parallel = "pmap"  # how the step is mapped over devices: pmap, shard_map, fsdp
    c.loggers = ""  # loggers besides TensorBoard: wandb, mlflow, aim, separated by commas

    c.data = ConfigDict()
    c.model = ConfigDict({"schedule": ConfigDict(), "net": ConfigDict()})
    c.objective = ConfigDict()
    c.optimizer = ConfigDict()

    c.train = ConfigDict()
    c.train.steps = 2_000  # training steps of the run
    c.train.batch_size = 128  # images in the global batch of a step, over all devices of all hosts
    c.train.accumulate = 1  # number of parts in which a device processes its share of the batch
    c.train.substeps = 20  # training steps in one call of the devices (1 for a unet on a CPU)
    c.train.ema = 0.999  # largest decay of the moving average of the parameters, which is evaluated
    c.train.log_every = 100  # steps between training lines in metrics.jsonl; 0: only after the last step
    c.train.eval_every = 500  # steps between evaluations of the test split; 0: only after the last step
    c.train.checkpoint_every = 500  # steps between checkpoints; 0: only after the last step
    c.train.sample_every = 1_000  # steps between samples; 0: only after the last step
    c.train.keep = 2  # number of newest checkpoints to keep, in addition to the best

    c.eval = ConfigDict()
    c.eval.batch_size = 120  # images in one call of the devices, over all devices of all hosts
    c.eval.estimators = "elbo"  # for --mode=eval: elbo, depth, chain, ode, codec, separated by commas; or all
    c.eval.passes = 20  # passes over the images with --mode=eval and at the end of training
    c.eval.passes_in_training = 10  # passes in evaluations during training, with the same draws each time
    c.eval.checkpoint = "newest"  # for --mode=eval, sample, compress, export: newest, or best (bits/dim)
    c.eval.images = 0  # number of test images to evaluate; 0: all
    c.eval.target_se = 0.0  # Monte-Carlo error of the ELBO, bits/dim, that replaces `passes`; 0: disabled
    c.eval.max_passes = 1_000  # largest number of passes for `target_se`
    c.eval.depths = "1,2,5,10,20,50,100,200,500,1000"  # the values of T for the estimator depth

    c.eval.chain = ConfigDict()  # for the estimator chain: importance weights on a chain
    c.eval.chain.timesteps = 50  # T, for a diffusion model; other models have chains of fixed length
    c.eval.chain.samples = 16  # K, the number of paths per image

    c.eval.ode = ConfigDict()  # for the estimator ode: the likelihood of the probability-flow ODE
    c.eval.ode.tolerance = 1e-5  # relative and absolute error of z by which the solver chooses its steps
    c.eval.ode.nodes = 128  # number of intervals in γ for the integral of the divergence; a multiple of 4
    c.eval.ode.samples = 4  # K of the importance-weighted bound with the exact divergence
    c.eval.ode.images = 48  # number of images with the exact divergence, which needs a Jacobian per node

    c.codec = ConfigDict()  # for --mode=compress and decompress, and for the estimator codec
    c.codec.timesteps = 200  # T, for a diffusion model; other models have chains of fixed length
    c.codec.lanes = 0  # number of parallel stacks, each with its own initial bits; 0: one per 512 images
    c.codec.fineness = 16.0  # number of parts into which a latent's smallest standard deviation is divided
    c.codec.anywhere = False  # whether to attempt to decode a file from another machine or version
    c.codec.seed = 0  # seed of the random bits among the initial bits
    c.codec.images = 360  # number of test images for the estimator codec; 0: all

    c.sample = ConfigDict()  # for --mode=sample, and for samples during training
    c.sample.num = 64  # number of samples
    c.sample.batch_size = 64  # samples in one call of the devices, over all devices of all hosts
    return c


def complete(
    given: Mapping[str, Any], names: Mapping[str, str] | None = None, drop_unread: bool = False
) -> ConfigDict:
    """A config with every field that its run reads, and no other.

    Args:
      given: the fields that a config file sets; nested.
      names: {field: component}, such as {"model.schedule.name": "cosine"} or {"model.schedule": "cosine"}, to
        replace those in `given`; other fields are ignored. A section whose component changes loses the
        fields that the new component does not read.
      drop_unread: whether to drop every field that is not read, as for a config of an older version.

    Raises:
      UserError: a component is unknown, no component reads a field, or a value has another type.
    """
    config, names = default(), names or {}
    for name, kind in COMPONENTS.items():
        config[name] = _section(kind, _section_of(given, name, name), name, names, drop_unread)
    plain = {name: value for name, value in given.items() if name not in COMPONENTS}
    before = _section_of(plain, "eval", "eval").get("estimators", config.eval.estimators)
    for name in own_estimators(names.get("eval.estimators", before)):
        require(
            estimator_section(name) not in config.eval,
            f"config.eval.estimators has {name!r}, whose fields would be in "
            f"config.eval.{estimator_section(name)}, which has other fields; give its class another name.",
        )
        cls = find("estimator", name, "config.eval.estimators")
        config.eval[estimator_section(name)] = ConfigDict(cls.config_fields())
    _update(config, plain, "", drop_unread)
    return config


def own_estimators(estimators: Any) -> list[str]:
    """The import paths among names that are separated by commas, as in config.eval.estimators."""
    return [name for name in map(str.strip, str(estimators).split(",")) if OWN.fullmatch(name)]


def estimator_section(name: str) -> str:
    """The section of config.eval with the fields of a custom estimator: its class name in lower case."""
    return name.partition(":")[2].lower()


def _section(
    kind: str, given: Mapping[str, Any], path: str, names: Mapping[str, str], drop: bool
) -> ConfigDict:
    before = given.get("name", next(iter(REGISTRIES[kind].builtin)))
    require(isinstance(before, str), f"config.{path}.name is {before!r}; accepted: the name of a component.")
    name = names.get(f"{path}.name", names.get(path, before))
    drop = drop or name != before
    cls = find(kind, name, f"config.{path}.name")
    section = ConfigDict({"name": name, **cls.config_fields()})
    for part, below in cls.sections.items():
        section[part] = _section(
            below, _section_of(given, part, f"{path}.{part}"), f"{path}.{part}", names, drop
        )
    plain = {field: value for field, value in given.items() if field not in ("name", *cls.sections)}
    # Ignores empty sections: default() has them, also for a component without fields.
    _update(
        section, {k: v for k, v in plain.items() if not isinstance(v, Mapping | ConfigDict) or v}, path, drop
    )
    return section


def _section_of(given: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    found = given.get(name, {})
    if isinstance(found, str):  # only the name
        return {"name": found}
    require(
        isinstance(found, Mapping | ConfigDict), f"config.{path} is {found!r}; accepted: a section of fields."
    )
    return found


def _update(config: ConfigDict, given: Mapping[str, Any], path: str, drop: bool) -> None:
    for field, value in given.items():
        where = f"{path}.{field}" if path else field
        if field not in config:
            if not drop:
                raise unread(config, path, field)
        elif isinstance(value, Mapping | ConfigDict) and isinstance(config[field], ConfigDict):
            _update(config[field], value, where, drop)
        else:
            kind = "section" if isinstance(config[field], ConfigDict) else type(config[field]).__name__
            refused = UserError(f"config.{where} is {value!r}; accepted: a value of type {kind}.")
            # A ConfigDict accepts None as a value of any type.
            none = value is None and config[field] is not None
            if none or kind == "section" or isinstance(value, Mapping | ConfigDict):
                raise refused
            try:
                config[field] = value
            except TypeError as error:
                raise refused from error


def unread(section: Any, path: str, field: str) -> UserError:
    """The error for a field that the section at `path` of a config does not have."""
    where = f"config.{path}.{field}" if path else f"config.{field}"
    fields = sorted(section, key=lambda name: (name != "name", name))
    reader = f"{section['name']!r} has no such field" if "name" in section else "there is no such field"
    hint = did_you_mean(field, fields)
    if path in COMPONENTS and section["name"] not in REGISTRIES[COMPONENTS[path]].builtin:
        # A misspelt data source is taken for a TFDS data set.
        hint = did_you_mean(section["name"], REGISTRIES[COMPONENTS[path]].builtin) or hint
    if not hint:
        near = difflib.get_close_matches(where.removeprefix("config."), flat(default()), n=1, cutoff=0.7)
        hint = f" Did you mean 'config.{near[0]}'?" if near else ""
    return UserError(f"{where} is set, but {reader}; accepted: {', '.join(fields)}.{hint}")


def load(file: str) -> ConfigDict:
    """The result of get_config() of a config file; FILE:ARGUMENT calls get_config(ARGUMENT).

    Raises:
      UserError: the file does not exist, or raises an exception.
    """
    path, _, argument = file.partition(":")
    require(pathlib.Path(path).is_file(), f"--config is {file!r}, which does not exist.{_nearest_file(path)}")
    accepted = "accepted: a Python file with get_config() → ConfigDict, such as configs/digits.py"
    above = str(pathlib.Path(path).resolve().parent.parent)
    if above not in sys.path:
        sys.path.append(above)  # as configs of this project import each other
    try:
        module = load_file(path, "config_file")
        return module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--config is {file!r}, which fails with {why}; {accepted}.") from error


def _nearest_file(path: str) -> str:
    return did_you_mean(path, [str(file) for file in sorted(pathlib.Path("configs").glob("*.py"))])


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of nested dictionaries or ConfigDicts."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping | ConfigDict)
        found |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def places() -> Iterator[tuple[str, str, list[str]]]:
    """Yields (section, kind of its component, names of the components that have the section) for every
    section that describes a component, such as ("model.schedule", "schedule", ["diffusion", "mhvae", …]). The
    sections in `COMPONENTS` are in every config, and their list is empty."""

    def below(path: str, kind: str, of: list[str]) -> Iterator[tuple[str, str, list[str]]]:
        yield path, kind, of
        found: dict[tuple[str, str], list[str]] = {}
        for name, cls in REGISTRIES[kind].classes().items():
            for section in cls.sections.items():
                found.setdefault(section, []).append(name)
        for (part, of_part), names in found.items():
            yield from below(f"{path}.{part}", of_part, names)

    for path, kind in COMPONENTS.items():
        yield from below(path, kind, [])


def describe() -> str:
    """The components of every kind with their fields and defaults, as text."""
    lines = []
    for path, kind, of in places():
        owners = f" of {', '.join(of)}" if of else ""
        lines.append(f"\nconfig.{path}.name{owners}")
        for name, cls in REGISTRIES[kind].classes().items():
            fields = ", ".join(f"{field} = {value!r}" for field, value in cls.config_fields().items())
            lines.append(f"  {name}: {fields or '–'}")
    return "\n".join(lines)
