"""What INT8 products do before and after the sum, against the reference, bit for bit."""

import random

import pytest
import torch

from sparseq import ops, reference, sparse, testing
from sparseq.program import ACTIVATIONS
from sparseq.reference.functions import activate

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BYTES = (torch.int8, torch.uint8)
nan, inf = float("nan"), float("inf")


def byte_values(shape, dtype):
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape).to(dtype)


def one(value, dtype=torch.float32):
    return torch.tensor([value], dtype=dtype)


def zero_in(rng, low, high):
    return rng.choice((None, one(rng.randint(max(low, -128), high), torch.int32)))


def values(rng, shape, dtype):
    """Floats that a grid of 0.1 has to round, with some that it cannot hold."""
    x = torch.randn(shape) * rng.choice((0.01, 1, 9))
    if rng.random() < 0.3:
        x = (x * 20).round() * 0.05  # halfway between two integers
    if rng.random() < 0.3 and x.numel():
        edges = torch.tensor([nan, inf, -inf, 3e38, -3e38, 1e-40, -0.0])
        places = torch.randint(x.numel(), (7,))
        x.view(-1)[places] = edges
    return x.to(dtype)


def strided(rng, x):
    """The same values somewhere else in memory."""
    arranged = [y for name, y in testing.layouts(x) if name != "expanded"]
    return rng.choice(arranged)


def input_case(rng, shape, dynamic):
    """X and the arguments that say what its integers mean."""
    dtype = rng.choice((*FLOATS, *FLOATS, *BYTES))
    if dtype in BYTES:
        x, keywords = byte_values(shape, dtype), {}
        low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        if rng.random() < 0.2:
            x.fill_(rng.choice((low, high)))
        zero = zero_in(rng, low, high)
        if rng.random() < 0.5:
            keywords["x_scale"] = one(rng.uniform(0.001, 2))
        return x, zero, keywords
    ranges = [(-128, 127), (-127, 127), (0, 255), (-8, 7), (0, 15), (-1, 1), (0, 1)]
    low, high = rng.choice(ranges)
    keywords = {"x_min": low, "x_max": high}
    if dynamic and rng.random() < 0.5:
        return values(rng, shape, dtype), None, keywords
    keywords["x_scale"] = one(rng.choice((0.1, 0.05, rng.uniform(0.001, 1))))
    return values(rng, shape, dtype), zero_in(rng, low, high), keywords


def output_case(rng, shape):
    """Activation, residual, and what y is stored as."""
    keywords = {"activation": rng.choice(ACTIVATIONS)}
    kind = rng.choice((None, *FLOATS, *BYTES))
    if kind in FLOATS:
        keywords["residual"] = values(rng, shape, kind)
    elif kind in BYTES:
        info = torch.iinfo(kind)
        keywords["residual"] = byte_values(shape, kind)
        keywords["residual_scale"] = one(rng.uniform(0.01, 1))
        keywords["residual_zero"] = zero_in(rng, info.min, info.max)
    if kind is not None:
        keywords["residual"] = strided(rng, keywords["residual"])
    dtype = keywords["dtype"] = rng.choice((None, *FLOATS, *BYTES, *BYTES))
    if dtype in BYTES:
        ranges = [(-128, 127), (-127, 127), (-8, 7)] if dtype == torch.int8 else [(0, 255), (0, 15)]
        low, high = rng.choice(ranges)
        keywords |= {"y_scale": one(rng.choice((0.5, rng.uniform(0.01, 3)))), "y_min": low}
        keywords |= {"y_max": high, "y_zero": zero_in(rng, low, high)}
    return keywords


def weight_case(rng, shape, groups=1):
    """A weight for either path: bytes, perhaps 2:4; zero points; tiles where they serve."""
    kind = rng.choice(("full", "ends", "2:4", "2:4", "unsigned", "zero points"))
    weight = byte_values(shape, torch.uint8 if kind == "unsigned" else torch.int8)
    if kind == "ends":
        weight = torch.where(torch.rand(shape) < 0.5, -128, 127).to(torch.int8)
    if kind == "2:4" and shape[1] % 4 == 0:
        weight = weight * sparse.nm_mask(weight.float())
    zero = None
    if kind == "zero points" or (kind == "unsigned" and rng.random() < 0.5):
        info = torch.iinfo(weight.dtype)
        zero = torch.randint(info.min, info.max + 1, (shape[0],), dtype=torch.int32)
    tiles = None
    if kind in ("full", "ends", "2:4") and weight.numel() and rng.random() < 0.7:
        tiles = ops.int8_tiles(weight, groups)
    return weight, zero, tiles


def check(op, x, weight, tiles, positional, windows, keywords, where):
    """The op on every ISA against the reference."""
    wanted = getattr(reference, op)(x, weight, *positional, *windows, **keywords)
    raw = getattr(torch.ops.sparseq, op)
    for name in testing.every_isa():
        if tiles is not None:
            tiles = ops.int8_tiles(weight, windows[3] if windows else 1)
        got = raw(x, weight, *positional, *windows, tiles, **keywords)
        testing.assert_equal(got, wanted, message=f"{where} on {name}")


@pytest.mark.parametrize("seed", range(20))
def test_linear_equals_reference(seed):
    """Depths 1 to 300 in odd steps, with widths, rows, types and layouts drawn anew for each."""
    rng = random.Random(seed)
    for depth in [*range(1 + 2 * seed, 301, 40), rng.randint(1, 64) * 4]:
        outputs, batch = (
            rng.randint(1, 70),
            rng.choice(((), (1,), (7,), (0,), (2, 9), (2, 1, 3, 2))),
        )
        x, x_zero, before = input_case(rng, (*batch, depth), dynamic=True)
        weight, weight_zero, tiles = weight_case(rng, (outputs, depth))
        scale = torch.rand(outputs) * 0.01 + 1e-4
        bias = rng.choice((None, torch.randn(outputs)))
        keywords = before | output_case(rng, (*batch, outputs))
        positional = scale, x_zero, weight_zero, bias
        where = f"{tuple(x.shape)} {x.dtype} {keywords}"
        check("int8_linear", strided(rng, x), weight, tiles, positional, (), keywords, where)


@pytest.mark.parametrize("seed", range(20))
def test_convolution_equals_reference(seed):
    rng = random.Random(seed)
    for _ in range(8):
        groups, inputs, outputs = rng.choice(
            ((1, 0, 0), (1, 0, 0), (2, 0, 0), (rng.randint(2, 70), 1, 1))
        )
        inputs, outputs = inputs or rng.randint(1, 40), outputs or rng.randint(1, 40)
        kernel = rng.choice(((1, 1), (3, 3), (2, 3)))
        stride, padding, dilation = ([rng.randint(a, 2), rng.randint(a, 2)] for a in (1, 0, 1))
        if rng.random() < 0.3:  # an image that is its own matrix
            kernel, stride, padding = (1, 1), [1, 1], [0, 0]
        height, width = (dilation[d] * (kernel[d] - 1) + rng.randint(1, 12) for d in range(2))
        batch = rng.choice((0, 1, 1, 2, 3))
        shape = (batch, groups * inputs, height, width)
        x, x_zero, before = input_case(rng, shape, dynamic=False)
        weight, weight_zero, tiles = weight_case(rng, (groups * outputs, inputs, *kernel), groups)
        windows = (stride, padding, dilation, groups)
        plain = (torch.ones(groups * outputs), None, None, None)
        y = torch.ops.sparseq.int8_conv2d(
            torch.empty(shape, dtype=torch.int8), weight, *plain, *windows
        )
        scale = torch.rand(groups * outputs) * 0.01 + 1e-4
        bias = rng.choice((None, torch.randn(groups * outputs)))
        keywords = before | output_case(rng, y.shape)
        positional = scale, x_zero, weight_zero, bias
        where = f"{tuple(x.shape)} {tuple(weight.shape)} {windows} {x.dtype} {keywords}"
        check("int8_conv2d", strided(rng, x), weight, tiles, positional, windows, keywords, where)


@pytest.mark.parametrize(
    "image", [(1, 64, 24, 20), (2, 130, 9, 31), (3, 3, 33, 40), (2, 512, 3, 3)]
)
def test_whole_images_in_any_order(isa, image):
    """Large enough that several tasks share an image; every way that its memory may run."""
    x = torch.randn(image)
    weight = byte_values((5, image[1], 3, 3), torch.int8)
    windows = ([1, 1], [1, 1], [1, 1], 1)
    grid = {"x_scale": one(0.03), "x_min": -127}
    rest = (torch.full((5,), 1e-3), None, None, None)
    wanted = reference.int8_conv2d(x, weight, *rest, *windows, **grid)
    q = ops.quantize(x, 0.03, None, -127, 127)
    for count in (1, 2, 7):
        with testing.threads(count):
            for layout, arranged in testing.layouts(x):
                if layout == "expanded":
                    continue
                got = torch.ops.sparseq.int8_conv2d(arranged, weight, *rest, *windows, **grid)
                testing.assert_equal(got, wanted, message=f"{layout}, {count} threads")
            for layout, arranged in testing.layouts(q):
                if layout == "expanded":
                    continue
                got = torch.ops.sparseq.int8_conv2d(
                    arranged, weight, *rest, *windows, x_scale=grid["x_scale"]
                )
                testing.assert_equal(got, wanted, message=f"int8 {layout}, {count} threads")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("limits", [(-127, 127), (0, 255)])
def test_threads_do_not_matter(isa, dtype, limits):
    x, weight = torch.randn(200, 530).to(dtype), byte_values((65, 530), torch.int8)
    residual = torch.randn(200, 65)
    keywords = {"x_min": limits[0], "x_max": limits[1], "residual": residual, "activation": "relu6"}
    rest = (torch.rand(65) * 0.01, None, None, torch.randn(65))
    wanted = reference.int8_linear(x, weight, *rest, **keywords)
    for count in (1, 2, 7):
        with testing.threads(count):
            got = torch.ops.sparseq.int8_linear(x, weight, *rest, **keywords)
            testing.assert_equal(got, wanted, message=f"{count} threads")


@pytest.mark.parametrize("out", [*FLOATS, *BYTES])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_fused_layer_equals_the_separate_ops(out, activation, dtype):
    """quantize, int8_linear, add, activation, quantize: the same bits as one call."""
    x, weight = torch.randn(9, 70).to(dtype), byte_values((33, 70), torch.int8)
    scale, bias, residual = torch.rand(33) * 0.01, torch.randn(33), torch.randn(9, 33)
    x_scale, zero = one(0.02), one(-3, torch.int32)
    q = ops.quantize(x, 0.02, -3, -128, 127)
    y = ops.int8_linear(q, weight, scale * x_scale, zero, bias=bias) + residual
    y = activate(y, activation)
    stored = {}
    if out in BYTES:
        low = -128 if out == torch.int8 else 0
        stored = {"y_scale": one(0.05), "y_zero": one(11, torch.int32)}
        wanted = ops.quantize(y, 0.05, 11, low, low + 255)
    else:
        wanted = y.to(out)
    got = ops.int8_linear(
        x, weight, scale, zero, bias=bias, x_scale=x_scale, residual=residual,
        activation=activation, dtype=out, **stored,
    )  # fmt: skip
    testing.assert_equal(got, wanted)


@pytest.mark.parametrize("limits", [(-127, 127), (0, 255), (0, 31)])
def test_rows_have_grids_of_their_own(isa, limits):
    """A row's result does not depend on the others; rows that have no range are 0 or saturate."""
    low, high = limits
    x = torch.stack(
        [
            torch.zeros(40),
            torch.full((40,), 1e-45),
            torch.full((40,), nan),
            torch.tensor([inf] * 20 + [-inf] * 20),
            torch.tensor([3.4e38, -3.4e38] * 20),
            torch.linspace(-1e-30, 3e-30, 40),
            torch.tensor([nan, 5.0] * 20),
            torch.linspace(-1e30, 1.0, 40),
            torch.randn(40).abs(),
            -torch.randn(40).abs(),
        ]
    )
    weight = byte_values((6, 40), torch.int8)
    keywords = {"x_min": low, "x_max": high}
    rest = (torch.rand(6), None, None, None)
    wanted = reference.int8_linear(x, weight, *rest, **keywords)
    got = torch.ops.sparseq.int8_linear(x, weight, *rest, **keywords)
    testing.assert_equal(got, wanted)
    for row in range(len(x)):
        alone = torch.ops.sparseq.int8_linear(x[row], weight, *rest, **keywords)
        testing.assert_equal(alone, wanted[row], message=f"row {row}")
    assert got[0].abs().max() == 0 and got[2].abs().max() == 0


@pytest.mark.parametrize("depth", [70, 33025])
def test_extremes_do_not_saturate(isa, depth):
    """Quantised to the ends of the range: the greatest sums there are."""
    for x_value, limits, zero in (
        (9e9, (0, 255), 0),
        (-9e9, (-128, 127), 127),
        (9e9, (-128, 127), -128),
    ):
        steps = (limits[1] if x_value > 0 else limits[0]) - zero
        for weight_value in (-128, 127):
            x = torch.full((2, depth), x_value)
            weight = torch.full((5, depth), weight_value, dtype=torch.int8)
            y = ops.int8_linear(
                x, weight, torch.ones(5), one(zero, torch.int32), x_scale=one(1.0), x_range=limits
            )
            exact = torch.tensor(steps * weight_value * depth).float()
            testing.assert_equal(y, exact.expand(2, 5).contiguous())


def test_nan_and_infinity_reach_the_output():
    weight, x = torch.zeros(1, 4, dtype=torch.int8), torch.zeros(5, 4, dtype=torch.int8)
    residual = torch.tensor([[nan], [inf], [-inf], [-0.0], [3e38]])
    for activation in ACTIVATIONS:
        y = ops.int8_linear(x, weight, torch.ones(1), residual=residual, activation=activation)
        testing.assert_equal(y, activate(residual + 0.0, activation))
    q = ops.int8_linear(
        x, weight, torch.ones(1), residual=residual, dtype=torch.int8, y_scale=one(0.5),
        y_zero=one(7, torch.int32), y_range=(-127, 127),
    )  # fmt: skip
    assert q.flatten().tolist() == [7, 127, -127, 7, 127]


@pytest.mark.parametrize("x_dtype", [*FLOATS, *BYTES])
def test_large_results_are_recycled_memory_and_equal(x_dtype):
    x = torch.randn(1100, 8).to(x_dtype) if x_dtype in FLOATS else byte_values((1100, 8), x_dtype)
    weight, scale = byte_values((1024, 8), torch.int8), torch.rand(1024)
    wanted = reference.int8_linear(x, weight, scale, None, None, None, x_scale=one(0.1))
    for _ in range(2):
        y = ops.int8_linear(x, weight, scale, x_scale=one(0.1))
        testing.assert_equal(y, wanted, strides=True)
    image = x.view(-1, 8, 11, 10)[:64].contiguous(memory_format=torch.channels_last)
    taps = weight.view(1024, 8, 1, 1)
    y = ops.int8_conv2d(image, taps, scale, x_scale=one(0.1))
    windows = ([1, 1], [0, 0], [1, 1], 1)
    wanted = reference.int8_conv2d(image, taps, scale, None, None, None, *windows, x_scale=one(0.1))
    testing.assert_equal(y, wanted)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_bytes_at_the_end_of_a_page():
    """uint8 rows are read where they lie, unless the kernel would read beyond their page."""
    page = torch.zeros(4 * 4096, dtype=torch.uint8)
    start = -page.data_ptr() % 4096
    weight = byte_values((9, 24), torch.int8)
    for end in (4096, 4095, 4081, 4080, 4079, 2000):
        x = page[start + end - 3 * 24 : start + end].view(3, 24)
        x.copy_(byte_values((3, 24), torch.uint8))
        wanted = reference.int8_linear(x, weight, torch.ones(9), None, None, None)
        testing.assert_equal(ops.int8_linear(x, weight, torch.ones(9)), wanted, message=str(end))


def test_expanded_and_overlapping_inputs(isa):
    weight, taps = byte_values((9, 24), torch.int8), byte_values((5, 4, 3, 3), torch.int8)
    row, image = torch.randn(24), torch.randn(1, 4, 6, 6)
    for x in (
        row.expand(7, 24),
        row[:1].expand(5, 24),
        torch.randn(40).as_strided((9, 24), (1, 1)),
    ):
        for keywords in ({}, {"x_scale": one(0.02)}):
            wanted = reference.int8_linear(x, weight, torch.ones(9), None, None, None, **keywords)
            testing.assert_equal(ops.int8_linear(x, weight, torch.ones(9), **keywords), wanted)
    windows, grid = ([1, 1], [1, 1], [1, 1], 1), {"x_scale": one(0.02)}
    for x in (
        image.expand(3, 4, 6, 6),
        image[:, :1].expand(1, 4, 6, 6),
        image[..., :1].expand(1, 4, 6, 6),
    ):
        wanted = reference.int8_conv2d(x, taps, torch.ones(5), None, None, None, *windows, **grid)
        got = ops.int8_conv2d(x, taps, torch.ones(5), padding=(1, 1), **grid)
        testing.assert_equal(got, wanted)


def fused(x, weight, scale, residual):
    y = ops.int8_linear(x, weight, scale, x_range=(-127, 127), activation="relu")
    z = ops.int8_linear(
        x, weight, scale, x_scale=scale[:1], residual=residual, dtype=torch.uint8, y_scale=scale[:1]
    )
    image = y.reshape(1, -1, 3, 4)[:, : weight.shape[1]]
    taps = weight[:, :, None, None]
    return y, z, ops.int8_conv2d(image, taps, scale, x_scale=scale[:1], dtype=torch.bfloat16)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_in_one_graph(backend):
    operands = (
        torch.randn(12, 6),
        byte_values((8, 6), torch.int8),
        torch.rand(8),
        torch.randn(12, 8),
    )
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    for got, wanted in zip(compiled(*operands), fused(*operands), strict=True):
        testing.assert_equal(got, wanted)


def test_no_gradient_and_no_warning():
    x = torch.randn(3, 6, requires_grad=True)
    y = ops.int8_linear(x, byte_values((4, 6), torch.int8), torch.ones(4))
    assert not y.requires_grad
