import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseq import ops, reference, testing
from sparseq.reference import scale_shape

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
raw = torch.ops.sparseq


@dataclass
class Case:
    """One call: x in some layout, a grid, and a gradient."""

    layout: str
    x: torch.Tensor
    grad: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    quant_min: int
    quant_max: int
    axis: int | None
    group_size: int | None

    @property
    def grid(self):
        return (self.scale, self.zero_point, self.quant_min, self.quant_max, *self.grouping)

    @property
    def grouping(self):
        return self.axis, self.group_size

    def __repr__(self):
        zero = None if self.zero_point is None else self.zero_point.dtype
        return (
            f"{self.layout} {self.x.dtype} {tuple(self.x.shape)} "
            f"[{self.quant_min}, {self.quant_max}] "
            f"axis={self.axis} group_size={self.group_size} zero_point={zero}"
        )


@st.composite
def quant_range(draw):
    bits, signed = draw(st.integers(2, 8)), draw(st.booleans())
    narrow = int(draw(st.booleans()))
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return narrow, 2**bits - 1


@st.composite
def cases(draw, empty=True):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))
    dim = draw(st.integers(0, 4))
    size = st.integers(0 if empty else 1, 9)
    shape = [draw(size) for _ in range(dim)]
    if dim and draw(st.booleans()):
        shape[-1] = draw(st.integers(1, 67))
    axis = group_size = None
    kind = draw(st.sampled_from(("tensor", "axis", "group")))
    if dim and kind == "axis":
        axis = draw(st.integers(-dim, dim - 1))
    elif dim and kind == "group":
        axis = draw(st.sampled_from((None, 0, -1)))
        group_size = draw(st.integers(1, 20))
        shape[-1] = group_size * draw(st.integers(1, 4))
    x = torch.randn(shape, generator=generator) * draw(st.sampled_from((0.1, 1.0, 100.0)))
    quant_min, quant_max = draw(quant_range())
    grid = scale_shape(tuple(shape), axis, group_size)
    step = draw(st.sampled_from((0.01, 0.5, 1 / 3, 3.7e-5)))
    scale = step * (0.5 + torch.rand(grid, generator=generator))
    if draw(st.booleans()) and x.numel():  # edge values at random places
        edges = testing.edge_values(torch.float32, float(scale.flatten()[0]))
        where = torch.randint(x.numel(), (min(x.numel(), 12),), generator=generator)
        picked = torch.randint(len(edges), where.shape, generator=generator)
        x.view(-1)[where] = edges[picked]
    zero_point = None
    zeros = draw(
        st.sampled_from(("none", "int32", "float32") if quant_min <= 0 else ("int32", "float32"))
    )
    if zeros != "none":
        zero_point = torch.randint(
            quant_min, quant_max + 1, grid, generator=generator, dtype=torch.int32
        )
    if zeros == "float32":
        zero_point = zero_point.float() + torch.rand(grid, generator=generator) * 4 - 2
    x = x.to(dtype)
    arranged = list(testing.layouts(x))
    layout, x = arranged[draw(st.integers(0, len(arranged) - 1))]
    grad = torch.randn(shape, generator=generator).to(dtype)
    arranged = [g for name, g in testing.layouts(grad) if name != "expanded"]
    grad = arranged[draw(st.integers(0, len(arranged) - 1))]
    return Case(layout, x, grad, scale, zero_point, quant_min, quant_max, axis, group_size)


def arranged_like(x, group_size, dtype):
    """What the strides of a result should be."""
    if group_size is not None:
        return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format)
    return torch.empty_like(x, dtype=dtype)


def assert_laid_out(y, case):
    like = arranged_like(case.x, case.group_size, y.dtype)
    testing.assert_equal(torch.zeros_like(y), torch.zeros_like(like), strides=True)


def whole(zero_point, quant_min, quant_max):
    """A float zero point as the integers it stands for."""
    if zero_point is None or zero_point.dtype == torch.int32:
        return zero_point
    return zero_point.round().clamp(quant_min, quant_max).int()


@given(cases())
@settings(max_examples=300)
def test_forward_equals_reference(case):
    q_wanted = reference.quantize(case.x, *case.grid)
    y_wanted = reference.fake_quantize(case.x, *case.grid)
    zero_point = whole(case.zero_point, case.quant_min, case.quant_max)
    for name in testing.every_isa():
        message = f"{name} {case}"
        q = ops.quantize(case.x, *case.grid)
        testing.assert_equal(q, q_wanted, message=message)
        y = ops.fake_quantize(case.x, *case.grid)
        testing.assert_equal(y, y_wanted, message=message)
        assert_laid_out(q, case)
        assert_laid_out(y, case)
        back = ops.dequantize(
            q,
            case.scale,
            zero_point,
            axis=case.axis,
            group_size=case.group_size,
            dtype=case.x.dtype,
        )
        testing.assert_equal(back, y, message=f"dequantize {message}")


@given(cases())
@settings(max_examples=200)
def test_dequantize_equals_reference(case):
    """Over integers that quantize would not give for this grid too, and into every dtype."""
    dtype = torch.int8 if case.quant_min < 0 else torch.uint8
    info = torch.iinfo(dtype)
    q = torch.randint(info.min, info.max + 1, case.x.shape).to(dtype)
    arranged = dict(testing.layouts(q))
    q = arranged.get(case.layout, q)
    for out in DTYPES:
        wanted = reference.dequantize(q, case.scale, case.zero_point, *case.grouping, out)
        for name in testing.every_isa():
            y = ops.dequantize(
                q,
                case.scale,
                case.zero_point,
                axis=case.axis,
                group_size=case.group_size,
                dtype=out,
            )
            testing.assert_equal(y, wanted, message=f"{name} {case}")


@given(cases())
@settings(max_examples=200)
def test_straight_through_backward_equals_reference(case):
    wanted = reference.fake_quantize_backward(case.grad, case.x, *case.grid)
    for name in testing.every_isa():
        got = raw.fake_quantize_backward(case.grad, case.x, *case.grid)
        testing.assert_equal(got, wanted, message=f"{name} {case}")
        assert_laid_out(got, case)


def terms(case):
    """The sizes of what is summed for one scale: a bound on the rounding of the sum."""
    spread = [
        None
        if v is None
        else reference.expand_channels(v.float(), case.x, *case.grouping)
        .expand(case.x.shape)
        .reshape(-1)
        for v in (case.scale, case.zero_point)
    ]
    _, by_scale, by_zero = reference.fake_quantize_learned_backward(
        case.grad.reshape(-1), case.x.reshape(-1), *spread, case.quant_min, case.quant_max, None, 1
    )
    sums = []
    for each in (by_scale, by_zero):
        rows = each.reshape(case.x.shape).double().abs()
        total = reference.affine._sum_channels(rows, *case.grouping)
        sums.append(total.reshape(case.scale.shape))
    return sums


@given(cases(), st.sampled_from((1.0, 0.0123)))
@settings(max_examples=200)
def test_learned_backward_matches_reference(case, factor):
    wanted = reference.fake_quantize_learned_backward(case.grad, case.x, *case.grid, factor)
    bounds = terms(case)
    first = None
    for name in testing.every_isa():
        got = raw.fake_quantize_learned_backward(case.grad, case.x, *case.grid, factor)
        testing.assert_equal(got[0], wanted[0], message=f"{name} {case}")
        assert_laid_out(got[0], case)
        for value, exact, bound in zip(got[1:], wanted[1:], bounds, strict=True):
            assert value.shape == exact.shape == case.scale.shape and value.dtype == torch.float32
            error = (value.double() - exact.double()).abs()
            assert bool((error <= 1e-6 * factor * bound + 1e-37).all()), f"{name} {case}: {error}"
        first = got if first is None else first
        for value, same in zip(got, first, strict=True):
            testing.assert_equal(value, same, message=f"ISAs differ: {name} {case}")


@given(cases(empty=False))
@settings(max_examples=200)
def test_minmax_equals_reference(case):
    wanted = reference.minmax(case.x, *case.grouping)
    for name in testing.every_isa():
        got = ops.minmax(case.x, *case.grouping)
        for value, exact in zip(got, wanted, strict=True):
            # + 0.0: which zero is the least of -0 and +0 is left open
            testing.assert_equal(value + 0.0, exact + 0.0, message=f"{name} {case}")


def same_bits(a, b):
    """Whether two tensors hold the same bits; a NaN may be any NaN."""
    bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
    equal = (a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())
    return a.dtype == b.dtype and a.shape == b.shape and bool(equal.all())


@given(cases(empty=False))
@settings(max_examples=300)
def test_observed_is_the_two_ops(case):
    """Bit for bit, the sign of a zero included: they share one order of comparisons."""
    for name in testing.every_isa():
        y, *ends = ops.fake_quantize_observed(case.x, *case.grid)
        testing.assert_equal(y, reference.fake_quantize(case.x, *case.grid), message=str(case))
        assert_laid_out(y, case)
        for got, wanted in zip(ends, ops.minmax(case.x, *case.grouping), strict=True):
            assert same_bits(got, wanted), f"{name} {case}"
        for got, exact in zip(ends, reference.minmax(case.x, *case.grouping), strict=True):
            testing.assert_equal(got + 0.0, exact + 0.0, message=f"{name} {case}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_length(isa, dtype):
    """Vector bodies and tails, around each edge value in turn."""
    edges = testing.edge_values(dtype, 0.25)
    for length in range(1, 68):
        x = edges.repeat(4)[length % 7 :][:length]
        grad = torch.randn(length).to(dtype)
        for scale, zero, axis in (
            (torch.tensor(0.25), torch.tensor(3, dtype=torch.int32), None),
            (torch.rand(length) + 0.1, None, 0),
        ):
            grid = (scale, zero, -128, 127, axis, None)
            message = f"{length} axis {axis}"
            testing.assert_equal(
                ops.quantize(x, *grid), reference.quantize(x, *grid), message=message
            )
            testing.assert_equal(
                ops.fake_quantize(x, *grid), reference.fake_quantize(x, *grid), message=message
            )
            testing.assert_equal(
                raw.fake_quantize_backward(grad, x, *grid),
                reference.fake_quantize_backward(grad, x, *grid),
                message=message,
            )
            got = raw.fake_quantize_learned_backward(grad, x, *grid, 1.0)
            wanted = reference.fake_quantize_learned_backward(grad, x, *grid)
            testing.assert_equal(got[0], wanted[0], message=message)
            for value, exact in zip(got[1:], wanted[1:], strict=True):
                torch.testing.assert_close(value, exact, rtol=2e-6, atol=1e-4, msg=message)
        clean = torch.randn(length).to(dtype)
        for value, exact in zip(ops.minmax(clean), reference.minmax(clean), strict=True):
            testing.assert_equal(value, exact, message=f"{length}")
        for axis in (None, 0):
            grid = (torch.full((length,) if axis == 0 else (), 0.02), None, -128, 127, axis)
            wanted = reference.fake_quantize_observed(clean, *grid)
            for value, exact in zip(ops.fake_quantize_observed(clean, *grid), wanted, strict=True):
                testing.assert_equal(value, exact, message=f"{length} axis {axis}")


def test_rounds_half_to_even_and_saturates(isa):
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, 1e38, float("inf"), float("nan")])
    q = ops.quantize(x, 1.0, 2, -128, 127)
    assert q.tolist() == [2, 4, 4, 2, 0, 127, -128, 127, 127, 2]
    q = ops.quantize(x, 1.0, 2, 0, 255)
    assert q.tolist() == [2, 4, 4, 2, 0, 255, 0, 255, 255, 2]
    assert ops.quantize(x, 1.0, None, -127, 127)[6] == -127


def test_division_is_true_division(isa):
    """x * (1 / s) would round some of these halfway cases to another integer."""
    scale = torch.tensor(0.3)
    x = torch.arange(-250, 250) * (scale / 2)
    wanted = torch.from_numpy((x.numpy() / scale.numpy()).round())
    assert int(((x * (1 / scale)).round() != wanted).sum()) > 5
    testing.assert_equal(ops.quantize(x, scale, None, -127, 127), wanted.to(torch.int8))


@given(
    st.floats(-1e4, 1e4, width=32),
    st.floats(2**-13, 10, width=32),
    st.integers(-128, 127),
)
@settings(max_examples=200)
def test_law_half_a_step_inside_the_range(value, scale, zero):
    """|x - dq(q(x))| <= s / 2 wherever x is in range, and the ends beyond it."""
    for name in testing.every_isa():
        y = float(ops.fake_quantize(torch.tensor([value]), scale, zero, -128, 127))
        low, high = (-128 - zero) * scale, (127 - zero) * scale
        inside = min(max(value, low), high)
        assert abs(inside - y) <= scale / 2 + 1e-6 * max(abs(inside), abs(y), scale), name


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_every_integer_comes_back(isa, bits, signed):
    """quantize(dequantize(q)) = q, and fake_quantize keeps what is on the grid."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    q = torch.arange(low, high + 1).to(torch.int8 if signed else torch.uint8)
    for zero in {low, (low + high) // 2, high}:
        y = ops.dequantize(q, 0.0371, zero)
        testing.assert_equal(ops.quantize(y, 0.0371, zero, low, high), q)
        testing.assert_equal(ops.fake_quantize(y, 0.0371, zero, low, high), y)


LARGE = [
    ((3, 70001), None, None),
    ((7, 40013), 0, None),
    ((50021, 5), 1, None),
    ((50021, 5), 0, None),
    ((4, 19, 41, 43), 1, None),
    ((6, 32768), 0, 128),
    ((8192, 24), -1, 8),
]


@pytest.mark.parametrize(("shape", "axis", "group_size"), LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_tensors_do_not_depend_on_threads_or_isa(shape, axis, group_size, dtype):
    """Enough elements for several threads: all results the same bit for bit, and right."""
    x = torch.randn(shape).to(dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = torch.randn(shape).to(dtype)
    grid = scale_shape(shape, axis, group_size)
    scale = 0.01 + 0.02 * torch.rand(grid)
    zero_point = torch.randint(-50, 50, grid, dtype=torch.int32)
    arguments = (scale, zero_point, -128, 127, axis, group_size)

    def results():
        return (
            ops.quantize(x, *arguments),
            ops.fake_quantize(x, *arguments),
            raw.fake_quantize_backward(grad, x, *arguments),
            *raw.fake_quantize_learned_backward(grad, x, *arguments, 0.5),
            *ops.minmax(x, axis, group_size),
            *ops.fake_quantize_observed(x, *arguments),
        )

    wanted = (
        reference.quantize(x, *arguments),
        reference.fake_quantize(x, *arguments),
        reference.fake_quantize_backward(grad, x, *arguments),
        *reference.fake_quantize_learned_backward(grad, x, *arguments, 0.5),
        *reference.minmax(x, axis, group_size),
        *reference.fake_quantize_observed(x, *arguments),
    )
    bounds = terms(Case("", x, grad, scale, zero_point, -128, 127, axis, group_size))
    first = results()
    for index, (got, exact) in enumerate(zip(first, wanted, strict=True)):
        if index in (4, 5):
            error = (got.double() - exact.double()).abs()
            assert bool((error <= 1e-6 * bounds[index - 4]).all())
        else:
            testing.assert_equal(got, exact, message=f"result {index}")
    for name in testing.every_isa():
        for count in (1, 2, 7):
            with testing.threads(count):
                for index, (got, same) in enumerate(zip(results(), first, strict=True)):
                    testing.assert_equal(got, same, message=f"{name}, {count} threads, {index}")


def test_minmax_of_large_tensors_finds_a_lone_nan(isa):
    x = torch.randn(3, 50021)
    x[1, 40000] = float("nan")
    low, high = ops.minmax(x, 0)
    assert low.isnan().tolist() == high.isnan().tolist() == [False, True, False]
    assert bool(ops.minmax(x)[0].isnan()) and bool(ops.minmax(x.T, 1)[1][1].isnan())
    y, low, high = ops.fake_quantize_observed(x, 0.02, None, -127, 127)
    assert bool(low.isnan()) and bool(high.isnan()) and float(y[1, 40000]) == 0.0


def test_minmax_with_infinities(isa):
    low, high = ops.minmax(torch.tensor([float("inf"), 1.0, float("-inf")]))
    assert (float(low), float(high)) == (-math.inf, math.inf)
    low, high = ops.minmax(torch.full((20, 3), float("inf")), 1)
    assert low.tolist() == high.tolist() == [math.inf] * 3


def test_minmax_gives_no_gradient():
    low, high = ops.minmax(torch.randn(4, requires_grad=True))
    assert not low.requires_grad and not high.requires_grad


@given(st.data(), st.booleans(), st.sampled_from([(7,), (1,), (3, 8), (2, 3, 5), (0, 3), (3, 0)]))
@settings(max_examples=60)
def test_int4_round_trip(data, signed, shape):
    low, high = (-8, 7) if signed else (0, 15)
    dtype = torch.int8 if signed else torch.uint8
    count = torch.Size(shape).numel()
    values = data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    q = torch.tensor(values, dtype=dtype).reshape(shape)
    for name, arranged in testing.layouts(q):
        packed = ops.pack_int4(arranged)
        testing.assert_equal(packed, reference.pack_int4(arranged), message=name)
        assert packed.shape == (*shape[:-1], (shape[-1] + 1) // 2) and packed.dtype == torch.uint8
        back = ops.unpack_int4(packed, shape[-1], signed)
        testing.assert_equal(back, arranged, message=name)
        testing.assert_equal(back, reference.unpack_int4(packed, shape[-1], signed), message=name)


def test_int4_order_of_nibbles():
    q = torch.tensor([1, -2, 3], dtype=torch.int8)
    assert ops.pack_int4(q).tolist() == [1 | (14 << 4), 3]
    assert ops.unpack_int4(torch.tensor([0x8F], dtype=torch.uint8), 2).tolist() == [-1, -8]
    assert ops.unpack_int4(torch.tensor([0x8F], dtype=torch.uint8), 2, signed=False).tolist() == [
        15,
        8,
    ]


def test_int4_of_many_rows():
    q = torch.randint(-8, 8, (3001, 67), dtype=torch.int8)
    packed = ops.pack_int4(q)
    testing.assert_equal(packed, reference.pack_int4(q))
    testing.assert_equal(ops.unpack_int4(packed[:, :], 67), q)
    strided = packed.repeat(1, 2)[:, : packed.shape[1]]
    testing.assert_equal(ops.unpack_int4(strided, 67), q)


def test_numbers_serve_as_scale_and_zero_point():
    x = torch.randn(40)
    tensors = (torch.tensor([0.05]), torch.tensor([3], dtype=torch.int32))
    testing.assert_equal(ops.quantize(x, 0.05, 3, 0, 255), ops.quantize(x, *tensors, 0, 255))
    wide = torch.tensor([3], dtype=torch.int64)
    testing.assert_equal(
        ops.quantize(x, tensors[0], wide, 0, 255), ops.quantize(x, *tensors, 0, 255)
    )


def test_axis_counts_from_the_end_too():
    x, scale = torch.randn(3, 4, 5), torch.rand(3) + 0.1
    wanted = ops.quantize(x, scale, None, -127, 127, 0)
    testing.assert_equal(ops.quantize(x, scale, None, -127, 127, -3), wanted)
    scale = torch.rand(3, 4) + 0.1
    wanted = ops.quantize(x, scale, None, -127, 127, 0, 5)
    testing.assert_equal(ops.quantize(x, scale, None, -127, 127, -3, 5), wanted)


def test_groups_over_a_convolution_weight_cut_each_channel_flattened():
    weight = torch.randn(4, 6, 3, 3)  # 54 elements a channel: three groups of 18
    low, high = ops.minmax(weight, 0, 18)
    flat = weight.reshape(4, 3, 18)
    testing.assert_equal(low, flat.amin(-1))
    testing.assert_equal(high, flat.amax(-1))
    scale = torch.rand(4, 3) + 0.01
    wanted = ops.fake_quantize(weight.reshape(12, 18), scale.flatten(), None, -7, 7, 0)
    got = ops.fake_quantize(weight, scale, None, -7, 7, 0, 18)
    testing.assert_equal(got, wanted.reshape(weight.shape))
    last = weight.contiguous(memory_format=torch.channels_last)
    testing.assert_equal(ops.fake_quantize(last, scale, None, -7, 7, 0, 18), got)


def test_operands_need_not_be_contiguous():
    x, scale = torch.randn(6, 10), torch.rand(20)[::2] + 0.1
    zero_point = torch.randint(-5, 5, (20,), dtype=torch.int32)[::2]
    wanted = reference.quantize(x, scale, zero_point, -128, 127, 1)
    testing.assert_equal(ops.quantize(x, scale, zero_point, -128, 127, 1), wanted)


def test_inputs_are_left_alone():
    x, scale = torch.randn(5, 33), torch.rand(5) + 0.1
    zero_point = torch.tensor([0.3, -500.0, 500.0, float("nan"), 2.5])
    before = x.clone(), scale.clone(), zero_point.clone()
    ops.fake_quantize(x, scale, zero_point, -8, 7, 0)
    raw.fake_quantize_learned_backward(x, x, scale, zero_point, -8, 7, 0, None, 1.0)
    for now, then in zip((x, scale, zero_point), before, strict=True):
        testing.assert_equal(now, then)


def allocated(call):
    """Bytes that a call allocates, all of it, also what it frees again."""
    call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nothing_but_the_output_is_allocated(layout):
    x = torch.randn(8, 16, 32, 32)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    grad, scale = torch.ones_like(x), torch.full((16,), 0.02)
    raw, size = torch.ops.sparseq, x.numel() * 4
    arguments = (x, scale, None, -127, 127, 1, None)
    assert allocated(lambda: raw.fake_quantize(*arguments, 1.0)) == size
    assert allocated(lambda: raw.quantize(*arguments)) == size // 4
    assert allocated(lambda: raw.fake_quantize_backward(grad, *arguments)) == size
    # the learned gradients need partial sums, a few bytes for hundreds of elements
    learned = allocated(lambda: raw.fake_quantize_learned_backward(grad, *arguments, 1.0))
    assert size < learned < 1.05 * size
