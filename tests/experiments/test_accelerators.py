"""Counts in the text of compiled programs, against known numbers; and targets by name."""

import jax
import jax.numpy as jnp
import pytest

from conftest import TINY_FIELDS, make_config, slow
from experiments.accelerators import __main__ as tool, hlo, memory, programs, targets
from vdm.errors import UserError
from vdm.runtime import devices

MATRIX = jax.ShapeDtypeStruct((16, 32), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((32, 32), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((4, 8, 8, 6), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 6, 10), jnp.float32)
LAYOUT = ("NHWC", "HWIO", "NHWC")
CONVOLUTION = 2 * 4 * 8 * 8 * 10 * 9 * 6


def counted(function, *shapes):
    return hlo.count(jax.jit(function).lower(*shapes).compile().as_text())


def convolve(h, kernel):
    return jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


def test_a_product_counts_two_operations_for_each_multiply_add():
    assert counted(jnp.matmul, MATRIX, SQUARE).operations == {"f32": 2 * 16 * 32 * 32}


def test_a_loop_counts_as_often_as_it_turns():
    def power(a, b):
        return jax.lax.fori_loop(0, 7, lambda _, a: jnp.tanh(a @ b), a)

    def nested(a, b):
        return jax.lax.scan(lambda a, _: (power(a, b), None), a, length=5)[0]

    assert counted(power, MATRIX, SQUARE).operations == {"f32": 7 * 2 * 16 * 32 * 32}
    found = counted(nested, MATRIX, SQUARE)
    assert found.operations == {"f32": 35 * 2 * 16 * 32 * 32} and found.unknown_trips == 0
    assert sum(found.kernels.values()) >= 35


def test_a_loop_that_nobody_knows_the_end_of_counts_once():
    def until(a, b):
        return jax.lax.while_loop(lambda a: jnp.sum(a) < 1e3, lambda a: a @ b, a)

    found = counted(until, MATRIX, SQUARE)
    assert found.unknown_trips == 1 and found.operations == {"f32": 2 * 16 * 32 * 32}


def test_a_convolution_and_its_gradients():
    assert counted(convolve, IMAGES, KERNEL).operations == {"f32": CONVOLUTION}

    def gradients(h, kernel):
        return jax.grad(lambda h, kernel: jnp.sum(convolve(h, kernel) ** 2), (0, 1))(h, kernel)

    # Three convolutions of equal cost, except that zeros around a gradient's window are counted too.
    assert 3 * CONVOLUTION <= counted(gradients, IMAGES, KERNEL).operations["f32"] <= 4 * CONVOLUTION


def test_bytes_of_a_sum_of_arrays():
    big = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    assert counted(jnp.add, big, big).moved == pytest.approx(3 * 4e6, rel=0.01)


def test_of_an_array_that_is_read_slice_by_slice_only_the_slices_move():
    many = jax.ShapeDtypeStruct((100, 50_000), jnp.float32)
    of_rows = counted(lambda a: jax.lax.scan(lambda t, row: (t + row, None), jnp.zeros(50_000), a)[0], many)
    assert 2 * 2e7 < of_rows.moved < 6 * 2e7  # 100 rows of 200 kB; the sum is read and written


def test_calls_of_the_host_are_seen():
    def asks(a):
        return jax.pure_callback(lambda a: a, MATRIX, a)

    assert counted(asks, MATRIX).host == 1
    assert counted(jnp.tanh, MATRIX).host == 0


ALL_REDUCE = """HloModule step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (x: f32[8]) -> (f32[8], bf16[4,2]) {
  %x = f32[8]{0} parameter(0)
  %y = bf16[4,2]{1,0} custom-call(%x), custom_call_target="mine"
  %start = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce-start(%x, %y), replica_groups={{0,1}}, to_apply=%add
  ROOT %done = (f32[8]{0}, bf16[4,2]{1,0}) all-reduce-done(%start)
}
"""


def test_a_collective_of_several_arrays_is_one():
    found = hlo.count(ALL_REDUCE)
    assert found.collectives == {"all-reduce": 1} and found.collective_bytes == {"all-reduce": 8 * 4 + 8 * 2}
    assert found.kernels == {"mine": 1}


OF_TPU = """HloModule step, entry_computation_layout={(f32[3,4,5]{2,1,0})->f32[3,4,6]{2,1,0}}

%put (all: f32[9,100], one: f32[1,100], at: s32[]) -> (f32[9,100], f32[100]) {
  %all = f32[9,100]{1,0} parameter(0)
  %one = f32[1,100]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[100]{0} bitcast(%one)
  %updated = f32[9,100]{1,0} dynamic-update-slice(%all, %one, %at, %zero)
  ROOT %both = (f32[9,100]{1,0}, f32[100]{0}) tuple(%updated, %row)
}

ENTRY %main (x: f32[3,4,5], y: bf16[3,5,6], all: f32[9,100], one: f32[1,100], at: s32[]) -> f32[3,4,6] {
  %x = f32[3,4,5]{2,1,0} parameter(0)
  %y = bf16[3,5,6]{2,1,0} parameter(1)
  %all.1 = f32[9,100]{1,0} parameter(2)
  %one.1 = f32[1,100]{1,0} parameter(3)
  %at.1 = s32[] parameter(4)
  %put.1 = (f32[9,100]{1,0}, f32[100]{0}) fusion(%all.1, %one.1, %at.1), kind=kLoop, calls=%put
  %start = ((f32[9,100]{1,0}), f32[2,100]{1,0}, s32[]) slice-start(%all.1), slice={[0:2], [0:100]}
  %done = f32[2,100]{1,0} slice-done(%start)
  %ahead = (f32[9,100]{1,0}, f32[9,100]{1,0}, u32[]) copy-start(%all.1)
  %there = f32[9,100]{1,0} copy-done(%ahead)
  ROOT %z = f32[3,4,6] convolution(%x, %y), dim_labels=0bf_0io->0bf, window={size=3 stride=2 lhs_dilate=3}
}
"""


def test_on_a_tpu_a_stack_of_products_is_a_convolution_that_meets_zeros():
    assert hlo.count(OF_TPU).operations == {"f32": 2 * 3 * 4 * 5 * 6}


def test_on_a_tpu_a_product_can_be_a_convolution_with_a_border_as_wide_as_its_input():
    line = "convolution(%x, %y), dim_labels=0bf_0io->0bf, window={size=3 stride=2 lhs_dilate=3}"
    other = "convolution(%x, %y), dim_labels=bf0_o0i->bf0, window={size=4 pad=3_3}"  # x is 3 × 4 × 1
    text = OF_TPU.replace(line, other).replace("f32[3,4,5]{2,1,0} parameter", "f32[3,4,1]{2,1,0} parameter")
    text = text.replace("bf16[3,5,6]{2,1,0} parameter", "bf16[5,4,4]{2,1,0} parameter")
    text = text.replace("%z = f32[3,4,6]", "%z = f32[3,5,4]")
    assert hlo.count(text).operations == {"f32": 2 * 3 * 4 * 5 * 4}


def test_what_is_sent_ahead_is_read_and_written_once_and_what_is_updated_in_place_not_at_all():
    product = 4 * (3 * 4 * 5 + 3 * 4 * 6) + 2 * 3 * 5 * 6
    row = 4 * 100
    put = row + 4 + 2 * row + row  # reads the row and its index; reads and writes the slice; writes the copy
    assert hlo.count(OF_TPU).moved == product + put + 2 * 2 * row + 2 * 9 * row


@pytest.mark.parametrize(
    ("name", "count"),
    [("v5e:2x2", 4), ("v5p:2x2x1", 4), ("v6e:4x4", 16), ("h100", 1), ("h100:8", 8), ("b200:16", 16)],
)
def test_targets_by_name(name, count):
    found = targets.parse(name)
    assert found.count == count and found.is_gpu == (name[0] in "abh")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("v7:2x2", "the kind of target 'v7:2x2' is 'v7'; accepted: 'v4', 'v5e'"),
        ("h10:8", "Did you mean 'h100'"),
        ("v5e", "has the topology ''; accepted: 2 sizes, such as 'v5e:2x2'"),
        ("v5p:2x2", "accepted: 3 sizes, such as 'v5p:2x2x1'"),
        ("h100:12", "accepted: 1 to 8, or a multiple of 8"),
        ("h100:x", "has 'x' GPUs"),
    ],
)
def test_an_unknown_target_is_refused(name, text):
    with pytest.raises(UserError, match=text):
        targets.parse(name)


# ---- the programs of a config, on CPU devices in place of a target's ---------------------------


class OfCPU(targets.Target):
    def devices(self):
        return jax.devices()[: self.count]


@pytest.mark.parametrize("name", programs.PROGRAMS)
@pytest.mark.parametrize("count", [slow(1), 2])
def test_each_program_is_compiled_and_counted(name, count, monkeypatch):
    config = make_config(
        TINY_FIELDS
        | {"train.batch_size": 8, "train.substeps": 1, "eval.batch_size": 8, "sample.batch_size": 8},
        "configs/digits.py",
    )
    target = OfCPU(f"v5e:1x{count}", "v5e", (1, count))
    monkeypatch.setattr(targets, "parse", lambda _: target)
    found = tool.case(target.name, config, name)
    assert found["host"] == 0 and found["unknown trips"] == 0 and found["images"] == 8 // count
    wanted = {"all-reduce"} if name == "step" and count > 1 else set()
    assert set(found["collectives"]) == wanted
    assert found["float32"] > 0 and found["moved"] > 0
    assert len(tool.row(found | {"dtype": "float32"})) == len(tool.COLUMNS)


def test_a_known_data_set_need_not_be_there():
    split, spec = programs.data_of(make_config({}, "configs/cifar10.py"))
    assert split.size == 50_000 and spec.shape == (32, 32, 3)
    split, spec = programs.data_of(make_config({}, "configs/imagenet64.py"), (64, 64, 3))
    assert split.nbytes == 1_000_000 * 64 * 64 * 3 and spec.shape == (64, 64, 3)


def test_a_batch_that_is_no_multiple_of_the_devices_is_refused():
    config = make_config(TINY_FIELDS | {"train.batch_size": 12}, "configs/digits.py")
    with pytest.raises(
        UserError, match="config.train.batch_size is 12; accepted for v5e:2x4: a multiple of 8, such as 16"
    ):
        programs.compile_for(targets.parse("v5e:2x4"), config, "step")


def test_a_state_that_does_not_fit_is_refused_with_its_largest_array():
    text = "v5e:2x2 has 17.2 GB a device, and 2.8 GB are missing: .* 20.0 GB, of which a takes 4.0 GB.*fsdp"
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    billion = jax.ShapeDtypeStruct((1000, 1000, 1000), jnp.float32, sharding=sharding)
    state = {"a": billion, "b": {"c": billion}, "d": [billion] * 3}
    with pytest.raises(UserError, match=text):
        memory.require_room(targets.parse("v5e:2x2"), "train", (state,), (False,), 128, 0.0)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does():
    """Half of a program of 34.4 GB fits in 17.2 GB; four devices share its arguments."""
    args = ({"image": jax.ShapeDtypeStruct((4, 1), jnp.uint8)},)
    text = "%0 = tensor<64x32x32x128xbf16> %1 = tensor<1024x1024x4096xf32> tensor<i32> tensor<9x9xf8E4M3FN>"
    with pytest.raises(UserError) as refused:
        memory.require_room(targets.parse("v5e:2x2"), "train", args, (True,), 128, 2 * 2**34, lambda: text)
    assert "17.2 GB are missing: 32 images take 34.4 GB, and the arguments 0.0 GB" in str(refused.value)
    assert "the largest array is 1024x1024x4096xf32, of 17.2 GB" in str(refused.value)
    assert "lower config.train.batch_size, to about 63, or" in str(refused.value)


def test_what_the_devices_do_not_share_each_of_them_has():
    params = {"kernel": jax.ShapeDtypeStruct((5, 1000, 1000, 1000), jnp.float32)}
    memory.require_room(targets.parse("h100:8"), "eval", (params,), (False,), 8, 0.0)
    memory.require_room(targets.parse("v5e:4x4"), "eval", (params,), (True,), 16, 0.0)
    with pytest.raises(UserError, match="2.8 GB are missing: the arguments alone take 20.0 GB"):
        memory.require_room(targets.parse("v5e:4x4"), "eval", (params,), (False,), 16, 0.0)


@pytest.mark.parametrize(
    ("message", "bytes_needed"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
         "(522.10G) exceeds available HBM (15.75G).", 522.10 * 2**30),
        ("Ran out of memory in memory space hbm. Used 19.94G of 15.48G hbm.", 19.94 * 2**30),
        ("INTERNAL: something else", None),
    ],
)  # fmt: skip
def test_what_a_compiler_says_of_missing_memory(message, bytes_needed):
    assert memory.of_error(message) == bytes_needed


def test_described_devices_are_those_that_functions_are_mapped_over():
    whole = devices.count()
    with devices.described(jax.devices()[:1]):
        assert devices.count() == 1 and devices.platform() == "cpu"
    assert devices.count() == whole
