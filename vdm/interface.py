"""The interface for scripts and notebooks: a trained model as a value, to sample and to evaluate on arrays.

  import vdm

  model = vdm.load("runs/digits")           # a workdir, or a folder that --mode=export wrote
  images = model.sample(16)                 # uint8 [16, 8, 8, 1]
  print(model.bits_per_dim(images))         # the ELBO with its error and its terms

`import vdm` provides the functions of this file (vdm/__init__.py), and imports it when one of them is used.
docs/guide/first_run.md has an example, and docs/reference.md lists all functions.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import operator
import pathlib
import signal
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict
import numpy as np

from vdm import commandline, config as config_lib, run as run_lib, train as train_lib, workdir as workdir_lib
from vdm.arrays import Images
from vdm.contract import Ability, Model, Params
from vdm.data import dataset, fingerprint
from vdm.data.dataset import Data, Labels, Spec
from vdm.errors import Stopped, require
from vdm.estimate import Estimate
from vdm.evaluation.elbo import make_elbo, one_draw
from vdm.evaluation.profile import Profile, gamma_at_edges, in_continuous_time
from vdm.exchange import weights
from vdm.reporting import text
from vdm.runtime import devices, stop
from vdm.sample import make_sampler

_Function = Callable[..., Any]


class BitsPerDim(Estimate):
    """An Estimate that prints as a table, as with --mode=eval: each term and the sum, with the standard error
    and its two parts."""

    def __str__(self) -> str:
        return text.estimate_table(self)


class Density(NamedTuple):
    """The density of the diffusion term over γ.

    Attributes:
      edges: γ at the edges of bins; if γ differs between values, the mean over values.
      per_gamma: bits/dim per unit of γ in each bin; times the bin widths, they sum to the diffusion term.
      se: the standard error of `per_gamma`; NaN for a single image.
    """

    edges: Float[np.ndarray, "parts_and_one"]
    per_gamma: Float[np.ndarray, "parts"]
    se: Float[np.ndarray, "parts"]


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Trained:
    """A trained model with its parameters.

    Attributes:
      config: the complete config of the run.
      spec: the shape, levels and classes of the images.
      params: the averaged parameters, a tree of arrays.
      model: the model, whose methods take `params` as their first argument.
      step: the number of training steps.
    """

    config: ConfigDict
    spec: Spec
    params: Params
    model: Model
    step: int
    _made: dict[tuple[str, int | None], _Function] = dataclasses.field(default_factory=dict, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": {}}  # compiled functions cannot be pickled

    def __repr__(self) -> str:
        count = sum(value.size for value in jax.tree.leaves(self.params))
        images = f"{self.config.data.name!r}, uint8 {list(self.spec.shape)}, {self.spec.vocab_size} levels"
        return f"<{self.config.model.name} of {count:,} parameters on {images}; step {self.step:,}>"

    def sample(self, count: int = 64, seed: int = 0) -> Images:
        """Draws samples, uint8 [count, height, width, channels], as --mode=sample does with `seed` as
        config.seed. A model that is conditioned on labels gets the labels 0, 1, … in turn.

        Raises:
          UserError: `count` is not 1 or more.
        """
        config = self._config(seed)
        config.sample.num = _whole("count", count)
        sample = self._once(("sample", count), lambda: make_sampler(self.model, config, self._data()))
        return sample(self.params, progress=True, seed=config.seed)

    def bits_per_dim(
        self, images: Images, labels: Labels | None = None, passes: int = 20, seed: int = 0
    ) -> BitsPerDim:
        """The negative ELBO of images in bits/dim, an upper bound on −log₂ p(x); or −log₂ p(x) itself, if the
        model has it in closed form.

        Args:
          images: images with values below spec.vocab_size, in any number and order.
          labels: labels 0 … spec.classes − 1, for a model that is conditioned on labels.
          passes: number of times that each image is evaluated, with new times and noise each time.
          seed: seed of the times and the noise; --mode=eval uses config.seed.

        Returns:
          The bits/dim: `mean`, its standard error `se`, and the two parts of this error, `images_se` due to
          the choice of the images and `noise` due to the draws. Each is {"bpd": of the sum, term: …};
          `values` has the bits/dim of each image.

        Raises:
          UserError: an argument is not accepted.
        """
        estimate, _ = self._evaluate(self.model, images, labels, passes, seed)
        return BitsPerDim(**vars(estimate))

    def density(
        self, images: Images, labels: Labels | None = None, passes: int = 20, seed: int = 0
    ) -> Density:
        """How the bits of the diffusion term are distributed over γ, in continuous time: `edges`, `per_gamma`
        and its standard error `se`. The arguments are those of `bits_per_dim`.

        Raises:
          UserError: an argument is not accepted, or the model draws no diffusion time.
        """
        self._require_time()
        model = in_continuous_time(self.model)
        _, profile = self._evaluate(model, images, labels, passes, seed)
        assert profile is not None  # as the model draws a time
        edges = gamma_at_edges(model, self.params)
        columns = profile.summary(edges, 0.0, self.spec.shape, self.spec.vocab_size)
        return Density(columns["gamma_edges"], columns["per_gamma"], columns["per_gamma_se"])

    def gamma(self, t: Float[np.ndarray, "*times"] | float) -> Float[np.ndarray, "..."]:
        """γ(t) = −log SNR at times from 0 (data) to 1 (noise), in the shape of t. If γ differs between the
        values of an image, the axes of an image are appended.

        Raises:
          UserError: a time is not in [0, 1], or the model has no γ.
        """
        self._require_time()
        times = np.asarray(t)
        right = times.dtype.kind in "fiu" and np.all((times >= 0) & (times <= 1))
        require(right, f"t is {t!r}; accepted: numbers from 0 to 1.")
        return np.asarray(self.model.gamma(self.params, jnp.asarray(times, jnp.float32)))

    def _once(self, key: tuple[str, int | None], make: Callable[[], _Function]) -> _Function:
        """The function that `make` returns, made once: what is compiled for it serves every later call."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _config(self, seed: int) -> ConfigDict:
        config = self.config.copy_and_resolve_references()
        config.seed = _whole("seed", seed, 0)
        return config

    def _data(self) -> Data:
        return dataset.without_images(self.spec, "a Trained has no images.")

    def _evaluate(
        self, model: Model, images: Images, labels: Labels | None, passes: int, seed: int
    ) -> tuple[Estimate, Profile | None]:
        config = self._config(seed)
        config.eval.images = 0
        split = self._split(images, labels)
        draw = self._once(("draw", model.depth), lambda: one_draw(model))
        evaluate = make_elbo(model, config, Data(split, split, self.spec), draw)
        return evaluate(self.params, _whole("passes", passes), progress=True)

    def _split(self, images: Images, labels: Labels | None) -> dataset.Split:
        """Checks the images and labels, and returns them as a split."""
        images, levels, classes = np.asarray(images), self.spec.vocab_size, max(self.spec.classes, 1)
        require(
            images.dtype == np.uint8 and images.shape[1:] == self.spec.shape and len(images),
            f"the images are {images.dtype} {list(images.shape)}; accepted by this model: uint8 [images, "
            f"{', '.join(map(str, self.spec.shape))}], 1 or more, of levels 0 to {levels - 1}.",
        )
        top = int(images.max())
        require(
            top < levels,
            f"the images have values up to {top}; accepted by this model: levels 0 to {levels - 1}.",
        )
        if labels is None:
            require(
                not self.model.takes_label,
                f"labels are not given, and the model is conditioned on them; give one of 0 to {classes - 1} "
                "for each image.",
            )
            return dataset.in_memory(images)
        labels = np.asarray(labels)
        split = dataset.in_memory(images, labels)
        ends = (int(labels.min()), int(labels.max()))
        require(
            0 <= ends[0] and ends[1] < classes,
            f"the labels are from {ends[0]} to {ends[1]}; accepted by this model: 0 to {classes - 1}.",
        )
        return split

    def _require_time(self) -> None:
        require(
            Ability.TIME in self.model.abilities,
            f"config.model.name is {self.config.model.name!r}, which has no γ; that needs "
            f"{Ability.TIME.value}.",
        )


def config_of(given: str | pathlib.Path | Mapping[str, Any] | ConfigDict, **fields: Any) -> ConfigDict:
    """Returns the complete config of a run.

    Args:
      given: a Python file with get_config(), such as "configs/digits.py", or what get_config() returns.
      **fields: fields to set, with __ for each dot, as in train__steps=300 or model__schedule__name="cosine".

    Raises:
      UserError: the file does not exist; or a field is unknown, or its value is not accepted.
    """
    raw = config_lib.load(str(given)) if isinstance(given, str | pathlib.Path) else given
    return commandline.apply(raw, _flags(fields))


def load(folder: str | pathlib.Path, **fields: Any) -> Trained:
    """Loads a trained model from a workdir, at its newest checkpoint, or from a folder that --mode=export
    wrote. The images on which the model was trained are not needed.

    Args:
      folder: the workdir or the exported folder.
      **fields: fields of the config to set, as in `config_of`: model__sample_steps=20, for instance, or
        eval__checkpoint="best".

    Raises:
      UserError: the folder does not exist, or holds no model or a damaged one; or a field is not accepted.
    """
    path = pathlib.Path(folder).expanduser()
    require(path.is_dir(), f"there is no folder {str(path.absolute())!r}; give one that exists.")
    is_workdir = workdir_lib.newest(path) is not None
    require(
        is_workdir or (path / weights.FILES[0]).is_file(),
        f"{str(folder)!r} holds no model; give the workdir of a run that has a checkpoint, or a folder that "
        "--mode=export wrote.",
    )
    workdir_lib.require_modules(path)
    config = commandline.apply(workdir_lib.read_raw(path), _flags(fields), drop_unread=True)
    if is_workdir:
        return _of_workdir(config, path)
    spec = fingerprint.spec_of(weights.known_data(path), path)
    data = None if spec is None else dataset.without_images(spec, "weights have no images.")
    parts = run_lib.build(config, data)
    params = devices.replicate(weights.read(path, parts.like.params))
    parts.model.verify(params)
    step = int(workdir_lib.read_raw(path).get("step", 0))
    return Trained(config, parts.data.spec, params, parts.model, step)


def train_model(
    config: str | pathlib.Path | Mapping[str, Any] | ConfigDict, workdir: str | pathlib.Path
) -> Trained:
    """Trains as --mode=train does, from the newest checkpoint of `workdir` or from step 0, up to
    config.train.steps, and returns the trained model.

    Args:
      config: a config, or a config file, as for `config_of`.
      workdir: the folder for checkpoints, metrics and images.

    Raises:
      UserError: the config is not accepted, or differs from that of the workdir.
      KeyboardInterrupt, SystemExit: Ctrl-C, or SIGTERM or SIGUSR1, asked the training to stop. The state is
        saved, and the same call resumes.
    """
    whole, path = config_of(config), pathlib.Path(workdir).expanduser()
    workdir_lib.make(path)
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    try:
        with _quiet():
            train_lib.run(whole, path)
    except Stopped as stopped:
        raise KeyboardInterrupt if stopped.code == stop.CTRL_C else SystemExit(stopped.code) from stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return _of_workdir(whole, path)


def _of_workdir(config: ConfigDict, workdir: pathlib.Path) -> Trained:
    with _quiet():
        run = run_lib.restore(config, workdir, images=False)
    return Trained(config, run.data.spec, run.state.ema, run.model, int(run.state.step))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what Orbax logs about intact checkpoints."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _flags(fields: Mapping[str, Any]) -> list[str]:
    """The arguments of the command line that set these fields."""
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


def _whole(name: str, value: Any, least: int = 1) -> int:
    """Checks that a value is an integer of `least` or more.

    Raises:
      UserError: the value is not accepted.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = least - 1
    require(found >= least, f"{name} is {value!r}; accepted: a whole number of {least} or more.")
    return found
