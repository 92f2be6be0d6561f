"""The speed of a model on this machine, as a share of the machine's peak.

  python -m experiments.speed                        # a CPU: the laptop model, two sizes of the U-Net
  python -m experiments.speed --out=runs/speed       # a GPU or TPU: the U-Net of the paper

The training step is that of a run, on random images. A large product of two square matrices in the same
precision is timed just before and just after each step, and the share is the median over steps of

  (floating-point operations of the model) / (seconds) / (those of the product / its seconds).

The model's operations are counted by formula, as three times those of the forward pass, which are two for
each multiply-add of its convolutions, dense layers and attention. Recomputation to save memory and all other
operations do not count. Prints a Markdown table and writes it to speed.md, and all numbers to speed.json.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json

from absl import flags
import jax
from tqdm import tqdm

from experiments.speed.benchmark import Case, measure
from vdm.errors import require
from vdm.reporting.text import markdown_table
from vdm.sweep import command
from vdm.sweep.output import make_folder

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "runs/speed", "Folder for speed.md and speed.json.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 5, "Timed training steps of each case.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list("cases", None, "Only the cases with these numbers, from 1 on.", flag_values=FLAGS)

COLUMNS = {
    "trace": "trace, s",
    "compile": "compile, s",
    "start with cache": "both from cache, s",
    "step": "step, s",
    "examples/s": "examples/s",
    "share": "share of matmul",
    "matmul TFLOP/s": "matmul, TFLOP/s",
    "temporary MB/image": "temporary MB/image",
    "evaluation images/s": "evaluated/s",
    "sampling evaluations/s": "sampler's evaluations/s",
    "input images/s": "input/s",
}


def cases() -> list[Case]:
    """On a CPU, the laptop model and two sizes of the paper's model that it can run; on other devices, the
    paper's model in both precisions."""
    if jax.default_backend() == "cpu":
        small = Case("unet", 4, 64, 16, "float32", "dots")
        large = Case("unet", 32, 128, 8, "float32", "dots")
        laptop = Case("pyramid", 2, 48, 16, "float32")
        return [laptop, small, large, *(dataclasses.replace(large, remat=r) for r in ("none", "block"))]
    batch = 128 * jax.device_count()
    whole = [Case("unet", 32, 128, batch, d, r) for d in ("bfloat16", "float32") for r in ("dots", "none")]
    return [*whole, dataclasses.replace(whole[0], remat="block")]


def table(found: Mapping[Case, Mapping[str, float]]) -> str:
    """The results of `measure` for each case, as Markdown."""

    def text(name, value):
        return f"{value:.0%}" if name == "share" else f"{value:.3g}" if value < 1e3 else f"{value:,.0f}"

    rows = [[str(case), *(text(name, numbers[name]) for name in COLUMNS)] for case, numbers in found.items()]
    return markdown_table(("model", *COLUMNS.values()), rows)


def run(others: Sequence[str]) -> None:
    """Measures each case, prints the table, and writes all results."""
    command.refuse_others(others)
    every = cases()
    numbers = FLAGS.cases or [str(n + 1) for n in range(len(every))]
    wrong = [n for n in numbers if not n.isdigit() or not 1 <= int(n) <= len(every)]
    require(not wrong, f"--cases has {wrong}; accepted: 1 to {len(every)}, separated by commas.")
    out = make_folder(FLAGS.out)
    kind = f"{jax.device_count()} × {jax.devices()[0].device_kind}, JAX {jax.__version__}"
    print(kind, flush=True)
    found: dict[Case, dict[str, float]] = {}
    bar = tqdm([every[int(n) - 1] for n in numbers], "cases", disable=None)
    for case in bar:
        bar.set_postfix_str(str(case))
        found[case] = measure(case, FLAGS.steps)
        text = table(found)
        (out / "speed.md").write_text(f"{kind}\n\n{text}\n")
        rows = [dataclasses.asdict(case) | numbers for case, numbers in found.items()]
        (out / "speed.json").write_text(json.dumps({"device": kind, "cases": rows}, indent=2) + "\n")
    print(text)
    print(f"{out}: speed.md, speed.json")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, run)
