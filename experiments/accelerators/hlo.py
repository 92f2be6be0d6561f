"""Counts what a compiled program does, from the text of its optimised HLO.

A computation is counted once per execution. The body of a loop is counted once per iteration, if the number
of iterations is known.
"""

from collections import Counter
from collections.abc import Iterator
import dataclasses
import math
import re

from experiments.accelerators.targets import Chip

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4,
         "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}  # fmt: skip
# Instructions that do no work.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
        "after-all", "partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
               "collective-broadcast")  # fmt: skip
HOST = re.compile(r"callback|MoveToHost|MoveToDevice|Host(?!ed)", re.IGNORECASE)
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO. `shapes` are the (type, sizes) of its results, `inside` is the text in its
    parentheses, and `rest` is the text after them."""

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    kind: str
    operands: tuple[str, ...]
    inside: str
    rest: str
    root: bool

    @property
    def bytes(self) -> float:
        return sum(_bytes(shape) for shape in self.shapes)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The counts of one device in one call.

    Attributes:
      kernels: number of kernel launches and library calls, by kind.
      collectives: number of collective operations, by kind.
      collective_bytes: bytes of their results, by kind.
      host: number of transfers to or from the host, and of host callbacks.
      operations: floating-point operations of matrix products and convolutions, by operand type.
      products: number of matrix products and convolutions in the text, by operand type.
      moved: bytes read and written, if every kernel reads its operands and writes its results.
      copies: number of separate copies and transposes, by kind.
      unknown_trips: number of loops of unknown length; the body of each is counted once.
    """

    kernels: Counter[str]
    collectives: Counter[str]
    collective_bytes: Counter[str]
    host: int
    operations: Counter[str]
    products: Counter[str]
    moved: float
    copies: Counter[str]
    unknown_trips: int

    @property
    def narrow(self) -> float:
        """Operations on 16-bit types."""
        return sum(work for dtype, work in self.operations.items() if dtype in ("bf16", "f16"))

    @property
    def wide(self) -> float:
        """Operations on all other types."""
        return sum(self.operations.values()) - self.narrow

    def seconds(self, chip: Chip) -> tuple[float, float]:
        """The seconds that the operations and the memory traffic take at a chip's peak rates."""
        return self.narrow / chip.bfloat16 + self.wide / chip.float32, self.moved / chip.bandwidth


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line)
        if head:
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            name, shape, kind, rest = match.groups()
            shapes = tuple((t, tuple(map(int, filter(None, s.split(","))))) for t, s in _SHAPE.findall(shape))
            inside, behind = _bracket(rest)
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            current.append(Instruction(name, shapes, kind, operands, inside, behind, "ROOT " in line[:12]))
    return found, entry


def count(text: str) -> Counts:
    """The Counts of a program."""
    computations, entry = parse(text)
    byname = {name: {one.name: one for one in lines} for name, lines in computations.items()}
    kernels: Counter[str] = Counter()
    collectives: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    operations: Counter[str] = Counter()
    products: Counter[str] = Counter()
    copies: Counter[str] = Counter()
    host = unknown = 0
    moved = 0.0
    for name, times, known in walk(computations, entry):
        unknown += not known
        for one in computations[name]:
            kind = one.kind.removesuffix("-start")
            if one.kind in FREE or one.kind.endswith(("-done", "-update")) or _label(one) == "ConcatBitcast":
                continue
            if kind in COLLECTIVES:
                collectives[kind] += times
                sizes[kind] += times * math.ceil(one.bytes)
                continue
            if kind in ("infeed", "outfeed") or "is_host_transfer=true" in one.rest or _calls_host(one):
                host += times
            kernels[_label(one)] += times
            if kind in ("copy", "transpose"):
                copies[kind] += times
            moved += times * _moved(one, byname[name], computations)
            for dtype, work in _work(one, byname[name], computations, byname):
                operations[dtype] += times * work
                products[dtype] += 1
    return Counts(kernels, collectives, sizes, host, operations, products, moved, copies, unknown)


def walk(computations: dict[str, list[Instruction]], entry: str) -> Iterator[tuple[str, int, bool]]:
    """Yields (computation, number of executions, whether that number is known) for each computation outside
    fusions; of a conditional, only the first branch."""
    waiting = [(entry, 1, True)]
    while waiting:
        name, times, known = waiting.pop()
        yield name, times, known
        for one in computations[name]:
            if one.kind == "while":
                body = re.search(r"body=%?([\w.\-]+)", one.rest)
                trips = trip_count(one, computations)
                assert body is not None, one
                waiting.append((body[1], times * (trips or 1), trips is not None))
            elif one.kind == "conditional":
                branch = re.search(r"(?:branch_computations=\{|true_computation=)%?([\w.\-]+)", one.rest)
                assert branch is not None, one
                waiting.append((branch[1], times, True))
            elif one.kind in ("call", "async-start"):
                called = re.search(r"(?:to_apply|calls|called_computation)=%?([\w.\-]+)", one.rest)
                if called:
                    waiting.append((called[1], times, True))


def trip_count(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """The number of iterations of a while loop: the compiler's, or the constant in the loop's condition if it
    has exactly one; otherwise None."""
    said = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.rest)
    if said:
        return int(said[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    lines = computations.get(condition[1], []) if condition else []
    limits = [int(one.inside) for one in lines if one.kind == "constant" and one.inside.isdigit()]
    return limits[0] if len(limits) == 1 else None


def _bracket(text):
    """The text up to the bracket that closes the open one, and the text after it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place], text[place + 1 :]
    return text, ""


def _bytes(shape):
    dtype, sizes = shape
    return BYTES.get(dtype, 1 if dtype.startswith("f8") else 0) * math.prod(sizes)


def _label(one):
    target = re.search(r'custom_call_target="([^"]+)"', one.rest)
    return target[1] if target else re.sub(r"[.\d]+$", "", one.name)


def _calls_host(one):
    target = re.search(r'custom_call_target="([^"]+)"', one.rest)
    return bool(target and HOST.search(target[1]))


def _called(one):
    found = re.search(r"calls=%?([\w.\-]+)", one.rest) if one.kind == "fusion" else None
    return found[1] if found else None


def _moved(one, here, computations):
    """Bytes that an instruction reads and writes. Of a sliced array, only the slice counts."""
    if one.kind in ("copy-start", "slice-start"):  # its results are the source, the destination and a flag
        return 2 * min(filter(None, (_bytes(shape) for shape in one.shapes if shape[1])), default=0.0)
    sizes = [here[name].bytes if name in here else 0.0 for name in one.operands]
    if one.kind in ("dynamic-slice", "slice", "gather"):
        return 2 * one.bytes
    if one.kind == "dynamic-update-slice":
        return 2 * sizes[1]
    body = computations.get(_called(one) or "", [])
    if not body:
        return sum(sizes) + one.bytes
    inside = {line.name: line for line in body}
    parameters = {line.name: int(line.inside) for line in body if line.kind == "parameter"}
    written = one.bytes
    results = {line.name for line in body if line.root}
    results |= {name for line in body if line.root and line.kind == "tuple" for name in line.operands}
    for line in body:
        if line.kind == "dynamic-update-slice" and line.name in results:  # in place
            written += 2 * inside[line.operands[1]].bytes - line.bytes
            if line.operands[0] in parameters:
                sizes[parameters[line.operands[0]]] = 0.0
    for name, place in parameters.items():
        users = [line for line in body if name in line.operands]
        if users and all(line.kind in ("dynamic-slice", "slice", "gather") for line in users):
            sizes[place] = min(sizes[place], sum(line.bytes for line in users))
    return sum(sizes) + max(written, 0.0)


def _work(one, here, computations, byname):
    """(type, floating-point operations) of each matrix product and convolution in an instruction or its
    fusion."""
    called = _called(one)
    if called:
        found = []
        for line in computations[called]:
            found += _work(line, byname[called], computations, byname)
        return found
    operands = [here[name].shapes[0] for name in one.operands if name in here and here[name].shapes]
    target = re.search(r'custom_call_target="([^"]+)"', one.rest)
    if one.kind == "dot" or target and "matmul" in target[1] or target and "gemm" in target[1]:
        axes = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)', one.rest)
        shared = math.prod(operands[0][1][int(axis)] for axis in re.findall(r"\d+", axes[1])) if axes else 1
        return [(operands[0][0], 2 * math.prod(one.shapes[0][1]) * shared)]
    if one.kind == "convolution" or target and "conv" in target[1].lower() and "dim_labels" in one.rest:
        of_input, of_kernel, of_result = re.split(
            r"_|->", re.search(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)", one.rest)[1]
        )
        backward = target[1] if target else ""
        if "BackwardFilter" in backward:
            result, kernel = operands[1], one.shapes[0]
        else:
            result, kernel = operands[0] if "BackwardInput" in backward else one.shapes[0], operands[1]
        out = kernel[1][of_kernel.index("o")]
        work = 2 * math.prod(result[1]) * math.prod(kernel[1]) // max(1, out)
        return [
            (operands[0][0], work * _share_of_window(one, operands[0][1], of_input, result[1], of_result))
        ]
    return []


def _share_of_window(one, given, of_given, result, of_result):
    """The share of a convolution's multiplications that use the input; zero padding of an image counts, too.

    On a TPU, matrix products are compiled to convolutions. A batched product is a convolution along the batch
    axis, dilated so that each position uses only one of its values, or padded by the width of the input.
    """
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    if not window or one.kind != "convolution":
        return 1
    fields = dict(re.findall(r"(\w+)=([\dx_\-]+)", window[1]))
    sizes = fields["size"].split("x")
    of_axes = lambda name, usual: [int(n.split("_")[0]) for n in fields.get(name, usual).split("x")]
    ones, zeros = ("x".join([n] * len(sizes)) for n in "10")
    share = 1.0
    for axis, (size, stride, dilate, spread, pad) in enumerate(
        zip(
            map(int, sizes),
            of_axes("stride", ones),
            of_axes("lhs_dilate", ones),
            of_axes("rhs_dilate", ones),
            of_axes("pad", zeros),
        )
    ):
        places, values = result[of_result.index(str(axis))], given[of_given.index(str(axis))]
        if dilate == 1 and pad < values:
            continue
        at = [place * stride + k * spread - pad for place in range(places) for k in range(size)]
        met = sum(where % dilate == 0 and 0 <= where // dilate < values for where in at)
        share *= met / len(at)
    return share
