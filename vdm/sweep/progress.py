"""The progress of a study: a bar over all trials, and a line for each."""

from collections.abc import Sequence
import contextlib
import pathlib
import sys
import time
from typing import NamedTuple

from tqdm import tqdm

from vdm.reporting.log import duration
from vdm.reporting.metrics import read_metrics
from vdm.reporting.text import fixed
from vdm.sweep.plan import Trial
from vdm.sweep.workdirs import final, number

LOOK = 2.0  # seconds between looks at the metrics
LINES = 60.0  # seconds between lines on each active run, if there is no terminal


class Progress:
    """A bar over all trials on a terminal, and a line for each. A trial counts by the share of its steps that
    are done, as a trial with fewer steps may take as long."""

    def __init__(self, trials: Sequence[Trial]):
        self._done = {trial.folder: share_done(trial) for trial in trials}
        self._most = dict.fromkeys(self._done, 1.0)
        self._ended, self._failed = 0, 0
        self._first = sum(self._done.values())
        self._began = self._looked = self._told = time.monotonic()
        self._of_run: dict[pathlib.Path, tqdm] = {}  # if there is a terminal
        self._bar = tqdm(
            total=len(trials), initial=round(self._first, 2), unit="run", smoothing=0, disable=None,
            dynamic_ncols=True,
        )  # fmt: skip

    def update(self, running: Sequence[Trial]) -> None:
        """Updates the bar, every few seconds."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        self._done |= {trial.folder: share_done(trial) for trial in running}
        self._bar.total = round(sum(self._most.values()), 2)
        self._bar.update(round(sum(self._done.values()) - self._bar.n, 2))
        done = self._ended - self._failed
        self._bar.set_postfix_str(f"{done} done, {self._failed} failed, {len(running)} running")
        if not self._bar.disable:
            self._draw(running)
        elif time.monotonic() - self._told > LINES:
            self._told = time.monotonic()
            for trial in running:
                self.say(f"{trial.folder.name}: {going(trial)}{self._left()}")

    def _draw(self, running):
        """Draws a bar for each active run below the bar over all trials."""
        for folder in {*self._of_run} - {trial.folder for trial in running}:
            self._of_run.pop(folder).close()
        for trial in running:
            if trial.folder not in self._of_run:
                taken = {-bar.pos for bar in self._of_run.values()}
                free = min({*range(1, len(taken) + 2)} - taken)
                self._of_run[trial.folder] = tqdm(
                    total=trial.steps, position=free, leave=False, dynamic_ncols=True,
                    bar_format="{percentage:3.0f}%|{bar:16}| {desc}",
                )  # fmt: skip
            bar = self._of_run[trial.folder]
            bar.update(round(share_done(trial) * trial.steps) - bar.n)
            bar.set_description_str(f"{trial.folder.name}: {going(trial)}")

    def _left(self):
        """The remaining time of the study, in words; "" before it can be estimated."""
        done, left = sum(self._done.values()), sum(self._most.values()) - sum(self._done.values())
        if not left or done <= self._first:
            return ""
        seconds = left * (time.monotonic() - self._began) / (done - self._first)
        return f"; {tqdm.format_interval(seconds)} left of the study"

    def end(self, trial: Trial, why: str | None) -> None:
        """Prints that a trial has ended: its score, or the reason of its failure."""
        self._looked = 0.0
        self._ended += 1
        self._failed += bool(why)
        self._done[trial.folder] = share_done(trial) if why else 1.0
        self._most[trial.folder] = self._done[trial.folder]  # a failed trial's other steps take no time
        self.say(f"{self._ended}/{len(self._most)} {trial.folder.name}: {why or score(trial)}{self._left()}")

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        with contextlib.suppress(OSError):  # the terminal may be closed while runs continue
            tqdm.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        """Closes the bar in its final state."""
        self.update([])
        for bar in self._of_run.values():
            bar.close()
        self._bar.close()


def share_done(trial: Trial) -> float:
    """The step of the newest line of metrics, as a share of all steps."""
    rows = read_metrics(trial.folder / "metrics.jsonl")
    return min(rows[-1]["step"] / trial.steps, 1.0) if rows else 0.0


class Standing(NamedTuple):
    """The progress of a run as text; `bpd` is from the last evaluation, or from training before the first."""

    step: str
    bpd: str
    rate: str
    left: str


def standing(trial: Trial) -> Standing | None:
    """The Standing of a run; None before it has measurements."""
    rows = read_metrics(trial.folder / "metrics.jsonl")
    if not rows:
        return None
    step = rows[-1]["step"]
    tested = [row for row in rows if row["split"] == "test"] or rows
    rate = next((row["steps_per_second"] for row in reversed(rows) if row.get("steps_per_second")), None)
    speed = (f"{rate:.3g}", duration((trial.steps - step) / rate)) if rate else ("–", "–")
    return Standing(str(step), fixed(number(tested[-1], "bpd")), *speed)


def going(trial: Trial) -> str:
    """Step, bits/dim, speed and remaining time of an active run."""
    now = standing(trial)
    if now is None:
        return "starting"
    return f"step {now.step}/{trial.steps}, {now.bpd} bits/dim, {now.rate} steps/s, {now.left} left"


def score(trial: Trial) -> str:
    """Bits/dim of a finished run, and the seconds that it took."""
    rows = read_metrics(trial.folder / "metrics.jsonl")
    found = final(trial.folder, rows)
    bpd, se = (fixed(number(found, name)) for name in ("bpd", "bpd_se"))
    seconds = f", {rows[-1]['seconds']:.0f} s" if rows else ""
    return f"{bpd} ± {se} bits/dim{seconds}"
