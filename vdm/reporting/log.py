"""The report of a run: a progress bar on a terminal or plain lines, files, images."""

from collections.abc import Mapping
import math
import pathlib
import shutil
import sys
import time

from ml_collections import ConfigDict
from tqdm import tqdm

from vdm.arrays import Images
from vdm.config import flat
from vdm.contract import bits_per_dim
from vdm.data.dataset import Spec
from vdm.estimate import Estimate, write_images, write_json
from vdm.reporting import sample_sheet, text
from vdm.reporting.curve import save_curve
from vdm.reporting.loggers import Loggers
from vdm.reporting.metrics import Writer
from vdm.runtime.atomic import atomic_path

# Least number of seconds between two drawings of the curve, each of which takes half a second.
REDRAW = 10.0


class Log:
    """The Log of the process that reports the run."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, first: int, seconds: float, spec: Spec):
        """Continues after step `first`, before which training took `seconds`."""
        self._train = config.train
        self._workdir = workdir
        self._spec = spec
        self._writer = Writer(workdir, first, Loggers(config.loggers, workdir, flat(config)))
        self._bar = tqdm(
            total=config.train.steps, initial=first, unit="step", disable=None, dynamic_ncols=True
        )
        self._before = seconds
        self._began = time.monotonic()
        self._first = first
        self._last = (self._began, first)
        self._drawn = -math.inf  # time at which the curve was last drawn
        self._undrawn = ""  # the total's name if the curve has points that are not drawn yet
        (workdir / "samples").mkdir(exist_ok=True)

    def seconds(self) -> float:
        """Seconds spent in this run, including those before it was resumed."""
        return self._before + time.monotonic() - self._began

    def start_clock(self, step: int) -> None:
        """Measures the speed of training from here on."""
        self._last = (time.monotonic(), step)

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        tqdm.write(line)
        sys.stdout.flush()

    def progress(self, step: int) -> None:
        """Updates the bar."""
        self._bar.update(step - self._bar.n)

    def train(self, step: int, means: Mapping[str, float]) -> None:
        """Writes the means of the training metrics since the last call, in nats per example."""
        bits = {
            name: float(bits_per_dim(value, self._spec.shape))
            for name, value in means.items()
            if name != "grad_norm"
        }
        bpd, draw_sd = bits.pop("loss"), bits.pop("draw_sd")
        now = time.monotonic()
        began, before = self._last
        first_call = step == before  # only the call that compiled was timed so far
        if first_call:
            began, before = self._began, self._first
        rate = (step - before) / (now - began)
        self._last = (now, step)
        left = (self._train.steps - step) / rate
        numbers = {"bpd": bpd, **bits, "draw_sd": draw_sd, "grad_norm": means["grad_norm"]}
        timing = {"seconds": self.seconds(), "steps_per_second": rate}
        finite: dict[str, float | str | None] = {
            name: value if math.isfinite(value) else None for name, value in numbers.items()
        }
        self._writer.write(step, "train", finite | timing)
        self.progress(step)
        terms = "  ".join(f"{name} {value:.4f}" for name, value in bits.items())
        if self._bar.disable:
            print(
                f"step {step}/{self._train.steps}  bpd {bpd:.4f}  {terms}  "
                f"{rate:.1f} steps/s  ETA {duration(left)}{' (compilation counted)' if first_call else ''}",
                flush=True,
            )
        else:
            self._bar.set_postfix_str(f"bpd {bpd:.3f}  {terms}")

    def test(self, step: int, estimate: Estimate) -> None:
        """Writes an estimate over the test split, and plots the curve unless it was plotted just before."""
        self._writer.write(step, "test", estimate.json() | {"seconds": self.seconds()})
        self.say(f"step {step}: test {estimate.mean['bpd']:.4f} ± {estimate.se['bpd']:.4f} bits/dim")
        self._undrawn = "−log p, exact" if estimate.exact else "ELBO"
        if step < self._train.steps and time.monotonic() - self._drawn > REDRAW:
            self._plot()

    def validation(self, step: int, estimate: Estimate) -> None:
        """Writes an estimate over the validation split."""
        self._writer.write(step, "validation", estimate.json() | {"seconds": self.seconds()})
        mean, se = estimate.mean["bpd"], estimate.se["bpd"]
        self.say(f"step {step}: validation {mean:.4f} ± {se:.4f} bits/dim")

    def samples(self, step: int, samples: Images) -> None:
        """Writes the newest samples.png and samples.npz, and keeps the image of this step."""
        sample_sheet.write_samples(self._workdir, samples, self._spec.vocab_size)
        path = self._workdir / "samples" / f"{step:08d}.png"
        with atomic_path(path) as part:
            shutil.copyfile(self._workdir / "samples.png", part)
        self._writer.image(step, "samples", path)

    def end(self, step: int, estimate: Estimate) -> None:
        """Writes and prints the final estimate."""
        write_images(self._workdir / "eval_images.csv", estimate.values, estimate.images)
        write_json(self._workdir / "eval.json", estimate, step)
        # Last, as a run without this line is resumed.
        self._writer.write(step, "final", estimate.json() | {"seconds": self.seconds()})
        self._plot()
        self.say(text.estimate_table(estimate))
        self.say(f"{self._workdir}: eval.json, samples.png, elbo.png, metrics.jsonl, checkpoints/")

    def close(self) -> None:
        """Plots the curve if it has newer points, and closes the files."""
        if self._undrawn:
            self._plot()
        self._bar.close()
        self._writer.close()

    def _plot(self):
        save_curve(self._workdir / "elbo.png", self._writer.path, self._undrawn)
        self._drawn, self._undrawn = time.monotonic(), ""


class NoLog(Log):
    """The Log of a process that reports nothing."""

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, first: int, seconds: float, spec: Spec):
        pass

    def seconds(self) -> float:
        return 0.0

    def start_clock(self, step: int) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def progress(self, step: int) -> None:
        pass

    def train(self, step: int, means: Mapping[str, float]) -> None:
        pass

    def test(self, step: int, estimate: Estimate) -> None:
        pass

    def validation(self, step: int, estimate: Estimate) -> None:
        pass

    def samples(self, step: int, samples: Images) -> None:
        pass

    def end(self, step: int, estimate: Estimate) -> None:
        pass

    def close(self) -> None:
        pass


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
