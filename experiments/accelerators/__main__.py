"""Memory use and operation counts of a config on TPUs and GPUs, found by compiling for them on any machine.

  pip install -c constraints.txt -e '.[accelerators]'    # the compilers: 1.2 GB on disk
  python -m experiments.accelerators --config=configs/cifar10.py --targets=v5e:2x2,h100:8

Targets are TPU v4, v5e, v5p and v6e with a topology (v5p:2x2x1), and a100, h100, h200 and b200 with the
number of GPUs (h100:8; above 8, in hosts of 8). Each is compiled in a separate process, which takes half a
minute to several minutes. Prints a table and writes it to accelerators.md, and all numbers to
accelerators.json.

All numbers are for one device and one training step, or one call of another program. They are read from the
optimised program, except for "roofline", an estimate: the time of the operations or of the memory traffic,
whichever is longer, at the manufacturer's peak rates.
"""

from collections.abc import Sequence
import functools
import json
import os
import re
import subprocess
import sys
import time
from typing import Any

from absl import flags

from vdm import commandline
from vdm.errors import require
from vdm.reporting.text import markdown_table
from vdm.sweep import command
from vdm.sweep.output import make_folder

FLAGS = flags.FlagValues()
flags.DEFINE_list("targets", ["v5e:2x2", "h100:8"], "Targets of compilation.", flag_values=FLAGS)
flags.DEFINE_list("programs", ["step"], "Any of step, evaluation, sampler.", flag_values=FLAGS)
flags.DEFINE_list("dtypes", [], "Values of config.model.net.dtype; default: its own.", flag_values=FLAGS)
flags.DEFINE_string(
    "shape",
    "",
    "Shape of images without a data set, such as 64x64x3; a million are assumed.",
    flag_values=FLAGS,
)
flags.DEFINE_string("out", "runs/accelerators", "Folder for the output.", flag_values=FLAGS)
flags.DEFINE_string("one", "", "Run one case, in this process: TARGET,PROGRAM.", flag_values=FLAGS)

COLUMNS = {
    "target": "target",
    "program": "program",
    "dtype": "dtype",
    "images": "images per device",
    "memory": "memory, GB (of)",
    "arguments": "arguments, GB",
    "temporary": "temporary, GB",
    "largest": "largest batch per device",
    "collectives": "collectives (MB)",
    "host": "host transfers",
    "operations": "TFLOP: bfloat16, float32",
    "kernels": "kernels",
    "copies": "copies, transposes",
    "moved": "GB moved",
    "roofline": "roofline, s",
    "compile": "trace, compile, s",
}


def case(target_name: str, config: Any, program: str, shape: Any = None) -> dict[str, Any]:
    """All numbers of one program on one target; `shape` as in programs.data_of.

    Raises:
      UserError: the target is unknown, or the program does not fit or compile.
    """
    from experiments.accelerators import hlo, programs, targets  # JAX is imported with the right environment

    target = targets.parse(target_name)
    compiled = programs.compile_for(target, config, program, shape)
    counts, chip, memory = hlo.count(compiled.text), target.chip, compiled.memory
    steps = config.train.substeps if program == "step" else 1
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    whole = arguments + temporary + max(0, results)
    free = chip.memory - (whole - temporary)
    of_operations, of_bytes = counts.seconds(chip)
    return {
        "target": target.name,
        "program": program,
        "parameters": compiled.parameters,
        "images": compiled.images,
        "memory": whole,
        "device memory": chip.memory,
        "arguments": arguments,
        "temporary": temporary,
        "largest": int(free / max(temporary / compiled.images, 1.0)),
        "collectives": {kind: n / steps for kind, n in counts.collectives.items()},
        "collective bytes": {kind: n / steps for kind, n in counts.collective_bytes.items()},
        "host": counts.host / steps,
        "bfloat16": counts.narrow / steps,
        "float32": counts.wide / steps,
        "products": dict(counts.products),
        "kernels": sum(counts.kernels.values()) / steps,
        "kernels by kind": {kind: n / steps for kind, n in counts.kernels.most_common()},
        "copies": {kind: n / steps for kind, n in counts.copies.items()},
        "moved": counts.moved / steps,
        "unknown trips": counts.unknown_trips,
        "seconds of operations": of_operations / steps,
        "seconds of bytes": of_bytes / steps,
        "trace": compiled.seconds[0],
        "compile": compiled.seconds[1],
    }


def row(found: dict[str, Any]) -> list[str]:
    """The table's cells for one case."""
    collectives = ", ".join(
        f"{n:.0f} {kind} ({found['collective bytes'][kind] / 1e6:.1f})"
        for kind, n in found["collectives"].items()
    )
    cells = {
        "target": found["target"],
        "program": found["program"],
        "dtype": found["dtype"],
        "images": str(found["images"]),
        "memory": f"{found['memory'] / 1e9:.2f} ({found['device memory'] / 1e9:.0f})",
        "arguments": f"{found['arguments'] / 1e9:.2f}",
        "temporary": f"{found['temporary'] / 1e9:.2f}",
        "largest": f"{found['largest']:,}" if found["largest"] <= 100_000 else "over 100,000",
        "collectives": collectives or "none",
        "host": f"{found['host']:.0f}",
        "operations": f"{found['bfloat16'] / 1e12:.3f}, {found['float32'] / 1e12:.3f}",
        "kernels": f"{found['kernels']:,.0f}",
        "copies": f"{sum(found['copies'].values()):,.0f}",
        "moved": f"{found['moved'] / 1e9:.2f}",
        "roofline": f"{max(found['seconds of operations'], found['seconds of bytes']):.4f}",
        "compile": f"{found['trace']:.0f}, {found['compile']:.0f}",
    }
    return [cells[name] for name in COLUMNS]


def run(given: commandline.Given, others: Sequence[str]) -> None:
    """Compiles every case, each in a separate process, and writes the table."""
    command.refuse_others(others)
    require(given.file, "--config is missing; give a config file, such as --config=configs/cifar10.py.")
    require(
        re.fullmatch(r"(\d+x\d+x[13])?", FLAGS.shape),
        f"--shape is {FLAGS.shape!r}; accepted: height, width and channels, such as 64x64x3.",
    )
    if FLAGS.one:
        _one(given)
        return
    from experiments.accelerators import programs, targets

    for name in FLAGS.targets:
        targets.parse(name)
    for name in FLAGS.programs:
        require(
            name in programs.PROGRAMS, f"--programs has {name!r}; accepted: {', '.join(programs.PROGRAMS)}."
        )
    folder = make_folder(FLAGS.out)
    cases = [(t, p, d) for p in FLAGS.programs for d in FLAGS.dtypes or [""] for t in FLAGS.targets]
    found, failed = [], []
    for number, (target, program, dtype) in enumerate(cases):
        print(f"[{number + 1}/{len(cases)}] {target}, {program}, {dtype or 'its dtype'} …", flush=True)
        began = time.perf_counter()
        one = [f"--one={target},{program}", f"--shape={FLAGS.shape}", f"--config={given.file}", *given.args]
        one += [f"--config.model.net.dtype={dtype}"] if dtype else []
        line = [sys.executable, "-m", "experiments.accelerators", *one]
        done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        answer = next((text for text in done.stdout.splitlines() if text.startswith("{")), None)
        if answer is None:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("error: ")
            failed.append(f"{target}, {program}, {dtype or 'its dtype'}: {last}")
            print(f"  failed after {time.perf_counter() - began:.0f} s: {last}", flush=True)
            continue
        found.append(json.loads(answer))
    if found:
        table = markdown_table(list(COLUMNS.values()), [row(one) for one in found])
        (folder / "accelerators.md").write_text(table + "\n")
        (folder / "accelerators.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{table}\n{folder / 'accelerators.md'}, {folder / 'accelerators.json'}")
    require(not failed, f"{len(failed)} of {len(cases)} failed: {' | '.join(failed)}")


def _one(given: commandline.Given) -> None:
    """Prints the numbers of --one as a line of JSON."""
    from vdm import config as config_lib

    target, program = FLAGS.one.split(",")
    config = commandline.apply(config_lib.load(given.file), given.args)
    if "dtype" in config.optimizer and "optimizer.dtype" not in commandline.fields_of(given.args):
        config.optimizer.dtype = config.model.net.dtype
    shape = tuple(map(int, FLAGS.shape.split("x"))) if FLAGS.shape else None
    print(
        json.dumps(case(target, config, program, shape) | {"dtype": config.model.net.get("dtype", "float32")})
    )


if __name__ == "__main__":
    arguments = commandline.split(sys.argv)
    command.main(__doc__, FLAGS, functools.partial(run, arguments), arguments.rest)
