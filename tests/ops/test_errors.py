import re

import pytest
import torch

from sparseq import ops

x = torch.randn(4, 6)
scale = torch.tensor(0.1)
nan, inf = float("nan"), float("inf")
int8 = torch.zeros(4, 6, dtype=torch.int8)
raw = torch.ops.sparseq


def scales(*values):
    return torch.tensor(values)


def zeros(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


# (arguments after x, exception, what the message must say)
AFFINE = [
    ((0.0, None, -127, 127), ValueError, "scale must be positive and finite, got 0.0"),
    ((-0.5, None, -127, 127), ValueError, "scale must be positive and finite, got -0.5"),
    ((nan, None, -127, 127), ValueError, "scale must be positive and finite, got nan"),
    ((inf, None, -127, 127), ValueError, "scale must be positive and finite, got inf"),
    (
        (scales(0.1, 0.0, 0.1, 0.1), None, -127, 127, 0),
        ValueError,
        "scale must be positive and finite",
    ),
    ((scales(0.1, nan, 0.1, 0.1), None, -127, 127, 0), ValueError, "scale .* got nan"),
    ((scales(0.1, inf, 0.1, 0.1), None, -127, 127, 0), ValueError, "scale .* got inf"),
    (("0.1", None, -127, 127), TypeError, "scale must be a tensor or a number, got str"),
    ((scale.double(), None, -127, 127), TypeError, "scale must be float32, got float64"),
    ((scale.half(), None, -127, 127), TypeError, "scale must be float32, got float16"),
    ((scales(0.1, 0.1), None, -127, 127), ValueError, r"scale must have one element .* \(2,\)"),
    ((scale, None, -127, 127, 0), ValueError, r"scale must have shape \(4,\) .* got shape \(\)"),
    (
        (scales(*[0.1] * 4), None, -127, 127, 1),
        ValueError,
        r"scale must have shape \(6,\) .* \(4,\)",
    ),
    ((scales(*[0.1] * 4), None, -127, 127, 0, 3), ValueError, r"scale must have shape \(4, 2\)"),
    ((scale.to("meta"), None, -127, 127), ValueError, "scale must be on cpu, got meta"),
    (
        (scale, zeros(1, dtype=torch.int32).to("meta"), -127, 127),
        ValueError,
        "zero_point must be on cpu",
    ),
    ((scale, zeros(1, 2), -127, 127), ValueError, r"zero_point must have one element .* \(2,\)"),
    ((scale, 128, -128, 127), ValueError, r"zero_point must lie in \[-128, 127\], got 128"),
    (
        (scale, 2**40, -128, 127),
        ValueError,
        r"zero_point must lie in \[-128, 127\], got 1099511627776",
    ),
    ((scale, -1, 0, 255), ValueError, r"zero_point must lie in \[0, 255\], got -1"),
    ((scale, None, 1, 255), ValueError, r"zero_point must lie in \[1, 255\], got 0"),
    ((scale, zeros(-129), -128, 127), ValueError, r"zero_point must lie in .* got -129"),
    ((scale, zeros(2**32, dtype=torch.int64), 0, 255), ValueError, "zero_point .* got 4294967296"),
    ((scale, 1.5, -128, 127), TypeError, "zero_point must be a tensor, got float"),
    ((scale, scales(1.0).double(), -128, 127), TypeError, "zero_point must be .* got float64"),
    ((scale, torch.tensor([True]), -128, 127), TypeError, "zero_point must be .* got bool"),
    ((scale, None, 127, -127), ValueError, "quant_min and quant_max .* got 127 and -127"),
    ((scale, None, 0, 0), ValueError, "quant_min < quant_max, got 0 and 0"),
    ((scale, None, -129, 127), ValueError, "quant_min and quant_max .* got -129 and 127"),
    ((scale, None, -1, 255), ValueError, "quant_min and quant_max .* got -1 and 255"),
    ((scale, None, 0, 256), ValueError, "quant_min and quant_max .* got 0 and 256"),
    ((scale, None, -127, 127, 2), ValueError, r"axis must be in \[-2, 1\], got 2"),
    ((scale, None, -127, 127, -3), ValueError, r"axis must be in \[-2, 1\], got -3"),
    ((scale, None, -127, 127, None, 4), ValueError, r"group_size must divide the 6 .* got 4"),
    ((scale, None, -127, 127, 0, 0), ValueError, "group_size must be at least 1, got 0"),
    ((scale, None, -127, 127, 0, -2), ValueError, "group_size must be at least 1, got -2"),
]


@pytest.mark.parametrize("op", [ops.quantize, ops.fake_quantize, ops.fake_quantize_observed])
@pytest.mark.parametrize(("arguments", "error", "text"), AFFINE)
def test_affine_arguments(op, arguments, error, text):
    with pytest.raises(error, match=f"^{op.__name__}: .*{text}"):
        op(x, *arguments)


@pytest.mark.parametrize(("arguments", "error", "text"), AFFINE)
def test_dequantize_arguments(arguments, error, text):
    q = int8 if arguments[2] < 0 else int8.to(torch.uint8)
    with pytest.raises(error, match=f"^dequantize: .*{text}"):
        ops.dequantize(q, *arguments)


@pytest.mark.parametrize("op", [ops.quantize, ops.fake_quantize, ops.fake_quantize_observed])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int32, torch.int8, torch.bool, torch.complex64]
)
def test_x_of_another_dtype(op, dtype):
    name = str(dtype).removeprefix("torch.")
    text = f"{op.__name__}: x must be float32, float16 or bfloat16, got {name}"
    with pytest.raises(TypeError, match=text):
        op(x.to(dtype), scale, None, -127, 127)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda v: ops.quantize(v, 0.1, None, -127, 127), "quantize: x must be a tensor"),
        (lambda v: ops.fake_quantize(v, 0.1, None, -127, 127), "fake_quantize: x must be a tensor"),
        (
            lambda v: ops.fake_quantize_observed(v, 0.1, None, -127, 127),
            "fake_quantize_observed: x must be a tensor",
        ),
        (lambda v: ops.dequantize(v, 0.1, None), "dequantize: q must be a tensor"),
        (lambda v: ops.minmax(v), "minmax: x must be a tensor"),
        (lambda v: ops.histogram(v, 1.0, 8), "histogram: x must be a tensor"),
        (lambda v: ops.pack_int4(v), "pack_int4: q must be a tensor"),
        (lambda v: ops.unpack_int4(v, 2), "unpack_int4: packed must be a tensor"),
        (lambda v: ops.int8_linear(v, int8, torch.ones(4)), "int8_linear: x must be a tensor"),
        (lambda v: ops.int8_linear(int8, v, torch.ones(4)), "int8_linear: weight must be a tensor"),
    ],
)
def test_what_is_not_a_tensor(call, text):
    with pytest.raises(TypeError, match=f"{text}, got list"):
        call([1.0, 2.0])


def test_group_axis_in_the_middle():
    with pytest.raises(ValueError, match="axis must be 0 or the last one with group_size, got 1"):
        ops.quantize(torch.randn(2, 4, 6), scale, None, -127, 127, 1, 2)
    with pytest.raises(ValueError, match="axis must be 0 or the last one with group_size"):
        ops.quantize(torch.tensor(1.0), scale, None, -127, 127, None, 2)


def test_dequantize_dtypes():
    with pytest.raises(TypeError, match="dequantize: q must be int8 or uint8, got float32"):
        ops.dequantize(x, scale, None)
    with pytest.raises(TypeError, match=r"dequantize: dtype must be float32, .* got float64"):
        ops.dequantize(int8, scale, None, dtype=torch.float64)
    with pytest.raises(ValueError, match="quant_min must be negative for int8, got 0"):
        ops.dequantize(int8, scale, None, 0, 255)
    with pytest.raises(ValueError, match="quant_min must be at least 0 for uint8, got -128"):
        ops.dequantize(int8.to(torch.uint8), scale, None, -128, 127)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: ops.minmax(x.double()), TypeError, "minmax: x must be float32, .* got float64"),
        (
            lambda: ops.minmax(torch.empty(0)),
            ValueError,
            r"minmax: x must not be empty, got .*\(0,\)",
        ),
        (lambda: ops.minmax(torch.empty(3, 0), 0), ValueError, "minmax: x must not be empty"),
        (
            lambda: ops.fake_quantize_observed(torch.empty(0, 3), 0.1, None, -127, 127),
            ValueError,
            r"fake_quantize_observed: x must not be empty, got shape \(0, 3\)",
        ),
        (lambda: ops.minmax(x, 5), ValueError, r"minmax: axis must be in \[-2, 1\], got 5"),
        (lambda: ops.minmax(x, None, 4), ValueError, "minmax: group_size must divide"),
        (lambda: ops.histogram(x.double(), 1.0, 8), TypeError, "histogram: x must be .* float64"),
        (
            lambda: ops.histogram(x, 1.0, 8.0),
            TypeError,
            "histogram: bins must be an int, got float",
        ),
        (
            lambda: ops.histogram(x, 1.0, 12),
            ValueError,
            "histogram: bins must be a power of two from 2 to 65536, got 12",
        ),
        (lambda: ops.histogram(x, 1.0, 1), ValueError, "histogram: bins must be .* got 1$"),
        (lambda: ops.histogram(x, 1.0, 2**17), ValueError, "histogram: bins must be .* got 131072"),
        (lambda: ops.histogram(x, [1.0], 8), TypeError, "histogram: limit must be .* got list"),
        (
            lambda: ops.histogram(x, ones.double(), 8),
            TypeError,
            "histogram: limit must be float32, got float64",
        ),
        *(
            (
                lambda bad=bad: ops.histogram(x, bad, 8),
                ValueError,
                rf"histogram: limit must be powers of two from 2\*\*-126 to 2\*\*127, got {bad}",
            )
            for bad in (3.0, 0.0, -1.0, inf, nan, 2.0**-127)
        ),
        (
            lambda: ops.histogram(x, scales(1.0, 0.3, 2.0, 4.0), 8, 0),
            ValueError,
            r"histogram: limit must be powers of two .* got 0\.3",
        ),
        (lambda: ops.histogram(x, ones[:1], 8, 0), ValueError, r"limit must have shape \("),
        (lambda: ops.histogram(x, 1.0, 8, 5), ValueError, r"histogram: axis must be in \["),
        (lambda: ops.histogram(x, ones, 8, 0, 4), ValueError, "histogram: group_size must divide"),
        (lambda: ops.pack_int4(x), TypeError, "pack_int4: q must be int8 or uint8, got float32"),
        (lambda: ops.pack_int4(int8[0, 0]), ValueError, "pack_int4: q must have at least one dim"),
        (
            lambda: ops.unpack_int4(int8, 12),
            TypeError,
            "unpack_int4: packed must be uint8, got int8",
        ),
        (
            lambda: ops.unpack_int4(int8.to(torch.uint8), 10),
            ValueError,
            r"unpack_int4: packed must have 5 bytes a row for 10 columns, got shape \(4, 6\)",
        ),
        (lambda: ops.unpack_int4(int8.to(torch.uint8), -1), ValueError, "unpack_int4: packed"),
    ],
)
def test_other_affine_ops(call, error, text):
    with pytest.raises(error, match=text):
        call()


ones = torch.ones(4)
LINEAR = [
    ({"x": x.double()}, TypeError, "x must be int8, uint8, .* float16 or bfloat16, got float64"),
    ({"weight": x}, TypeError, "weight must be int8 or uint8, got float32"),
    (
        {"x": int8[:, :5]},
        ValueError,
        r"x must be \[..., K\] and weight \[N, K\], got \(4, 5\) and \(4, 6\)",
    ),
    ({"weight": int8[0]}, ValueError, r"weight \[N, K\]"),
    ({"x": int8[0, 0]}, ValueError, r"x must be \[..., K\]"),
    ({"scale": ones[:3]}, ValueError, r"scale must be float32 of shape \(4,\), got \(3,\) float32"),
    ({"scale": ones.double()}, ValueError, "scale must be float32 .* float64"),
    ({"bias": ones[:3]}, ValueError, r"bias must be float32 of shape \(4,\), got \(3,\)"),
    ({"bias": ones.half()}, ValueError, "bias must be float32 .* float16"),
    ({"x_zero": zeros(1, 2)}, ValueError, "x_zero must hold 1 int32 values, got 2 of int32"),
    ({"x_zero": scales(1.0)}, ValueError, "x_zero must hold 1 int32 values, got 1 of float32"),
    ({"weight_zero": zeros(1)}, ValueError, "weight_zero must hold 4 int32 values, got 1"),
    ({"weight_zero": ones}, ValueError, "weight_zero must hold 4 int32 values, got 4 of float32"),
]

float_x = {"x": x, "x_scale": ones[:1]}
out8 = {"dtype": torch.int8, "y_scale": ones[:1]}
FUSED = [
    ({"x_scale": 0.1}, TypeError, "x_scale must be a tensor, got float"),
    ({"x_scale": ones}, ValueError, "x_scale must hold 1 float32 values, got 4 of float32"),
    ({"x_scale": zeros(1)}, ValueError, "x_scale must hold 1 float32 values, got 1 of int32"),
    ({**float_x, "x_scale": scales(0.0)}, ValueError, "x_scale must be positive .* got 0.0"),
    ({**float_x, "x_scale": scales(nan)}, ValueError, "x_scale must be positive .* got nan"),
    ({"x_zero": zeros(128)}, ValueError, r"x_zero must lie in \[-128, 127\], got 128"),
    ({**float_x, "x_zero": zeros(-1), "x_range": (0, 255)}, ValueError, r"x_zero .* got -1"),
    ({**float_x, "x_range": (1, 255)}, ValueError, r"x_zero must lie in \[1, 255\], got 0"),
    ({"x": x, "x_zero": zeros(0)}, ValueError, "x_zero must be None without x_scale"),
    ({**float_x, "x_range": (0, 256)}, ValueError, r"x_range must lie in .* got \(0, 256\)"),
    ({**float_x, "x_range": (-1, 255)}, ValueError, r"x_range must lie in .* got \(-1, 255\)"),
    ({**float_x, "x_range": (5, 5)}, ValueError, r"first less than the second, got \(5, 5\)"),
    ({**float_x, "x_range": (0, 1.5)}, TypeError, r"x_range must be two whole numbers, got \(0,"),
    ({**float_x, "x_range": 8}, TypeError, "x_range must be two whole numbers, got 8"),
    ({"activation": "elu"}, ValueError, "activation must be one of .* got 'elu'"),
    ({"residual": ones}, ValueError, r"residual must have the shape of .*\(4, 4\), got \(4,\)"),
    ({"residual": ones.double()}, TypeError, "residual must be int8, .* got float64"),
    ({"residual": [1.0]}, TypeError, "residual must be a tensor, got list"),
    ({"residual": int8[:, :4]}, ValueError, "residual_scale must be given for .* int8, got None"),
    ({"residual_scale": ones[:1]}, ValueError, "residual_scale .* must be None without a residual"),
    (
        {"residual": int8[:, :4], "residual_scale": ones[:1], "residual_zero": zeros(200)},
        ValueError,
        r"residual_zero must lie in \[-128, 127\], got 200",
    ),
    ({"dtype": torch.float64}, TypeError, "dtype must be int8, .* got float64"),
    ({"dtype": "int8"}, TypeError, "dtype must be int8, .* got 'int8'"),
    ({"dtype": torch.int8}, ValueError, "y_scale must be given for int8, got None"),
    ({"y_scale": ones[:1]}, ValueError, "y_scale, .* must be None unless dtype is int8 or uint8"),
    ({**out8, "y_scale": scales(-1.0)}, ValueError, "y_scale must be positive .* got -1.0"),
    ({**out8, "y_zero": zeros(-128), "y_range": (-127, 127)}, ValueError, "y_zero .* got -128"),
    ({**out8, "y_range": (0, 255)}, ValueError, r"y_range must lie in \[-128, 127\]"),
    (
        {**out8, "dtype": torch.uint8, "y_range": (-8, 7)},
        ValueError,
        r"y_range must lie in \[0, 255",
    ),
]


@pytest.mark.parametrize(("change", "error", "text"), LINEAR + FUSED)
def test_linear_arguments(change, error, text):
    arguments = {"x": int8, "weight": int8, "scale": ones, **change}
    with pytest.raises(error, match=f"^int8_linear: .*{text}"):
        ops.int8_linear(**arguments)


image = torch.zeros(2, 4, 5, 5, dtype=torch.int8)
taps = torch.zeros(4, 4, 3, 3, dtype=torch.int8)
CONV = [
    ({"x": image.double()}, TypeError, "x must be int8, uint8, .* or bfloat16, got float64"),
    ({"x": image.float()}, ValueError, "x_scale must be given for x of float32, got None"),
    (
        {"residual": image.float()},
        ValueError,
        r"shape of the result, \(2, 4, 3, 3\), got \(2, 4, 5",
    ),
    ({"padding": (2**40, 0)}, ValueError, r"padding must be .* at most 2\^31, got \(1099511"),
    ({"dtype": torch.int32}, TypeError, "dtype must be int8, .* got int32"),
    ({"x": image[0]}, ValueError, r"x must be \[N, C, H, W\]"),
    ({"x": image[:, :3]}, ValueError, r"got \(2, 3, 5, 5\) and \(4, 4, 3, 3\)"),
    ({"groups": 2}, ValueError, "groups = 2"),
    ({"groups": 0}, ValueError, "groups = 0"),
    ({"weight": taps[:3, :2], "groups": 2}, ValueError, "O a multiple of groups = 2"),
    ({"scale": ones[:3]}, ValueError, r"scale must be float32 of shape \(4,\)"),
    ({"weight_zero": zeros(1, 2)}, ValueError, "weight_zero must hold 4 int32"),
    ({"stride": (0, 1)}, ValueError, r"stride must be two numbers of at least 1, got \(0, 1\)"),
    ({"stride": (1,)}, ValueError, r"stride must be two numbers .* got \(1,\)"),
    ({"padding": (1, -1)}, ValueError, r"padding must be two numbers of at least 0, got \(1, -1\)"),
    ({"dilation": (1, 1, 1)}, ValueError, r"dilation must be two numbers .* got \(1, 1, 1\)"),
    ({"dilation": (3, 1)}, ValueError, "weight must not be larger than the padded x"),
    (
        {"x": image[..., :2], "stride": (2, 2)},
        ValueError,
        "weight must not be larger than the padded x",
    ),
]


@pytest.mark.parametrize(("change", "error", "text"), CONV)
def test_convolution_arguments(change, error, text):
    arguments = {"x": image, "weight": taps, "scale": ones, **change}
    with pytest.raises(error, match=f"^int8_conv2d: .*{text}"):
        ops.int8_conv2d(**arguments)


def learned(x, *rest):
    return raw.fake_quantize_learned_backward(x, x, *rest, 1.0)


def linear(x, **keywords):
    return raw.int8_linear(x, int8, ones, None, None, None, **keywords)


RAW = {
    "scale too short": lambda: raw.quantize(x, scales(0.1, 0.1), None, -127, 127, 0, None),
    "scale too long": lambda: raw.fake_quantize(x, torch.ones(9), None, -127, 127, None, None, 1.0),
    "scale of another dtype": lambda: raw.quantize(x, scale.double(), None, -127, 127, None, None),
    "zero_point too short": lambda: raw.quantize(x, ones, zeros(1), -127, 127, 0, None),
    "zero_point int64": lambda: raw.quantize(
        x, scale, zeros(1, dtype=torch.int64), -127, 127, None, None
    ),
    "axis": lambda: raw.quantize(x, ones, None, -127, 127, 7, None),
    "axis of a scalar": lambda: raw.quantize(torch.tensor(1.0), ones, None, -127, 127, 0, None),
    "group_size 0": lambda: raw.quantize(x, ones, None, -127, 127, 0, 0),
    "group_size does not divide": lambda: raw.quantize(x, ones, None, -127, 127, 0, 4),
    "group axis": lambda: raw.quantize(torch.randn(2, 3, 4), torch.ones(12), None, -127, 127, 1, 2),
    "range": lambda: raw.quantize(x, scale, None, -300, 300, None, None),
    "x float64": lambda: raw.quantize(x.double(), scale, None, -127, 127, None, None),
    "q float32": lambda: raw.dequantize(x, scale, None, None, None, torch.float32),
    "dtype float64": lambda: raw.dequantize(int8, scale, None, None, None, torch.float64),
    "dequantize scale": lambda: raw.dequantize(int8, ones, None, 1, None, torch.float32),
    "grad of another shape": lambda: raw.fake_quantize_backward(
        x[:2], x, scale, None, -127, 127, None, None
    ),
    "grad of another dtype": lambda: raw.fake_quantize_backward(
        x.half(), x, scale, None, -127, 127, None, None
    ),
    "learned grad broadcast": lambda: raw.fake_quantize_learned_backward(
        x[:1], x, scale, None, -127, 127, None, None, 1.0
    ),
    "learned scale": lambda: learned(x, scales(0.1, 0.1), None, -127, 127, 0, None),
    "learned zero_point": lambda: learned(x, ones, zeros(0), -127, 127, 0, None),
    "observed nothing": lambda: raw.fake_quantize_observed(
        torch.empty(0), scale, None, -127, 127, None, None, 1.0
    ),
    "observed scale": lambda: raw.fake_quantize_observed(
        x, scales(0.1, 0.1), None, -127, 127, 0, None, 1.0
    ),
    "observed zero_point": lambda: raw.fake_quantize_observed(
        x, ones, zeros(0), -127, 127, 0, None, 1.0
    ),
    "observed range": lambda: raw.fake_quantize_observed(x, scale, None, 0, 300, None, None, 1.0),
    "observed dtype": lambda: raw.fake_quantize_observed(
        x.double(), scale, None, -127, 127, None, None, 1.0
    ),
    "minmax of nothing": lambda: raw.minmax(torch.empty(0), None, None),
    "minmax axis": lambda: raw.minmax(x, -5, None),
    "minmax group_size": lambda: raw.minmax(x, None, 5),
    "histogram limit": lambda: raw.histogram(x, ones[:1], 8, 0, None),
    "histogram limit dtype": lambda: raw.histogram(x, ones.double(), 8, 0, None),
    "histogram bins": lambda: raw.histogram(x, ones[:1], 0, None, None),
    "histogram odd bins": lambda: raw.histogram(x, ones[:1], 6, None, None),
    "histogram many bins": lambda: raw.histogram(x, ones[:1], 2**40, None, None),
    "histogram axis": lambda: raw.histogram(x, ones[:1], 8, 5, None),
    "histogram group_size": lambda: raw.histogram(x, ones[:1], 8, None, 5),
    "histogram dtype": lambda: raw.histogram(x.double(), ones[:1], 8, None, None),
    "pack a scalar": lambda: raw.pack_int4(int8[0, 0]),
    "pack floats": lambda: raw.pack_int4(x),
    "unpack columns": lambda: raw.unpack_int4(int8.to(torch.uint8), 100, True),
    "unpack far too many": lambda: raw.unpack_int4(int8.to(torch.uint8), 2**63 - 1, True),
    "unpack negative": lambda: raw.unpack_int4(int8.to(torch.uint8), -12, True),
    "unpack a scalar": lambda: raw.unpack_int4(int8[0, 0].to(torch.uint8), 2, True),
    "linear K": lambda: raw.int8_linear(int8, int8[:, :3], ones, None, None, None),
    "linear scale": lambda: raw.int8_linear(int8, int8, ones[:1], None, None, None),
    "linear bias": lambda: raw.int8_linear(int8, int8, ones, None, None, ones[:1]),
    "linear x_zero": lambda: raw.int8_linear(int8, int8, ones, zeros(0, 0), None, None),
    "linear x_zero range": lambda: raw.int8_linear(int8, int8, ones, zeros(200), None, None),
    "linear weight_zero range": lambda: raw.int8_linear(
        int8, int8, ones, None, zeros(0, 0, -129, 0), None
    ),
    "linear weight scalar": lambda: raw.int8_linear(int8, int8[0, 0], ones, None, None, None),
    "linear doubles": lambda: raw.int8_linear(x.double(), int8, ones, None, None, None),
    "linear x_scale": lambda: linear(x, x_scale=ones),
    "linear x_scale dtype": lambda: linear(x, x_scale=zeros(1)),
    "linear x range": lambda: linear(x, x_min=0, x_max=2**33 + 255),
    "linear x_zero outside": lambda: raw.int8_linear(
        x, int8, ones, zeros(-128), None, None, x_scale=ones[:1], x_min=-127
    ),
    "linear x_zero of rows": lambda: raw.int8_linear(x, int8, ones, zeros(1), None, None),
    "linear activation": lambda: linear(int8, activation="elu"),
    "linear residual shape": lambda: linear(int8, residual=ones),
    "linear residual dtype": lambda: linear(int8, residual=torch.ones(4, 4).double()),
    "linear residual scale": lambda: linear(int8, residual=int8[:, :4]),
    "linear residual zero": lambda: linear(
        int8, residual=int8[:, :4], residual_scale=ones[:1], residual_zero=zeros(0, 0)
    ),
    "linear dtype": lambda: linear(int8, dtype=torch.float64),
    "linear y_scale": lambda: linear(int8, dtype=torch.int8),
    "linear y range": lambda: linear(int8, dtype=torch.uint8, y_scale=ones[:1]),
    "linear y_zero": lambda: linear(
        int8, dtype=torch.int8, y_scale=ones[:1], y_zero=zeros(-128), y_min=-127
    ),
    "conv rows": lambda: raw.int8_conv2d(
        image.float(), taps, ones, None, None, None, [1, 1], [0, 0], [1, 1], 1
    ),
    "conv residual": lambda: raw.int8_conv2d(
        image, taps, ones, None, None, None, [1, 1], [0, 0], [1, 1], 1, residual=image.float()
    ),
    "conv padding": lambda: raw.int8_conv2d(
        image, taps, ones, None, None, None, [1, 1], [2**62, 0], [1, 1], 1
    ),
    "conv stride": lambda: raw.int8_conv2d(
        image, taps, ones, None, None, None, [0, 0], [0, 0], [1, 1], 1
    ),
    "conv short stride": lambda: raw.int8_conv2d(
        image, taps, ones, None, None, None, [1], [0, 0], [1, 1], 1
    ),
    "conv groups": lambda: raw.int8_conv2d(
        image, taps, ones, None, None, None, [1, 1], [0, 0], [1, 1], 0
    ),
    "conv kernel too large": lambda: raw.int8_conv2d(
        image[..., :2], taps, ones, None, None, None, [2, 2], [0, 0], [1, 1], 1
    ),
    "conv dimensions": lambda: raw.int8_conv2d(
        image[0], taps, ones, None, None, None, [1, 1], [0, 0], [1, 1], 1
    ),
    "conv channels": lambda: raw.int8_conv2d(
        image[:, :1], taps, ones, None, None, None, [1, 1], [0, 0], [1, 1], 1
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_ops_raise_and_name_themselves(name):
    """Whoever calls torch.ops.sparseq without the checks gets an error too, never a crash."""
    text = r"(quantize\w*|minmax|histogram|int4|int8_linear|int8_conv2d): "
    with pytest.raises(RuntimeError) as caught:
        RAW[name]()
    assert re.search(text, str(caught.value)), caught.value


def test_deep_sums_are_refused():
    """Beyond 33025 products of 255 * 255 int32 may overflow."""
    deep = torch.zeros(1, 33026, dtype=torch.int8)
    with pytest.raises(
        ValueError, match=r"int8_linear: weight must have at most 33025 .* got 33026"
    ):
        ops.int8_linear(deep, deep, ones[:1])
    with pytest.raises(RuntimeError, match="33025"):
        raw.int8_linear(deep, deep, ones[:1], None, None, None)


def test_errors_come_before_work_under_compile_too():
    """Shapes and dtypes are checked while tracing."""

    @torch.compile(fullgraph=True, backend="eager")
    def f(x):
        return ops.quantize(x, 0.1, None, -127, 127)

    with pytest.raises(Exception, match="x must be float32, float16 or bfloat16"):
        f(x.double())
