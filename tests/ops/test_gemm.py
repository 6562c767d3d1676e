import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseq import ops, reference, sparse, testing

BYTES = (torch.int8, torch.uint8)
SIGNS = [(a, b) for a in BYTES for b in BYTES]


def byte_values(shape, dtype, generator=None):
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape, generator=generator).to(dtype)


def zero_points(count, dtype, generator=None):
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, (count,), generator=generator, dtype=torch.int32)


@st.composite
def operands(draw):
    """Scale, x_zero, weight_zero, bias for some outputs; all but the scale may be missing."""

    def build(outputs, x_dtype, weight_dtype, generator):
        scale = torch.rand(outputs, generator=generator) + 0.01
        x_zero = zero_points(1, x_dtype, generator) if with_x else None
        weight_zero = zero_points(outputs, weight_dtype, generator) if with_weight else None
        bias = torch.randn(outputs, generator=generator) if with_bias else None
        return scale, x_zero, weight_zero, bias

    with_x, with_weight, with_bias = (draw(st.booleans()) for _ in range(3))
    return build


@given(
    st.integers(0, 2**31),
    st.sampled_from(SIGNS),
    st.integers(1, 70),
    st.integers(1, 20),
    st.sampled_from([(), (1,), (5,), (0,), (2, 3)]),
    operands(),
)
@settings(max_examples=150)
def test_linear_equals_reference(seed, signs, depth, outputs, batch, build):
    generator = torch.Generator().manual_seed(seed)
    x = byte_values((*batch, depth), signs[0], generator)
    weight = byte_values((outputs, depth), signs[1], generator)
    rest = build(outputs, *signs, generator)
    wanted = reference.int8_linear(x, weight, *rest)
    for name in testing.every_isa():
        for layout, arranged in testing.layouts(x):
            if layout == "expanded":
                continue
            y = ops.int8_linear(arranged, weight, *rest)
            testing.assert_equal(y, wanted, message=f"{name} {layout}")
            assert y.is_contiguous()
        for layout, arranged in testing.layouts(weight):
            if layout != "expanded":
                y = ops.int8_linear(x, arranged, *rest)
                testing.assert_equal(y, wanted, message=f"{name} weight {layout}")


@pytest.mark.parametrize("signs", SIGNS, ids=str)
def test_every_depth(isa, signs):
    for depth in range(1, 71):
        x, weight = byte_values((3, depth), signs[0]), byte_values((9, depth), signs[1])
        wanted = reference.int8_linear(x, weight, torch.ones(9), None, None, None)
        y = ops.int8_linear(x, weight, torch.ones(9))
        testing.assert_equal(y, wanted, message=f"K = {depth}")


@pytest.mark.parametrize("x_value", [-128, 127, 0, 255])
@pytest.mark.parametrize("weight_value", [-128, -127, 127, 255])
@pytest.mark.parametrize("depth", [70, 33025])
def test_extremes_do_not_saturate(isa, x_value, weight_value, depth):
    """The largest sums there are: what vpmaddubsw would saturate, and what just fits int32."""
    x_dtype = torch.int8 if x_value in (-128, 127) else torch.uint8
    weight_dtype = torch.uint8 if weight_value == 255 else torch.int8
    x = torch.full((2, depth), x_value, dtype=x_dtype)
    weight = torch.full((5, depth), weight_value, dtype=weight_dtype)
    y = ops.int8_linear(x, weight, torch.ones(5))
    exact = torch.tensor(x_value * weight_value * depth, dtype=torch.int64).float()
    testing.assert_equal(y, exact.expand(2, 5).contiguous())


@pytest.mark.parametrize("signs", SIGNS, ids=str)
def test_extreme_zero_points(isa, signs):
    """Every difference at its greatest: |x - zx| = |w - zw| = 255, at the deepest sum."""
    (x_info, weight_info), depth = map(torch.iinfo, signs), 33025
    for x_low, weight_low in ((True, True), (True, False), (False, True), (False, False)):
        x = torch.full((1, depth), x_info.min if x_low else x_info.max, dtype=signs[0])
        weight_value = weight_info.min if weight_low else weight_info.max
        weight = torch.full((5, depth), weight_value, dtype=signs[1])
        x_zero = torch.tensor([x_info.max if x_low else x_info.min], dtype=torch.int32)
        weight_zero = torch.full(
            (5,), weight_info.max if weight_low else weight_info.min, dtype=torch.int32
        )
        y = ops.int8_linear(x, weight, torch.ones(5), x_zero, weight_zero)
        exact = 255 * 255 * depth * (1 if x_low == weight_low else -1)
        assert y.tolist() == [[float(torch.tensor(exact).float())] * 5]


def test_sum_is_rounded_once():
    """int32 to float32, times scale, plus bias: each rounded to float32, in this order."""
    x = torch.full((1, 2000), 127, dtype=torch.int8)
    weight = torch.full((1, 2000), 127, dtype=torch.int8)
    weight[0, 0] = 126
    acc = torch.tensor(127 * 127 * 2000 - 127)
    scale, bias = torch.tensor([1 / 3]), torch.tensor([-0.1])
    wanted = (acc.float() * scale + bias).reshape(1, 1)
    testing.assert_equal(ops.int8_linear(x, weight, scale, bias=bias), wanted)


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    each_in, each_out = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    if draw(st.integers(0, 3)) == 0:  # depthwise
        groups, each_in, each_out = draw(st.integers(1, 20)), 1, 1
    kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    least = [max(1, dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d]) for d in range(2)]
    height, width = (least[d] + draw(st.integers(0, 6)) for d in range(2))
    batch = draw(st.integers(0, 3))
    shapes = (batch, groups * each_in, height, width), (groups * each_out, each_in, *kernel)
    return shapes, (list(stride), list(padding), list(dilation), groups)


@given(st.integers(0, 2**31), st.sampled_from(SIGNS), convolutions(), operands())
@settings(max_examples=200)
def test_convolution_equals_reference(seed, signs, convolution, build):
    (x_shape, weight_shape), arguments = convolution
    generator = torch.Generator().manual_seed(seed)
    x = byte_values(x_shape, signs[0], generator)
    weight = byte_values(weight_shape, signs[1], generator)
    rest = build(weight_shape[0], *signs, generator)
    wanted = reference.int8_conv2d(x, weight, *rest, *arguments)
    for name in testing.every_isa():
        for layout, arranged in testing.layouts(x):
            if layout != "expanded":
                y = ops.int8_conv2d(arranged, weight, *rest, *arguments)
                testing.assert_equal(y, wanted, message=f"{name} {layout}")
        for layout, arranged in testing.layouts(weight):
            if layout != "expanded":
                y = ops.int8_conv2d(x, arranged, *rest, *arguments)
                testing.assert_equal(y, wanted, message=f"{name} weight {layout}")


def test_padding_is_real_zero():
    """A padded tap adds nothing even where zero points are not 0."""
    x = torch.full((1, 1, 1, 1), 7, dtype=torch.uint8)
    weight = torch.arange(1, 10, dtype=torch.int8).reshape(1, 1, 3, 3)
    zero = torch.tensor([7], dtype=torch.int32)
    y = ops.int8_conv2d(x, weight, torch.ones(1), zero, padding=(1, 1))
    assert y.item() == 0.0
    y = ops.int8_conv2d(x, weight, torch.ones(1), zero - 1, padding=(1, 1))
    assert y.item() == 5.0


def test_expanded_input(isa):
    x = byte_values((1, 4, 6, 6), torch.int8).expand(3, 4, 6, 6)
    weight = byte_values((5, 4, 3, 3), torch.int8)
    arguments = ([1, 1], [1, 1], [1, 1], 1)
    wanted = reference.int8_conv2d(x, weight, torch.ones(5), None, None, None, *arguments)
    testing.assert_equal(
        ops.int8_conv2d(x, weight, torch.ones(5), None, None, None, *arguments), wanted
    )


def test_threads_do_not_matter(isa):
    x, weight = byte_values((64, 300), torch.uint8), byte_values((50, 300), torch.int8)
    image, taps = byte_values((3, 16, 20, 21), torch.int8), byte_values((24, 16, 3, 3), torch.int8)
    wanted = reference.int8_linear(x, weight, torch.ones(50), None, None, None)
    pixels = reference.int8_conv2d(
        image, taps, torch.ones(24), None, None, None, [1, 1], [1, 1], [1, 1], 1
    )
    for count in (1, 2, 7):
        with testing.threads(count):
            testing.assert_equal(ops.int8_linear(x, weight, torch.ones(50)), wanted)
            testing.assert_equal(
                ops.int8_conv2d(image, taps, torch.ones(24), padding=(1, 1)), pixels
            )


def test_no_outputs_and_no_rows():
    empty = torch.empty(0, 6, dtype=torch.int8)
    assert ops.int8_linear(byte_values((3, 6), torch.int8), empty, torch.ones(0)).shape == (3, 0)
    y = ops.int8_linear(empty, byte_values((4, 6), torch.int8), torch.ones(4))
    assert y.shape == (0, 4) and y.dtype == torch.float32
    bare = torch.empty(2, 0, dtype=torch.int8)  # K = 0: only the bias is left
    y = ops.int8_linear(
        bare, torch.empty(3, 0, dtype=torch.int8), torch.ones(3), bias=torch.ones(3)
    )
    testing.assert_equal(y, torch.ones(2, 3))


def tiled_weights(kind, depth, outputs):
    """Weights that put every kind of block to the test: adversarial, bell-shaped, 2:4."""
    weight = {
        "full": lambda: byte_values((outputs, depth), torch.int8),
        "ends": lambda: torch.where(torch.rand(outputs, depth) < 0.5, -128, 127).to(torch.int8),
        "bell": lambda: (torch.randn(outputs, depth) * 28).clamp(-127, 127).to(torch.int8),
        "small": lambda: torch.randint(-3, 4, (outputs, depth), dtype=torch.int8),
    }[kind.removesuffix(" 2:4")]()
    if kind.endswith("2:4"):
        padded = torch.nn.functional.pad(weight.float(), (0, -depth % 4))
        weight = weight * sparse.nm_mask(padded)[:, :depth]
    return weight


@pytest.mark.parametrize(
    "kind", [f"{k}{s}" for k in ("full", "ends", "bell", "small") for s in ("", " 2:4")]
)
def test_tiles_equal_reference(isa, kind):
    for depth in (1, 3, 4, 7, 8, 16, 31, 33, 64, 130, 300):
        for rows, outputs in ((1, 1), (4, 17), (6, 70), (21, 9), (16, 33)):
            weight = tiled_weights(kind, depth, outputs)
            tiles = ops.int8_tiles(weight)
            if kind.endswith("2:4") and depth >= 4:
                assert ops.tile_kind(tiles) == "2:4"
            for dtype, zero in ((torch.int8, -7), (torch.uint8, 200)):
                x = byte_values((rows, depth), dtype)
                x.view(-1)[0] = torch.iinfo(dtype).max
                rest = (torch.rand(outputs), torch.tensor([zero], dtype=torch.int32), None, None)
                wanted = reference.int8_linear(x, weight, *rest)
                got = ops.int8_linear(x, weight, *rest, tiles)
                testing.assert_equal(got, wanted, message=f"K {depth}, M {rows}, N {outputs}")


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("groups", [1, 2, 12])
@pytest.mark.parametrize("two_of_four", [False, True])
def test_conv_tiles_equal_reference(isa, threads, groups, two_of_four):
    weight = byte_values((12, 12 // groups, 3, 2), torch.int8)
    if two_of_four and groups == 1:
        weight = weight * sparse.nm_mask(weight.float())
    tiles = ops.int8_tiles(weight, groups)
    wanted_kind = "depthwise" if groups == 12 else "2:4" if two_of_four and groups == 1 else "dense"
    assert ops.tile_kind(tiles) == wanted_kind
    x = byte_values((3, 12, 11, 9), torch.uint8)
    rest = (torch.rand(12), torch.tensor([131], dtype=torch.int32), None, torch.randn(12))
    arguments = (*rest, [2, 1], [1, 3], [1, 2], groups)
    with testing.threads(threads):
        for layout, arranged in testing.layouts(x):
            wanted = reference.int8_conv2d(arranged, weight, *arguments)
            got = ops.int8_conv2d(arranged, weight, *arguments, tiles)
            testing.assert_equal(got, wanted, message=layout)


def test_a_24_weight_may_be_packed_dense(isa):
    weight, x = tiled_weights("full 2:4", 33, 18), byte_values((7, 33), torch.int8)
    wanted = ops.int8_linear(x, weight, torch.ones(18), tiles=ops.int8_tiles(weight, 1, "2:4"))
    tiles = ops.int8_tiles(weight, kind="dense")
    assert ops.tile_kind(tiles) == "dense"
    testing.assert_equal(ops.int8_linear(x, weight, torch.ones(18), tiles=tiles), wanted)
    with pytest.raises(ValueError, match="weight must hold at most 2 non-zeros in every 4"):
        ops.int8_tiles(torch.ones(3, 8, dtype=torch.int8), kind="2:4")
    with pytest.raises(ValueError, match="kind must be 'auto', 'dense' or '2:4', got 'sparse'"):
        ops.int8_tiles(weight, kind="sparse")


def test_tiles_of_another_isa_are_made_anew():
    weight, x = byte_values((9, 40), torch.int8), byte_values((5, 40), torch.int8)
    wanted = reference.int8_linear(x, weight, torch.ones(9), None, None, None)
    with testing.isa("scalar"):
        tiles = ops.int8_tiles(weight)
    for _ in testing.every_isa():
        testing.assert_equal(ops.int8_linear(x, weight, torch.ones(9), tiles=tiles), wanted)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t[:40].clone(),
        lambda t: t[:-64].clone(),
        lambda t: torch.zeros_like(t),
        lambda t: torch.cat([t[:16], t[16:24] + 1, t[24:]]),
        lambda t: ops.int8_tiles(torch.ones(3, 5, dtype=torch.int8)),
    ],
)
def test_foreign_tiles_are_refused(spoil):
    weight, x = byte_values((9, 40), torch.int8), byte_values((5, 40), torch.int8)
    with pytest.raises(ValueError, match="tiles must be made by int8_tiles for this weight"):
        ops.int8_linear(x, weight, torch.ones(9), tiles=spoil(ops.int8_tiles(weight)))


@pytest.mark.parametrize(
    ("weight", "groups", "error", "text"),
    [
        (torch.ones(2, 2), 1, TypeError, "weight must be int8, got float32"),
        (torch.ones(2, dtype=torch.int8), 1, ValueError, r"weight must be \[N, K\]"),
        (torch.ones(0, 2, dtype=torch.int8), 1, ValueError, "not empty"),
        (torch.ones(3, 2, dtype=torch.int8), 2, ValueError, "multiple of groups = 2"),
    ],
)
def test_tiles_errors(weight, groups, error, text):
    with pytest.raises(error, match=f"^int8_tiles: .*{text}"):
        ops.int8_tiles(weight, groups)
