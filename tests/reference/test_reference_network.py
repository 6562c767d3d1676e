"""The definition of programs agrees with torch.nn.functional, on float32 values."""

from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from sparseq import reference
from sparseq.program import ACTIVATIONS, FORMS, Grid, Instruction, Program, tensor_shape
from sparseq.reference import functions
from sparseq.reference.functions import activate, fma

x = torch.randn(2, 5, 7, 9)  # N, C, H, W
small = st.integers(1, 4)
pairs = st.tuples(small, small).map(list)


def run(op, *inputs, constants=(), form="image", grid=None, **attributes):
    numbers = tuple(range(len(inputs)))
    instruction = Instruction(op, numbers, grid, tuple(range(len(constants))), attributes)
    program = Program((form,) * len(inputs), (instruction,), ((len(inputs), form),))
    (y,) = reference.network(program.to_json(), list(constants), list(inputs))
    return y


def close(y, wanted):
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)


def padding_of(data, kernel):
    return [data.draw(st.integers(0, k // 2)) for k in kernel]


@given(st.data(), pairs, pairs, pairs, st.booleans())
def test_max_pool(data, kernel, stride, dilation, ceil):
    padding = padding_of(data, kernel)
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s <= n + 2 * p for s, n, p in zip(spans, (7, 9), padding, strict=True)))
    y = run(
        *("max_pool", x),
        **{"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation},
        ceil=ceil,
    )
    torch.testing.assert_close(
        y, functional.max_pool2d(x, kernel, stride, padding, dilation, ceil), rtol=0, atol=0
    )


@given(st.data(), pairs, pairs, st.booleans(), st.booleans(), st.integers(0, 5))
def test_avg_pool(data, kernel, stride, ceil, include, divisor):
    padding = padding_of(data, kernel)
    window = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
    y = run("avg_pool", x, **window, include_pad=include, divisor=divisor)
    close(y, functional.avg_pool2d(x, kernel, stride, padding, ceil, include, divisor or None))


@given(st.tuples(st.integers(1, 11), st.integers(1, 11)).map(list))
def test_adaptive(size):
    close(run("adaptive", x, size=size), functional.adaptive_avg_pool2d(x, size))


@pytest.mark.parametrize("channels", [1, 15, 16, 37, 768])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(channels, affine):
    rows = torch.randn(3, 4, channels) * 3 + 1
    constants = [torch.randn(channels), torch.randn(channels)] if affine else []
    y = run("layer_norm", rows, constants=constants, form="rows", eps=1e-3)
    close(y, functional.layer_norm(rows, [channels], *constants, eps=1e-3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "first"), [(1, [0, 0, 0]), (3, [0, 2, 6])])
def test_attention(causal, heads, first):
    q, k, v = torch.randn(2, 4, 12), torch.randn(2, 7, 14), torch.randn(2, 7, 18)
    attributes = {"heads": heads, "width": 12, "scale": 0.3, "causal": causal, "first": first}
    y = run("attention", q, k, v, form="rows", **attributes)
    parts = (x[..., f : f + 12] for x, f in zip((q, k, v), first, strict=True))
    parts = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts)
    wanted = functional.scaled_dot_product_attention(*parts, is_causal=causal, scale=0.3)
    close(y, wanted.transpose(1, 2).flatten(2))


wide = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(wide, wide, wide)
def test_fma_rounds_the_exact_sum_once(a, b, c):
    y = fma(*(torch.tensor(x) for x in (a, b, c)))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if y.isfinite():
        assert y == nearest_float32(exact)
    else:
        assert abs(exact) >= Fraction(2) ** 128 - Fraction(2) ** 103


def nearest_float32(exact):
    """Of ties the even one, by whole numbers only."""
    if not exact:
        return 0.0
    unit = Fraction(2) ** max(_exponent(abs(exact)) - 23, -149)
    return float(round(exact / unit) * unit)


def _exponent(x):
    found = x.numerator.bit_length() - x.denominator.bit_length()
    return found if Fraction(2) ** found <= x else found - 1


# the function, exactly, and the error that sparseq/reference/functions.py tells of
ACCURACY = {
    "exp": (torch.exp, 2e-7, True),
    "sigmoid": (torch.sigmoid, 4e-7, False),
    "tanh": (torch.tanh, 4e-7, False),
    "gelu": (lambda x: x * torch.special.ndtr(x), 5e-7, False),
}


@pytest.mark.parametrize("name", ACCURACY)
def test_functions_are_as_accurate_as_they_say(name):
    exact, bound, by_size = ACCURACY[name]
    x = torch.cat([torch.linspace(-87, 87, 100_001), torch.linspace(-6, 6, 100_001)])
    error = (getattr(functions, name)(x).double() - exact(x.double())).abs()
    error = error / exact(x.double()) if by_size else error
    assert error.max() < bound


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_map_and_its_activations(name):
    scale, shift = torch.randn(5), torch.randn(5)
    y = run("map", x, constants=[scale, shift], activation=name)
    affine = x * scale[:, None, None] + shift[:, None, None]
    assert torch.equal(y, activate(affine, name))
    close(run("map", x), x)


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 5, 7, 9), (2, 5, 1, 1), (1, 5, 1, 1)])
def test_add_and_mul_repeat_the_second(shape):
    y = torch.randn(shape)
    assert torch.equal(run("add", x, y, activation="relu"), functional.relu(x + y))
    assert torch.equal(run("mul", x, y), x * y)


def test_concat_and_pad():
    assert torch.equal(run("concat", x, x + 1, x[:, :2]), torch.cat([x, x + 1, x[:, :2]], 1))
    around = run("pad", x, around=[1, 2, 3, 4])
    assert torch.equal(around, functional.pad(x, (3, 4, 1, 2)))
    assert around.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    """A copy of a value, each form in and out."""
    shape = (2, 1, 1, 5) if form == "vector" else (2, 1, 9, 5) if form == "rows" else (2, 7, 9, 5)
    tensor = torch.randn(tensor_shape(form, shape))
    assert torch.equal(run("map", tensor, form=form), tensor)


def test_a_value_on_a_grid_leaves_as_its_real():
    grid = Grid(torch.tensor(0.1).item(), 7, 3, 200)
    scale, zero = torch.tensor(0.1), torch.tensor(7, dtype=torch.int32)
    y = run("map", x * 10, grid=grid)
    assert torch.equal(y, reference.fake_quantize(x * 10, scale, zero, 3, 200))
    assert torch.equal(
        run("pad", torch.full((1, 1, 1, 1), torch.nan), around=[1, 0, 0, 0], grid=grid),
        torch.zeros(1, 1, 2, 1),
    )


@given(st.data(), pairs, pairs, pairs, st.sampled_from([1, 2]), st.booleans(), st.booleans())
def test_conv(data, kernel, stride, dilation, groups, biased, residual):
    """Against a float64 convolution of the reals of the grid."""
    padding = [data.draw(st.integers(0, 3)) for _ in kernel]
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s <= n + 2 * p for s, n, p in zip(spans, (7, 9), padding, strict=True)))
    image = torch.randn(2, 4, 7, 9)
    grid = Grid(2**-5, 100)
    weight = torch.randint(-128, 128, (6, 4 // groups, *kernel), dtype=torch.int8)
    multiplier, bias = torch.rand(6) / 100, torch.randn(6)
    window = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    real = reference.fake_quantize(
        image, torch.tensor(grid.scale), torch.tensor(100, dtype=torch.int32), 0, 255
    )
    scales = (multiplier / grid.scale).double()[:, None, None, None]
    wanted = functional.conv2d(
        *(real.double(), weight * scales, bias.double() if biased else None),
        **window,
    )
    constants = [weight, torch.empty(0, dtype=torch.uint8), multiplier, *([bias] if biased else [])]
    more = torch.randn(wanted.shape)
    inputs = (0, 1) if residual else (0,)
    program = Program(
        ("image",) * len(inputs),
        (
            Instruction("map", (0,), grid),
            Instruction(
                "conv",
                (len(inputs), *inputs[1:]),
                None,
                tuple(range(len(constants))),
                {**window, "activation": "tanh"},
            ),
        ),
        ((len(inputs) + 1, "image"),),
    )
    tensors = [image, more] if residual else [image]
    (y,) = reference.network(program.to_json(), constants, tensors)
    if residual:
        wanted = wanted + more
    torch.testing.assert_close(y, wanted.tanh().float(), rtol=1e-5, atol=1e-5)


def test_conv_with_columns_is_the_conv_they_came_from():
    """A kernel of three columns as one of one column over pixels of three neighbours' channels."""
    grid = Grid(2**-5, 100)
    image = torch.randn(2, 3, 8, 10)
    weight = torch.randint(-128, 128, (6, 3, 2, 3), dtype=torch.int8)
    gathered = weight.permute(0, 3, 1, 2).reshape(6, 9, 2, 1)
    empty, multiplier = torch.empty(0, dtype=torch.uint8), torch.rand(6)
    results = []
    for taps, attributes in ((weight, {}), (gathered, {"columns": 3})):
        conv = Instruction("conv", (1,), None, (0, 1, 2), {"stride": [2, 2], **attributes})
        program = Program(("image",), (Instruction("map", (0,), grid), conv), ((2, "image"),))
        results += reference.network(program.to_json(), [taps, empty, multiplier], [image])
    assert torch.equal(*results)


def test_max_pool_keeps_nan():
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 1] = torch.nan
    y = run("max_pool", image, kernel=[2, 2], stride=[2, 2])
    assert y[0, 0, 0, 0].isnan() and torch.equal(y.flatten()[1:], torch.zeros(3))
