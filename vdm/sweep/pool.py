"""Runs the trials of a study, several at a time, until all have ended or the study is stopped."""

from collections.abc import Callable, Sequence
import contextlib
import pathlib
import signal
import time

from vdm.errors import Stopped
from vdm.runtime.stop import QUEUE_AGAIN, SIGNALS, handling
from vdm.sweep import cluster, jobs
from vdm.sweep.plan import Trial, finished
from vdm.sweep.progress import Progress

Started = jobs.Process | cluster.Job
Start = Callable[[list[Trial], list[jobs.Slot]], Sequence[Started]]


def run_all(trials: Sequence[Trial], start: Start, slots: Sequence[jobs.Slot]) -> dict[pathlib.Path, str]:
    """Runs trials, one in each slot at a time, and prints the progress; returns {folder: reason} of failures.

    Args:
      start: starts trials, one in each slot.
      slots: one slot for each concurrent trial.

    Raises:
      KeyboardInterrupt: Ctrl-C or the end of the terminal has stopped all trials.
      Stopped: SIGTERM or SIGUSR1 has.
    """
    waiting, answered = list(trials), 0
    running: list[tuple[Trial, Started]] = []
    free, slot_of = list(slots), dict[pathlib.Path, jobs.Slot]()
    failed: dict[pathlib.Path, str] = {}
    asked: list[int] = []  # the stop signals so far
    collect = handling(lambda number, _: asked.append(number), *SIGNALS, signal.SIGHUP)
    with collect, contextlib.closing(Progress(trials)) as progress:
        while running or waiting and not asked:
            if waiting and not asked and free:
                new = waiting[: len(free)]
                taken, free = free[: len(new)], free[len(new) :]
                slot_of |= {trial.folder: slot for trial, slot in zip(new, taken)}
                started = list(zip(new, start(new, taken)))
                running += started
                del waiting[: len(new)]
                for trial, job in started:
                    progress.say(f"{trial.folder.name}: {job.begun}")
            for _ in asked[answered:]:
                for _, job in running:
                    job.send(signal.SIGKILL if answered else signal.SIGINT)  # on SIGINT a run saves
                answered += 1
                progress.say("stopping; press Ctrl-C again to kill the runs without saving")
            for trial, job in list(running):
                why = job.poll()
                if why is None:
                    continue
                running.remove((trial, job))
                free.append(slot_of.pop(trial.folder))
                if asked and not finished(trial):
                    progress.say(f"{trial.folder.name}: {why}")
                    continue
                if not finished(trial):
                    failed[trial.folder] = why or f"it ended without a checkpoint of step {trial.steps}"
                progress.end(trial, failed.get(trial.folder))
            progress.update([trial for trial, _ in running])
            time.sleep(jobs.POLL)
    if asked:
        raise Stopped(QUEUE_AGAIN) if asked[0] in (signal.SIGTERM, signal.SIGUSR1) else KeyboardInterrupt
    return failed
