"""The state of each run of a study, from its files alone, so that any terminal or host can print it."""

from collections.abc import Sequence
import pathlib
import time

from vdm.reporting.log import duration
from vdm.reporting.metrics import read_metrics
from vdm.reporting.text import fixed, markdown_table
from vdm.sweep import plan, progress
from vdm.sweep.workdirs import final, number

STALE = 600.0  # seconds without output after which a run does not count as running


def table(trials: Sequence[plan.Trial]) -> str:
    """Markdown: the state of each run, its newest bits/dim and its remaining time; and how many runs have
    finished."""
    rows, done = [], 0
    for trial in trials:
        ended = plan.finished(trial)
        done += ended
        rows.append(_row(trial, ended))
    header = ("run", "state", "step", "of", "bits/dim", "steps/s", "left")
    return f"{markdown_table(header, rows)}\n\n{done} of {len(trials)} runs have finished."


def failure(log: pathlib.Path) -> str:
    """ "failed: " and the reason, if the last line of a log is an error; otherwise ""."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"failed: {last.removeprefix('error: ')}" if last.startswith("error: ") else ""


def _row(trial, ended):
    if ended:
        bpd = number(final(trial.folder, read_metrics(trial.folder / "metrics.jsonl")), "bpd")
        return [trial.folder.name, "finished", str(trial.steps), str(trial.steps), fixed(bpd), "", ""]
    log = trial.folder / "log.txt"
    why = failure(log)
    now = progress.standing(trial)
    if now is None:
        state = why or ("starting" if log.exists() else "waiting")
        return [trial.folder.name, state, "0", str(trial.steps), "–", "", ""]
    age = time.time() - (trial.folder / "metrics.jsonl").stat().st_mtime
    state = why or ("running" if age < STALE else f"no output for {duration(age)}")
    return [trial.folder.name, state, now.step, str(trial.steps), now.bpd, now.rate, now.left]
