"""Loggers besides metrics.jsonl and TensorBoard: Weights & Biases, MLflow, Aim.

`config.loggers` names them: wandb, mlflow, aim, or the import path of a custom logger, separated by commas.
Each gets numbers as "split/metric", in bits/dim unless named otherwise, and images. Runs are grouped by the
folder that contains their workdir, such as the folder of a study.
"""

from collections.abc import Callable, Mapping
import dataclasses
import importlib.util
import json
import os
import pathlib
from typing import Any, ClassVar

from filelock import FileLock

from vdm.component import Component, find
from vdm.errors import UserError, one_line, require
from vdm.runtime.atomic import write_text


@dataclasses.dataclass
class Logger(Component):
    """An experiment tracker.

    Attributes:
      package: the package that the logger needs, which is also the name of an extra of this project.
    """

    package: ClassVar[str] = ""

    def start(self, workdir: pathlib.Path, config: Mapping[str, Any], known: str | None) -> str:
        """Starts a run, or continues the run with the id `known`; returns its id."""
        raise NotImplementedError

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers of a step, {"split/metric": value}."""
        raise NotImplementedError

    def image(self, step: int, name: str, path: pathlib.Path | str) -> None:
        """Logs a PNG image."""

    def end(self) -> None:
        """Ends the run."""


@dataclasses.dataclass
class WandB(Logger):
    """Weights & Biases, offline in the workdir unless WANDB_MODE is set; `wandb sync` uploads it."""

    package = "wandb"

    def start(self, workdir: pathlib.Path, config: Mapping[str, Any], known: str | None) -> str:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "vdm"),
            group=workdir.parent.name,
            name=workdir.name,
            id=known,
            resume="allow",
            config=dict(config),
            dir=str(workdir),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        return str(self._run.id)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "step": step})  # W&B's own steps count calls, and must not decrease

    def image(self, step: int, name: str, path: pathlib.Path | str) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path)), "step": step})

    def end(self) -> None:
        self._run.finish()


@dataclasses.dataclass
class MLflow(Logger):
    """MLflow, in mlflow.db beside the workdir unless MLFLOW_TRACKING_URI is set."""

    package = "mlflow"

    def start(self, workdir: pathlib.Path, config: Mapping[str, Any], known: str | None) -> str:
        from mlflow import MlflowClient

        folder, elsewhere = workdir.resolve().parent, os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(elsewhere or f"sqlite:///{folder / 'mlflow.db'}")
        found = self._client.get_experiment_by_name(folder.name)
        artifacts = None if elsewhere else (folder / "mlartifacts").as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(folder.name, artifacts)
        if known:
            self._id = self._client.get_run(known).info.run_id  # an unknown id fails here, not later
        else:
            self._id = self._client.create_run(experiment, run_name=workdir.name).info.run_id
            for field, value in config.items():
                self._client.log_param(self._id, field, value)
        return self._id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._id, name, value, step=step)

    def image(self, step: int, name: str, path: pathlib.Path | str) -> None:
        self._client.log_artifact(self._id, str(path), name)

    def end(self) -> None:
        self._client.set_terminated(self._id)


@dataclasses.dataclass
class Aim(Logger):
    """Aim, in .aim beside the workdir unless AIM_REPO is set."""

    package = "aim"

    def start(self, workdir: pathlib.Path, config: Mapping[str, Any], known: str | None) -> str:
        import aim

        folder = workdir.resolve().parent
        repo = os.environ.get("AIM_REPO", str(folder))
        quiet: Any = {"system_tracking_interval": None, "capture_terminal_logs": False}
        self._run = aim.Run(run_hash=known, repo=repo, experiment=folder.name, **quiet)
        self._run.name = workdir.name
        self._run["config"] = dict(config)
        return str(self._run.hash)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            split, _, metric = name.partition("/")
            self._run.track(value, name=metric, step=step, context={"split": split})

    def image(self, step: int, name: str, path: pathlib.Path | str) -> None:
        import aim

        self._run.track(aim.Image(str(path)), name=name, step=step)

    def end(self) -> None:
        self._run.close()


def build(names: str) -> dict[str, Logger]:
    """{name: logger} of config.loggers.

    Raises:
      UserError: a name is unknown, or its package is not installed.
    """
    found: dict[str, Logger] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        cls = find("logger", name, "config.loggers")
        require(
            not cls.package or importlib.util.find_spec(cls.package),
            f"config.loggers has {name!r}, which needs the package {cls.package}; install it by "
            f"pip install -e '.[{cls.package}]'.",
        )
        found[name] = cls()
    return found


class Loggers:
    """All loggers of one run. loggers.json keeps their ids, so that a resumed run continues in them."""

    def __init__(self, names: str, workdir: pathlib.Path, config: Mapping[str, Any]):
        path = workdir / "loggers.json"
        self._loggers = build(names)
        if not self._loggers:
            return
        ids = json.loads(path.read_text()) if path.exists() else {}
        workdir = workdir.resolve()
        for name, logger in self._loggers.items():
            try:
                # Without the lock, concurrent runs would each create the shared files.
                with FileLock(workdir.parent / ".loggers.lock"):
                    ids[name] = logger.start(workdir, config, ids.get(name))
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                raise UserError(f"config.loggers: {name} does not start: {why}") from error
        write_text(path, json.dumps(ids) + "\n")

    def log(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Passes the numbers of a step to all loggers."""
        self._each(lambda logger: logger.log(step, {f"{split}/{name}": v for name, v in numbers.items()}))

    def image(self, step: int, name: str, path: pathlib.Path | str) -> None:
        """Passes an image to all loggers."""
        self._each(lambda logger: logger.image(step, name, path))

    def end(self) -> None:
        """Ends all loggers."""
        self._each(lambda logger: logger.end())

    def _each(self, call: Callable[[Logger], None]) -> None:
        """Calls each logger. A logger that fails, for instance without its server, is dropped; the run
        continues."""
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:
                del self._loggers[name]
                why = f"{type(error).__name__}: {one_line(error)}"
                print(f"config.loggers: {name} failed and is not used further in this run: {why}", flush=True)
