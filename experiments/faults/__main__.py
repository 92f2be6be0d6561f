"""Disturbs runs on purpose, and compares their results with those of an undisturbed run, bit for bit.

  python -m experiments.faults --workdir=runs/F --minutes=30
  python -m experiments.faults --workdir=runs/F --faults=300         # 200 of them SIGKILL
  python -m experiments.faults --workdir=runs/F2 --faults=10 --processes=2

Draws faults and their times at random: SIGKILL, also during a save; damage to the newest checkpoint; a full
disk (on a small file system in memory, if mounting is allowed); a second process; SIGTERM and SIGUSR1; half a
line in metrics.jsonl; the clock set back; a disk that does not respond. After each fault, the same command
must resume from the newest intact checkpoint. When a run ends, its parameters, their average, the optimiser
state and every number of metrics.jsonl must equal those of the undisturbed run. Then the next run starts.

Prints a table of faults tried, survived and lost, and writes it to faults.md. Also writes faults.csv, with
one line per fault, and faults.png, which shows the step at which each disturbed process had started. Exits
with code 1 if a fault was lost. Needs Linux.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import random
import shutil
import sys
import time
from typing import Any

from absl import flags
from tqdm import tqdm

from experiments.faults.disturbances import KILLS, NEEDS_MOUNT, OF_MANY, OTHERS, Fault, Target, mount, unmount
from vdm import commandline
from vdm.errors import Failed, require
from vdm.reporting.metrics import read_metrics
from vdm.reporting.text import markdown_table
from vdm.sweep import command
from vdm.sweep.output import make_folder, save_figure, write_csv
from vdm.sweep.plan import command as run_command

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the campaign.", flag_values=FLAGS)
flags.DEFINE_float("minutes", None, "Duration of the campaign.", lower_bound=0.0, flag_values=FLAGS)
flags.DEFINE_integer("faults", None, "Number of faults to try.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("processes", 1, "Processes of the run, on loopback.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Seed of the faults and their moments.", flag_values=FLAGS)

# A run that reports and saves often, and takes a few seconds.
FIELDS = {
    "model.net.name": "mlp", "model.net.depth": 1, "model.net.width": 32, "model.sample_steps": 3,
    "optimizer.name": "adamw", "optimizer.learning_rate": 1e-3, "optimizer.decay": "constant",
    "train.steps": 1500, "train.batch_size": 16, "train.substeps": 5, "train.log_every": 10,
    "train.checkpoint_every": 25, "train.eval_every": 150, "train.sample_every": 500, "train.keep": 3,
    "eval.passes": 2, "eval.passes_in_training": 1, "sample.num": 4, "sample.batch_size": 4,
}  # fmt: skip
ROOM = 24  # MiB of the file system in memory, several times what a run needs
TIMING = ("seconds", "steps_per_second")
STEPS = 100  # mean number of steps before a fault if the run has several processes; takes about a second
START = 0.2  # share of the faults that come before the first step


@dataclasses.dataclass
class Tried:
    """One fault: its name, its run, the step at which the disturbed process had started, and what went wrong,
    or ""."""

    name: str
    run: int
    step: int = 0
    problem: str = ""


def main(others: Sequence[str]) -> int:
    """Runs the campaign; returns the exit code."""
    given = commandline.split(sys.argv)
    command.refuse_others(others)
    require(FLAGS.workdir, "--workdir is missing; give a folder for the campaign.")
    require(FLAGS.minutes or FLAGS.faults, "give --minutes, the duration, or --faults, the number of faults.")
    require(sys.platform == "linux", f"this needs Linux, but the platform is {sys.platform}.")
    workdir = make_folder(FLAGS.workdir)
    fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    line = lambda folder: run_command(given.file or "configs/digits.py", folder, [*fields, *given.args])
    print("the undisturbed run", flush=True)
    whole = Target(
        line(workdir / "undisturbed"), workdir / "undisturbed", workdir / "undisturbed.txt", FLAGS.processes
    )
    whole.start()
    if any(code != 0 for code in whole.wait()):
        raise Failed(f"the undisturbed run has failed: see {workdir / 'undisturbed.txt'}")
    expected = contents(whole.workdir)
    tried: list[Tried] = []
    try:
        campaign(line, workdir, expected, tried)
    except KeyboardInterrupt:
        print("stopped")
    if not tried:
        return 0
    text = table(tried)
    print(text)
    (workdir / "faults.md").write_text(text)
    write_csv(workdir / "faults.csv", [dataclasses.asdict(one) for one in tried])
    plot(workdir, tried)
    print(f"{workdir}: faults.md, faults.csv, faults.png")
    return 1 if any(one.problem for one in tried) else 0


def campaign(line: Any, workdir: pathlib.Path, expected: Any, tried: list[Tried]) -> None:
    """Disturbs one run after another until there are enough faults or the time is up."""
    draw = random.Random(FLAGS.seed)
    until = time.monotonic() + 60 * FLAGS.minutes if FLAGS.minutes else None
    enough = lambda: len(tried) >= (FLAGS.faults or 10**9) or until is not None and time.monotonic() > until
    number = 0
    with tqdm(total=FLAGS.faults, unit="fault", disable=None) as bar:
        while not enough():
            folder = workdir / "run"
            shutil.rmtree(folder, ignore_errors=True)
            target = Target(line(folder), folder, workdir / f"run-{number}.txt", FLAGS.processes)
            target.mounted = mount(folder, ROOM)
            before = len(tried)
            try:
                disturb(target, draw, number, tried, enough, bar)
                differs = difference(expected, contents(folder))
                if differs:
                    shutil.copytree(folder, workdir / f"lost-{number}", dirs_exist_ok=True)
                for one in tried[before:]:
                    one.problem = one.problem or differs
            finally:
                target.kill()
                if target.mounted:
                    unmount(folder)
            number += 1


def disturb(
    target: Target, draw: random.Random, number: int, tried: list[Tried], enough: Any, bar: Any
) -> None:
    """Disturbs and resumes one run until it ends by itself."""
    newest = 0  # the step of the newest intact checkpoint
    last: Tried | None = None
    while True:
        target.start()
        if not enough():
            wait_for_moment(target, draw)
        begun = target.begun()
        if last and begun is not None:
            check(last, begun, newest)
            last = None
        if enough():
            break
        if not target.runs():
            break
        fault = choose(target, draw, len(tried))
        before = max(target.whole(), default=0)
        problem = fault(target, draw)
        if all(process.poll() == 0 for process in target.processes):
            break  # the run had ended before the fault
        if begun is None and target.begun() is not None and last:
            check(last, target.begun() or 0, newest)
        if "Traceback" in target.output():
            problem = problem or "a traceback"
        newest = max(target.whole(), default=0)
        if newest < before and fault.__name__ != "damage":
            problem = problem or f"the checkpoint of step {before} is gone"
        last = Tried(fault.__name__.replace("_", " "), number, target.begun() or 0, problem)
        tried.append(last)
        bar.update()
        lost = f"lost {sum(bool(one.problem) for one in tried)}"
        bar.set_postfix_str(lost)
        if bar.disable and len(tried) % 10 == 0:
            print(f"{len(tried)} faults, {lost}", flush=True)
    codes = target.wait()
    begun = target.begun()
    if last and begun is not None:
        check(last, begun, newest)
    if any(code != 0 for code in codes) and tried:
        tried[-1].problem = tried[-1].problem or f"the run does not end: exit codes {codes}"


def check(fault: Tried, begun: int, newest: int) -> None:
    """Records a problem if training resumed after a fault from another step than the newest checkpoint's."""
    if begun != newest:
        fault.problem = fault.problem or f"resumed from step {begun}, not {newest}"


def wait_for_moment(target: Target, draw: random.Random) -> None:
    """Waits for a random time: before the first step, or within a few seconds after it."""
    early = draw.random() < START
    until = time.monotonic() + draw.uniform(0.0, 5.0)
    while target.runs() and time.monotonic() < until and (early or target.begun() is None):
        time.sleep(0.01)
    if early:
        return
    while target.runs() and target.begun() is None:
        time.sleep(0.01)
    if len(target.processes) > 1:  # in that case, the first steps take seconds and the others almost none
        step = (target.begun() or 0) + draw.expovariate(1.0 / STEPS)
        while target.runs() and target.step() < step:
            time.sleep(0.01)
    until = time.monotonic() + draw.expovariate(1.0)
    while target.runs() and time.monotonic() < until:
        time.sleep(0.01)


def choose(target: Target, draw: random.Random, count: int) -> Fault:
    """The next fault: two SIGKILLs, then one of the others in turn."""
    if len(target.processes) > 1:
        return draw.choice(OF_MANY)
    if count % 3 < 2:
        return draw.choice(KILLS)
    others = [fault for fault in OTHERS if target.mounted or fault not in NEEDS_MOUNT]
    return others[count // 3 % len(others)]


def contents(workdir: pathlib.Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Every array of the newest checkpoint by name, and the lines of metrics.jsonl without times."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    if not steps:
        return {}, []
    path = (workdir / "checkpoints" / str(max(steps)) / "state").absolute()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        like = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=here), saved)
        tree = checkpointer.restore(path, like)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {jax.tree_util.keystr(name): np.asarray(value).tobytes() for name, value in leaves}
    rows = read_metrics(workdir / "metrics.jsonl")
    return arrays, [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def difference(expected: Any, found: Any) -> str:
    """The difference between the contents of two runs, or ""."""
    arrays = [name for name in expected[0] if found[0].get(name) != expected[0][name]]
    if arrays:
        return f"other arrays at the end: {', '.join(arrays[:3])}"
    return "" if expected[1] == found[1] else "other numbers in metrics.jsonl"


def table(tried: Sequence[Tried]) -> str:
    """Markdown: the number of faults of each kind that were tried, survived and lost."""
    names = sorted({one.name for one in tried}, key=lambda name: (not name.startswith("kill"), name))
    rows = [(name, [one for one in tried if one.name == name]) for name in names] + [("all", list(tried))]
    cells = [
        [
            name,
            str(len(some)),
            str(sum(not one.problem for one in some)),
            str(sum(bool(one.problem) for one in some)),
        ]
        for name, some in rows
    ]
    text = markdown_table(["fault", "tried", "survived", "lost"], cells)
    ends = len({one.run for one in tried})
    text += f"\n\n{ends} runs, {FLAGS.processes} process(es) each.\n"
    problems = [
        f"run {one.run}, {one.name}, step {one.step}: {one.problem}\n" for one in tried if one.problem
    ]
    return text + "".join(problems)


def plot(workdir: pathlib.Path, tried: Sequence[Tried]) -> None:
    """Plots, for each fault, the step at which the disturbed process had started."""
    from vdm.reporting.figures import new_figure

    figure, axes = new_figure(1, 1, (9, 3.5))
    names = sorted({one.name for one in tried}, key=lambda name: (not name.startswith("kill"), name))
    for index, name in enumerate(names):
        some = [(number, one.step) for number, one in enumerate(tried) if one.name == name]
        axes.plot(*zip(*some), "os^vDPX*<"[index % 9], ms=4, label=name)
    lost = [(number, one.step) for number, one in enumerate(tried) if one.problem]
    if lost:
        axes.plot(*zip(*lost), "o", ms=9, mfc="none", color="red", label="lost")
    axes.set(
        xlabel="fault",
        ylabel="step at which this start began",
        title=f"{len(tried)} faults, {len(lost)} lost",
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    save_figure(figure, workdir, "faults")


if __name__ == "__main__":
    command.main(__doc__, FLAGS, main, commandline.split(sys.argv).rest)
