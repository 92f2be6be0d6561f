"""Reports the project's speed and correctness on this machine's GPU, in at most nine minutes and offline.

  make gpu DATA=$HOME/tensorflow_datasets
  python -m experiments.on_gpu --data_dir=$HOME/tensorflow_datasets --out=runs/gpu

Runs these parts in order, each in a separate process, so that a part that fails or takes too long does not
end the others:

  steps     times the training step of the models of --sizes in float32 and bfloat16: its rate as a share of
            that of a large matrix product, and its time relative to the estimate from the compiled program
  training  trains the laptop model at width 128 on CIFAR-10 for --train_seconds, and plots its ELBO
  codec     compresses images and recovers them on the GPU, from its own file and from one that the CPU wrote
  tests     tests functions that differ between a GPU and a CPU

Writes report.md, with numbers and logs in the same folder. On a machine without a GPU it runs on the CPU:

  python -m experiments.on_gpu --sizes=laptop --batch_size=8 --width=32 --train_seconds=60 --images=8
"""

from collections.abc import Mapping, Sequence
import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags

from vdm.errors import one_of, require
from vdm.reporting.text import markdown_table
from vdm.sweep import command
from vdm.sweep.output import make_folder, write_json

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "runs/gpu", "Folder of the report.", flag_values=FLAGS)
flags.DEFINE_string(
    "data_dir", "~/tensorflow_datasets", "Folder of CIFAR-10 (docs/guide/data.md).", flag_values=FLAGS
)
flags.DEFINE_float("minutes", 9.0, "Time limit for all parts together.", flag_values=FLAGS)
flags.DEFINE_list("sizes", ["laptop", "small", "paper"], "Models whose steps are timed.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 128, "Batch size of the steps and of the training.", flag_values=FLAGS)
flags.DEFINE_integer("width", 128, "Width of the laptop model.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 5, "Timed calls of each model, of ten steps each on a GPU.", flag_values=FLAGS)
flags.DEFINE_float("train_seconds", 180.0, "Duration of the training.", flag_values=FLAGS)
flags.DEFINE_integer("images", 64, "Number of images that the codec compresses.", flag_values=FLAGS)
flags.DEFINE_list(
    "tests",
    ["nets", "methods", "diffusion/test_decoder.py", "diffusion/test_process.py", "diffusion/test_sampler.py",
     "diffusion/test_model_bound.py"],
    "Files and folders in tests/ to run; none if empty.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool("timing", False, "Run only the part 'steps', in this process.", flag_values=FLAGS)

SIZES: dict[str, tuple[Any, ...]] = {
    "laptop": ("pyramid", 2),
    "small": ("unet", 4, 64),
    "paper": ("unet", 32, 128),
}
DTYPES = ("float32", "bfloat16")
ROOT = pathlib.Path(__file__).resolve().parent.parent
ASIDE = 60.0  # seconds that a part reserves for the later parts
COLUMNS = {
    "case": "model",
    "step": "step, ms",
    "images": "images/s",
    "share": "share of matmul",
    "rate": "matmul, TFLOP/s",
    "roofline": "roofline, ms",
    "over": "step / roofline",
    "kernels": "kernels",
    "compile": "compile, s",
}


def run(others: Sequence[str]) -> int:
    """Runs each part and writes the report; returns 1 if a part did not finish."""
    command.refuse_others(others)
    for name in FLAGS.sizes:
        one_of("--sizes", name, SIZES)
    for name in ("minutes", "batch_size", "width", "steps", "train_seconds", "images"):
        value: Any = FLAGS[name].value
        require(value > 0, f"--{name} is {value}; accepted: a number above 0.")
    wrong = [path for path in FLAGS.tests if not (ROOT / "tests" / path).exists()]
    require(not wrong, f"--tests has {wrong}; accepted: files and folders in tests/, such as nets.")
    folder = make_folder(FLAGS.out).resolve()
    if FLAGS.timing:
        time_steps(folder)
        return 0
    shutil.rmtree(folder / "laptop", ignore_errors=True)
    for name in ("steps.json", "report.md"):
        (folder / name).unlink(missing_ok=True)
    end = time.monotonic() + 60.0 * FLAGS.minutes
    report: list[str] = []
    failed = 0
    for number, (title, part) in enumerate(PARTS.items(), 1):
        print(f"[{number}/{len(PARTS)}] {title}, {end - time.monotonic():.0f} s left", flush=True)
        began = time.monotonic()
        lines = part(folder, end) if end - began > 1 else ["Not started: the time was over."]
        failed += any(line.startswith(("Failed", "Not started", "Stopped")) for line in lines)
        report += [f"## {title}", *lines, f"({time.monotonic() - began:.0f} s)"]
        if number == 1:
            report.insert(0, f"# {read(folder).get('device', 'no device')}, batch {FLAGS.batch_size}")
        (folder / "report.md").write_text("\n\n".join(report) + "\n")
    print(f"{chr(10).join(report)}\n{folder / 'report.md'}")
    return 1 if failed else 0


def read(folder: pathlib.Path) -> dict[str, Any]:
    """steps.json; {} if it does not exist."""
    path = folder / "steps.json"
    return json.loads(path.read_text()) if path.exists() else {}


def process(
    folder: pathlib.Path, name: str, args: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
) -> tuple[int | None, list[str]]:
    """Runs python -m `args` with its output in NAME.log, and stops it after `seconds`.

    Returns the exit code, or None if it was stopped, and the lines of its output.
    """
    log = folder / f"{name}.log"
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *args],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
            cwd=ROOT,
            start_new_session=True,
        )
        code: int | None
        try:
            code = child.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also after Ctrl-C: ends the process and its child processes
            for number, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(patience)
                    break
    return code, [line for line in log.read_text(errors="replace").splitlines() if line.strip()]


def ended(code: int | None, lines: Sequence[str], seconds: float) -> str:
    """A sentence on how an unsuccessful process ended."""
    last = lines[-1] if lines else "no output"
    return (
        f"Stopped after {max(1.0, seconds):.0f} s."
        if code is None
        else f"Failed with exit code {code}: {last}"
    )


# ---- steps ----------------------------------------------------------------------------------------


def steps_part(folder: pathlib.Path, end: float) -> list[str]:
    """The table of the steps, timed in a separate process."""
    left = end - time.monotonic()
    seconds = max(0.4 * left, left - FLAGS.train_seconds - 2 * ASIDE)
    given = [f"--{name}={FLAGS[name].value}" for name in ("batch_size", "width", "steps")]
    args = ["experiments.on_gpu", "--timing", f"--out={folder}", f"--sizes={','.join(FLAGS.sizes)}", *given]
    code, lines = process(folder, "steps", args, seconds)
    cases = read(folder).get("cases", [])
    rows = [[text(name, case[name]) for name in COLUMNS] for case in cases]
    table = [markdown_table(list(COLUMNS.values()), rows)] if rows else []
    return [*table, *([] if code == 0 else [ended(code, lines, seconds)])]


def text(name: str, value: Any) -> str:
    """A cell of the table of steps."""
    if value is None:
        return "–"
    forms = {"case": "{}", "share": "{:.0%}", "images": "{:,.0f}", "kernels": "{:,.0f}", "compile": "{:.0f}"}
    return forms.get(name, "{:.3g}").format(value)


def time_steps(folder: pathlib.Path) -> None:
    """Times each model in each precision, and writes steps.json after each."""
    import jax

    from experiments.accelerators import hlo, targets
    from experiments.speed.benchmark import Case, timed

    device = jax.devices()[0].device_kind
    chip = next((chip for name, chip in targets.GPUS.items() if name in device.lower()), None)
    found: dict[str, Any] = {"device": f"{jax.device_count()} × {device}, JAX {jax.__version__}", "cases": []}
    for size in FLAGS.sizes:
        net, depth, *own = SIZES[size]
        width = own[0] if own else FLAGS.width
        for dtype in DTYPES:
            remat = "dots" if net == "unet" else None
            case = Case(net, depth, width, FLAGS.batch_size, dtype, remat)
            print(case, flush=True)
            began = time.perf_counter()
            seconds: list[float] = []

            def compiled(mapped, args, began=began, seconds=seconds):
                program = mapped.lower(*args).compile()
                seconds.append(time.perf_counter() - began)
                return program

            of = timed(case, FLAGS.steps, compiled)
            counts = hlo.count(of.program.as_text())
            substeps = of.numbers["substeps"]
            roofline = chip and 1e3 * max(counts.seconds(chip)) / substeps
            step = 1e3 * of.numbers["step"]
            found["cases"].append(
                {
                    "size": size,
                    "dtype": dtype,
                    "case": str(case),
                    "step": step,
                    "images": of.numbers["examples/s"],
                    "share": of.numbers["share"],
                    "rate": of.numbers["matmul TFLOP/s"],
                    "roofline": roofline,
                    "over": roofline and step / roofline,
                    "kernels": sum(counts.kernels.values()) / substeps,
                    "compile": seconds[0],
                }
            )
            write_json(folder / "steps.json", found)
            del of
            jax.clear_caches()


# ---- training, codec, tests -----------------------------------------------------------------------


def training_part(folder: pathlib.Path, end: float) -> list[str]:
    """Trains for about --train_seconds, by the measured time per step, and shows the curve."""
    cases = read(folder).get("cases", [])
    known = [case["step"] for case in cases if case["size"] == "laptop" and case["dtype"] == "float32"]
    if not known:
        return ["Not started: the seconds of a step of the laptop model are not known."]
    steps = max(10, int(0.85 * FLAGS.train_seconds / (1e-3 * known[0])) // 10 * 10)
    fields = {
        "data.data_dir": pathlib.Path(FLAGS.data_dir).expanduser().resolve(),
        "model.net.width": FLAGS.width,
        "train.batch_size": FLAGS.batch_size,
        "train.accumulate": 1,
        "train.substeps": 10,
        "train.steps": steps,
        "train.log_every": max(10, steps // 500 * 10),
        "train.eval_every": max(10, steps // 100 * 10),
        "train.checkpoint_every": max(10, steps // 20 * 10),
        "eval.batch_size": FLAGS.batch_size,
        "eval.passes": 3,
        "eval.passes_in_training": 1,
    }
    args = [f"--config.{name}={value}" for name, value in fields.items()]
    args = ["vdm.main", "--config=configs/cifar10_laptop.py", f"--workdir={folder / 'laptop'}", *args]
    seconds = min(1.5 * FLAGS.train_seconds + ASIDE, end - time.monotonic() - ASIDE)
    code, lines = process(folder, "training", args, seconds)
    shown = ["`python -m " + " ".join(args).replace(f"{folder}/", "") + "`"]
    final = folder / "laptop" / "eval.json"
    if code != 0:
        shown.append(ended(code, lines, seconds))
    if final.exists():
        at = next((i for i, line in enumerate(lines) if "bits/dim" in line and "s.e." in line), len(lines))
        shown.append("```\n" + "\n".join(lines[at : at + 12]) + "\n```")
    picture = folder / "laptop" / "elbo.png"
    return [*shown, *(["![ELBO](laptop/elbo.png)"] if picture.exists() else [])]


def codec_part(folder: pathlib.Path, end: float) -> list[str]:
    """Compresses test images on this device and on the CPU, and reads both files on this device."""
    import numpy as np

    from vdm import workdir as workdir_lib
    from vdm.data import source

    workdir = folder / "laptop"
    if not (workdir / "checkpoints").exists():
        return ["Not started: there is no trained model."]
    test = source.load(workdir_lib.read_config(workdir).data).test
    image = test.read(np.arange(min(test.size, FLAGS.images)))["image"]
    np.savez(folder / "images.npz", image=image)
    on_cpu = {"JAX_PLATFORMS": "cpu"}
    shown, failed = [], []
    for maker, env in (("this device", None), ("the CPU", on_cpu)):
        file, back = folder / f"{maker.split()[-1]}.vdm", folder / f"{maker.split()[-1]}.npz"
        file.unlink(missing_ok=True)
        back.unlink(missing_ok=True)
        given = [f"--workdir={workdir}", "--config.codec.timesteps=50"]
        done = codec(
            folder, end, "compress", [*given, f"--input={folder / 'images.npz'}", f"--output={file}"], env
        )
        shown.append(f"- {len(image)} images compressed on {maker}: {done}")
        if not file.exists():
            failed.append(f"Failed: there is no file from {maker}.")
        for anywhere in ("false", "true"):
            reading = [*given, f"--input={file}", f"--output={back}", f"--config.codec.anywhere={anywhere}"]
            if not file.exists() or back.exists():
                continue
            done = codec(folder, end, "decompress", reading, None)
            same = back.exists() and np.array_equal(np.load(back)["image"], image)
            equal = "the images, bit for bit" if same else "not the images"
            shown.append(f"- read on this device, `--config.codec.anywhere={anywhere}`: {equal}. {done}")
            if not same and maker == "this device":  # files of another device may be refused
                failed.append("Failed: this device does not read its own file.")
    return ["\n".join(shown), *failed]


def codec(
    folder: pathlib.Path, end: float, mode: str, args: Sequence[str], env: Mapping[str, str] | None
) -> str:
    """Runs --mode=compress or decompress; returns its last message."""
    seconds = min(90.0, end - time.monotonic())
    code, lines = process(folder, mode, ["vdm.main", f"--mode={mode}", *args], seconds, env)
    lines = [line.replace(f"{folder}/", "") for line in lines]
    return "; ".join(lines[-2 if mode == "compress" else -1 :]) if code == 0 else ended(code, lines, seconds)


def tests_part(folder: pathlib.Path, end: float) -> list[str]:
    """Runs tests on this device, in full precision and with all optimisations."""
    if not FLAGS.tests:
        return ["No tests were selected."]
    if importlib.util.find_spec("pytest") is None:
        return ["No tests were run: pytest is missing; install it by pip install -e '.[dev]'."]
    env = {
        "VDM_TESTS_ON": os.environ.get("JAX_PLATFORMS", ""),
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    paths = [str(ROOT / "tests" / path) for path in FLAGS.tests]
    seconds = end - time.monotonic() - 25.0
    code, lines = process(folder, "tests", ["pytest", "-rf", *paths], seconds, env)
    failed = [line for line in lines if line.startswith("FAILED")]
    shown = "\n".join([*failed[:40], *lines[-1:]])
    return [f"```\n{shown}\n```", *([ended(code, lines, seconds)] if code != 0 else [])]


PARTS = {
    "Training steps": steps_part,
    "Training": training_part,
    "Codec": codec_part,
    "Tests": tests_part,
}


if __name__ == "__main__":
    command.main(__doc__, FLAGS, run)
