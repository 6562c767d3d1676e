"""Programs as data: their JSON, and the shapes that follow from them."""

import json

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from network_cases import cases
from torch.nn import functional

from sparseq.program import (
    FORMS,
    OPS,
    Grid,
    Instruction,
    Program,
    result_shape,
    shapes,
    tensor_shape,
    value_shape,
    windows,
)

small = st.integers(1, 5)
pair = st.tuples(small, small)
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(cases())
def test_json_round_trip(case):
    """Attributes of default value are left out, and read as before."""
    again = Program.from_json(case.program.to_json())
    assert again.to_json() == case.program.to_json()
    assert (again.inputs, again.outputs) == (case.program.inputs, case.program.outputs)
    for i, j in zip(again.instructions, case.program.instructions, strict=True):
        assert (i.op, i.inputs, i.grid, i.constants) == (j.op, j.inputs, j.grid, j.constants)
        assert all(i.get(name) == j.get(name) for name in OPS[i.op][2])


def test_the_json_is_as_documented():
    window = {"kernel": [3, 3], "stride": [2, 2], "padding": [0, 0]}
    pool = Instruction("max_pool", (1,), None, (), window)
    first = Instruction("map", (0,), Grid(0.5, 3, 1, 9), (0, 1), {"activation": "relu"})
    program = Program(("image",), (first, pool), ((2, "pixels"),))
    assert json.loads(program.to_json()) == {
        "version": 1,
        "inputs": ["image"],
        "instructions": [
            {
                **{"op": "map", "inputs": [0], "grid": [0.5, 3, 1, 9], "constants": [0, 1]},
                "activation": "relu",
            },
            {"op": "max_pool", "inputs": [1], "kernel": [3, 3], "stride": [2, 2]},
        ],
        "outputs": [[2, "pixels"]],
    }
    assert program.grids() == [None, Grid(0.5, 3, 1, 9), None]


@given(st.floats(width=32, min_value=2**-126, allow_infinity=False))
def test_a_scale_survives_the_json_exactly(scale):
    program = Program(("image",), (Instruction("map", (0,), Grid(scale)),), ())
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize("form", FORMS)
def test_forms_hold_all_elements(form):
    shape = (2, 1, 1, 5) if form == "vector" else (2, 1, 7, 5) if form == "rows" else (2, 3, 7, 5)
    assert value_shape(form, tensor_shape(form, shape)) == shape


def pooled(op, pixels, **attributes):
    return result_shape(Instruction(op, (0,), None, (), attributes), [(1, *pixels, 2)], None)


@given(st.data(), sizes, pair, pair, pair, st.booleans())
def test_max_pool_as_torch(data, size, kernel, stride, dilation, ceil):
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s <= n + 2 * p for s, n, p in zip(spans, size, padding, strict=True)))
    wanted = functional.max_pool2d(
        torch.zeros(1, 2, *size), kernel, stride, padding, dilation, ceil
    )
    window = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    assert pooled("max_pool", size, **window, ceil=ceil) == (1, *wanted.shape[2:], 2)


@given(st.data(), sizes, pair, pair, st.booleans())
def test_avg_pool_as_torch(data, size, kernel, stride, ceil):
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    assume(all(k <= n + 2 * p for k, n, p in zip(kernel, size, padding, strict=True)))
    wanted = functional.avg_pool2d(torch.zeros(1, 2, *size), kernel, stride, padding, ceil)
    window = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
    assert pooled("avg_pool", size, **window) == (1, *wanted.shape[2:], 2)


@given(sizes, pair, pair, st.tuples(st.integers(0, 4), st.integers(0, 4)), pair)
def test_conv_as_torch(size, kernel, stride, padding, dilation):
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    assume(all(s <= n + 2 * p for s, n, p in zip(spans, size, padding, strict=True)))
    weight = torch.zeros(6, 2, *kernel)
    wanted = functional.conv2d(torch.zeros(1, 2, *size), weight, None, stride, padding, dilation)
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    i = Instruction("conv", (0,), None, (0, 1, 2), window)
    assert result_shape(i, [(1, *size, 2)], weight.shape) == (1, *wanted.shape[2:], 6)


def test_no_window_begins_behind_the_image():
    """Windows of two pixels at every third, one pixel of padding around the image."""
    assert windows(6, 2, 3, 1, 1, True) == windows(6, 2, 3, 1, 1, False) == 3
    assert windows(5, 2, 3, 1, 1, True) == 2  # a third would begin in the padding
    assert windows(5, 3, 3, 0, 1, True) == windows(5, 3, 3, 0, 1, False) + 1 == 2


def test_other_shapes():
    assert pooled("adaptive", (7, 9), size=[2, 3]) == (1, 2, 3, 2)
    assert pooled("pad", (7, 9), around=[1, 2, 3, 4]) == (1, 10, 16, 2)
    concat = Instruction("concat", (0, 1))
    assert result_shape(concat, [(1, 7, 9, 2), (1, 7, 9, 3)], None) == (1, 7, 9, 5)
    gathered = Instruction("conv", (0,), None, (0, 1, 2), {"columns": 3})
    assert result_shape(gathered, [(1, 7, 9, 2)], (4, 6, 2, 1)) == (1, 6, 7, 4)


def test_shapes_follow_the_values():
    conv = Instruction("conv", (1,), None, (0, 1, 2), {"stride": [2, 2]})
    rows = Instruction("add", (2, 0))
    program = Program(("vector", "image"), (conv, rows), ((3, "rows"),))
    found = shapes(program, [(2, 6), (2, 4, 9, 9)], [(6, 4, 3, 3), (8,), (6,)])
    assert found == [(2, 1, 1, 6), (2, 9, 9, 4), (2, 4, 4, 6), (2, 4, 4, 6)]
