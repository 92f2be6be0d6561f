"""The quality of samples against the number of network evaluations, for each sampler.

  python -m experiments.sampling --workdir=runs/digits

The measure is the energy distance between samples and held-out images, with pixels in [−1, 1]:
2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ (Székely & Rizzo 2013). It has no bandwidth and is zero only if the two
distributions are equal. The estimate is unbiased, so that a small number of samples gives no advantage.
Writes sampling.md, and sampling.png with the distances and with samples from the same noise.
"""

from collections.abc import Iterable, Mapping, Sequence
import math
import pathlib
from typing import NamedTuple

from absl import flags
import jax.numpy as jnp
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
import numpy as np
from tqdm import tqdm

from vdm import run as run_lib, sample, workdir as workdir_lib
from vdm.component import REGISTRIES
from vdm.contract import Ability
from vdm.data.dataset import Images, Split
from vdm.diffusion import process
from vdm.errors import require
from vdm.reporting import figures
from vdm.reporting.text import markdown_table
from vdm.runtime import cache, devices
from vdm.sweep import command

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "A trained workdir of a diffusion model.", flag_values=FLAGS)
flags.DEFINE_integer("num", 1_000, "Number of samples for each distance.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_list(
    "evaluations", ["5", "10", "20", "50", "100", "250"], "Numbers of sampler steps.", flag_values=FLAGS
)

SAMPLERS = tuple(REGISTRIES["sampler"].builtin)
Case = tuple[str, int]  # a sampler, and its network evaluations
Influence = Float[np.ndarray, "n"]


class Distance(NamedTuple):
    """An energy distance.

    Attributes:
      of_x, of_y: the influence of each sample of x and of y on the distance.
      pairs: the part of the variance that is due to pairs of samples, beyond that of the single samples.
    """

    value: float
    of_x: Influence
    of_y: Influence
    pairs: float

    @property
    def se(self) -> float:
        """The standard error. The variance of the influences contains `pairs` twice, and nothing else if the
        two distributions are equal."""
        twice = standard_error(self.of_x, self.of_y) ** 2
        return math.sqrt(max(twice - self.pairs, 0.5 * twice))


class Compared(NamedTuple):
    """The samples of all cases, and their distances from the held-out images.

    Attributes:
      distances: the distance of each case.
      further: its excess over the distance of the longest ancestral chain.
      training: the distance of the training images.
      samples: the samples of each case.
      vocab_size: number of levels of a value.
    """

    distances: dict[Case, Distance]
    further: dict[Case, Distance]
    training: Distance
    samples: dict[Case, UInt8[np.ndarray, "num height width channels"]]
    vocab_size: int


def energy_distance(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], other: Float[np.ndarray, "n d"] | None = None
) -> Distance:
    """The unbiased energy distance of samples x and y, minus that of `other` and y if `other` is given.

    Each sample of `other` may depend on the sample of x with the same index, for example if both come from
    the same noise: the common influence of the two cancels.
    """
    across, among_x, among_y = _distances(x, y), _distances(x, x), _distances(y, y)
    if other is not None:
        across, among_x = across - _distances(other, y), among_x - _distances(other, other)
        among_y = np.zeros_like(among_y)
    within_x = among_x.sum(axis=1) / (len(x) - 1)
    within_y = among_y.sum(axis=1) / (len(y) - 1)
    value = 2.0 * across.mean() - within_x.mean() - within_y.mean()
    # To first order; a sample occurs at both places of a pair, hence the factor of two.
    of_x = 2.0 * (across.mean(axis=1) - within_x)
    of_y = 2.0 * (across.mean(axis=0) - within_y)
    # The second-order part: each pair's distance without the parts of its two samples (Hoeffding 1948).
    pairs = 2.0 * _centred(among_x) / len(x) ** 2 + 2.0 * _centred(among_y) / len(y) ** 2
    return Distance(value, of_x, of_y, pairs + 4.0 * _centred(across) / (len(x) * len(y)))


def _centred(distances):
    """The mean square of distances after subtraction of the means of rows and columns."""
    own = distances - distances.mean(axis=0) - distances.mean(axis=1)[:, None] + distances.mean()
    return float(np.square(own).mean())


def _distances(a, b):
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
    return np.sqrt(np.maximum(squares, 0.0))


def standard_error(*influences: Influence) -> float:
    """The standard error of a statistic, from the influences of independent samples on it."""
    return float(np.sqrt(sum(np.var(i, ddof=1) / len(i) for i in influences)))


def images_of(split: Split, most: int = 2_000) -> Images:
    """The first images of a split, at most `most`."""
    return split.read(np.arange(min(split.size, most)))["image"]


def compare(workdir: pathlib.Path, num: int, evaluations: Sequence[int]) -> Compared:
    """Draws samples with every sampler and number of evaluations, and compares them with the test images.

    Raises:
      UserError: the workdir has no checkpoint, or its model has no denoiser.
    """
    require(
        workdir_lib.newest(workdir) is not None, f"--workdir is {str(workdir)!r}, which has no checkpoint."
    )
    config = workdir_lib.read_config(workdir)
    config.sample.num = num
    config.sample.batch_size = devices.multiple(min(num, 500))
    run = run_lib.restore(config, workdir)
    require(
        Ability.DENOISER in run.model.abilities,
        f"the model of {str(workdir)!r} is not a diffusion model of images, so it has no sampler steps.",
    )
    vocab_size = run.data.spec.vocab_size

    vectors = lambda images: flat(images, vocab_size)
    held_out = vectors(images_of(run.data.test))
    samples, distances = {}, {}
    config.model.timesteps = 0
    cases = [(name, n) for n in evaluations for name in SAMPLERS]
    bar = tqdm(cases, "samples", disable=None)
    for name, n in bar:
        bar.set_postfix_str(f"{name}, {n} evaluations")
        config.model.sampler.name, config.model.sample_steps = name, n
        model = run_lib.build_model(config, run.data.spec)
        samples[name, n] = sample.make_sampler(model, config, run.data)(run.state.ema)
        distances[name, n] = energy_distance(vectors(samples[name, n]), held_out)
    training = energy_distance(vectors(images_of(run.data.train)), held_out)
    longest = vectors(samples[longest_chain(cases)])
    further = {
        case: energy_distance(vectors(drawn), held_out, longest)
        for case, drawn in samples.items()
        if case != longest_chain(cases)
    }
    return Compared(distances, further, training, samples, vocab_size)


def flat(images: UInt8[np.ndarray, "n *shape"], vocab_size: int) -> Float[np.ndarray, "n d"]:
    """Images as vectors of values in [−1, 1]."""
    return np.asarray(process.scale(jnp.asarray(images), vocab_size), np.float64).reshape(len(images), -1)


def longest_chain(cases: Iterable[Case]) -> Case:
    """The case with which the others are compared."""
    return "ancestral", max(n for _, n in cases)


def table(distances: Mapping[Case, Distance], further: Mapping[Case, Distance], training: Distance) -> str:
    """Markdown: each distance, and its excess over that of the longest ancestral chain."""
    rows = []
    for case, distance in distances.items():
        cells = [f"{distance.value:.4f}", f"{distance.se:.4f}", "", ""]
        if case in further:
            cells[2:] = [f"{further[case].value:+.4f}", f"{further[case].se:.4f}"]
        rows.append([case[0], str(case[1]), *cells])
    rows.append(["training images", "", f"{training.value:.4f}", f"{training.se:.4f}", "", ""])
    header = ("samples", "evaluations", "energy distance", "± s.e.")
    longest = " ".join(map(str, longest_chain(distances)))
    return markdown_table((*header, f"minus {longest}", "± s.e."), rows)


def plot_sampling(path: pathlib.Path, compared: Compared, shown: int = 8) -> None:
    """Plots the distances over evaluations and, to their right, samples of each case from the same noise."""
    evaluations = sorted({n for _, n in compared.distances})
    size = (5.0 + 0.45 * shown * len(SAMPLERS), 1.0 + 0.5 * len(evaluations))
    figure = Figure(figsize=size, layout="constrained")
    left, *grids = figure.subplots(1, 1 + len(SAMPLERS), width_ratios=[5.0, *[0.45 * shown] * len(SAMPLERS)])
    for k, name in enumerate(SAMPLERS):
        distances = [compared.distances[name, n] for n in evaluations]
        # Slightly shifted, so that no bar hides another.
        x = [n * 1.05 ** (k - 1) for n in evaluations]
        y, bars = [distance.value for distance in distances], [distance.se for distance in distances]
        left.errorbar(x, y, bars, marker="o", ms=4, label=name, capsize=2)
    left.axhline(compared.training.value, color="gray", ls=":", label="training images")
    left.set(xscale="log", xlabel="network evaluations", ylabel="energy distance ± s.e.")
    left.set_xticks(evaluations, evaluations)
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend()
    for axes, name in zip(grids, SAMPLERS):
        line = [(0, 0), (1, 0), (1, 0), (0, 0)]  # a line between samples
        gray, top = compared.vocab_size // 2, compared.vocab_size - 1
        rows = [np.pad(compared.samples[name, n][:shown], line, constant_values=gray) for n in evaluations]
        whole = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
        axes.imshow(np.squeeze(whole) / top, cmap="gray", vmin=0.0, vmax=1.0)
        side = rows[0].shape[1]
        axes.set(title=name, xticks=[])
        axes.set_yticks([side * (i + 0.5) for i in range(len(rows))], evaluations)
    figures.save(figure, path)


def run(others: Sequence[str]) -> None:
    """Prints and writes the table, and plots the figure."""
    command.refuse_others(others)
    require(FLAGS.workdir, "--workdir is missing; give the workdir of a run.")
    wrong = [n for n in FLAGS.evaluations if not n.isdigit() or int(n) < 1]
    require(not wrong, f"--evaluations has {wrong}; accepted: 1 or more, separated by commas.")
    workdir = pathlib.Path(FLAGS.workdir).expanduser()
    cache.enable(cache.FOLDER)
    compared = compare(workdir, FLAGS.num, sorted({int(n) for n in FLAGS.evaluations}))
    text = table(compared.distances, compared.further, compared.training)
    print(text)
    (workdir / "sampling.md").write_text(text + "\n")
    plot_sampling(workdir / "sampling.png", compared)
    print(f"{workdir}: sampling.md, sampling.png")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, run)
