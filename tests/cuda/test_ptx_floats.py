"""Float instructions and conversions against exact fractions, rounded once by round_to."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx import PtxError
from snippets import array_type, edges, evaluate, kernel, run, wrap

# significant bits, least exponent of a normal number, greatest exponent
FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127)}
FORMATS["f64"] = (53, -1022, 1023)
INF, NAN = math.inf, math.nan


def round_to(x: Fraction, kind: str, mode: str = "rn") -> float:
    """x in a format, as a float; the sign of zero is the caller's."""
    digits, least, greatest = FORMATS[kind]
    if x == 0:
        return 0.0
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length() - 1
    while Fraction(2) ** (exponent + 1) <= abs(x):
        exponent += 1
    step = Fraction(2) ** (max(exponent, least) - digits + 1)
    below = math.floor(x / step)
    rest = x / step - below
    if mode == "rn":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1)
    else:
        up = rest > 0 and (mode == "rp" or (mode == "rz" and x < 0))
    value = (below + up) * step
    most = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** greatest
    if abs(value) > most:
        outwards = mode == "rn" or (mode == "rp" and x > 0) or (mode == "rm" and x < 0)
        return math.copysign(INF if outwards else float(most), -1 if x < 0 else 1)
    return float(value)


def to_floats(array, kind: str) -> list[float]:
    if kind == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(float).tolist()
    return array.astype(float).tolist()


def samples(kind: str, seed: int, count: int = 700):
    """Finite numbers of all sizes and some special ones, as the array type of the format."""
    random = np.random.default_rng(seed)
    width = 64 if kind == "f64" else 32 if kind == "f32" else 16
    raw = random.integers(0, 1 << width, count, dtype=np.uint64).astype(f"u{width // 8}")
    # half of them near one, where sums cancel and round
    greatest = FORMATS[kind][2]
    field = {"f16": 10, "bf16": 7, "f32": 23, "f64": 52}[kind]
    near = random.integers(-4, 4, count // 2) + greatest
    mask = (1 << field) - 1 | 1 << width - 1
    raw[: count // 2] = raw[: count // 2] & raw.dtype.type(mask) | (near << field).astype(raw.dtype)
    special = [0, 1 << width - 1, 1, mask & ~(1 << width - 1), (2 * greatest + 1) << field]
    special += [special[-1] | 1 << width - 1, special[-1] | 1 << field - 1]
    raw[-len(special) :] = random.permutation(np.array(special, np.uint64)).astype(raw.dtype)
    # NaNs quiet, as the tests' own conversions could not take others
    nan = raw & raw.dtype.type(mask & ~(1 << width - 1) | special[4]) > special[4]
    raw[nan] |= raw.dtype.type(1 << field - 1)
    return raw.view(array_type(kind))


def same(got: float, want: float) -> bool:
    if math.isnan(want):
        return math.isnan(got)
    return got == want and math.copysign(1, got) == math.copysign(1, want)


def check(opcode: str, kind: str, exact, plain, *arrays, mode: str = "rn") -> None:
    """Exact gives the fraction to round, plain the IEEE result where that is zero or special."""
    got = to_floats(evaluate(opcode, kind, *((kind, a) for a in arrays)), kind)
    rows = list(zip(*(to_floats(a, kind) for a in arrays), strict=True))
    for values, g in zip(rows, got, strict=True):
        with np.errstate(all="ignore"):
            want = float(plain(*map(np.float64, values)))
        if all(map(math.isfinite, values)):
            x = exact(*map(Fraction, values))
            if x:
                want = math.copysign(round_to(x, kind, mode), -1 if x < 0 else 1)
            elif mode == "rm" and "mul" not in opcode:
                continue  # a sum of zero is -0 when rounding down: tested by hand
        assert same(g, want), f"{opcode} {values}: {g!r}, not {want!r}"


ADD = (lambda a, b: a + b), (lambda a, b: a + b)
SUB = (lambda a, b: a - b), (lambda a, b: a - b)
MUL = (lambda a, b: a * b), (lambda a, b: a * b)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name, functions", [("add", ADD), ("sub", SUB), ("mul", MUL)])
def test_round_to_nearest(name: str, functions, kind: str) -> None:
    for opcode in (f"{name}.rn.{kind}", f"{name}.{kind}"):
        check(opcode, kind, *functions, samples(kind, 0), samples(kind, 1))


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("name, functions", [("add", ADD), ("sub", SUB), ("mul", MUL)])
def test_directed_rounding(name: str, functions, mode: str) -> None:
    check(f"{name}.{mode}.f32", "f32", *functions, samples("f32", 0), samples("f32", 1), mode=mode)


def test_zero_when_rounding_down() -> None:
    got = evaluate("add.rm.f32", "f32", ("f32", [1, 0, -0.0, 0]), ("f32", [-1, 0, -0.0, -0.0]))
    assert np.signbit(got).tolist() == [True, False, True, True]


@pytest.mark.parametrize("kind", FORMATS)
def test_fma(kind: str) -> None:
    a, b, c = (samples(kind, k) for k in range(3))
    functions = (lambda a, b, c: a * b + c), (lambda a, b, c: a * b + c)
    check(f"fma.rn.{kind}", kind, *functions, a, b, c)
    if kind == "f32":
        for mode in ("rz", "rm", "rp"):
            check(f"fma.{mode}.f32", kind, *functions, a, b, c, mode=mode)
        check("mad.rn.f32", kind, *functions, a, b, c)


def test_fma_rounds_once() -> None:
    a, c = np.float32(1 + 2**-12), np.float32(-1 - 2**-11)
    assert evaluate("fma.rn.f32", "f32", *(("f32", [v]) for v in (a, a, c))).tolist() == [2**-24]


def test_halves_of_x2() -> None:
    """Each half as the scalar instruction."""
    for kind in ("f16", "bf16"):
        arrays = [samples(kind, k, 500).view(np.uint16) for k in range(3)]
        words = [a.view(np.uint32) for a in arrays]
        for name, n in (("add.rn", 2), ("sub", 2), ("mul.rn", 2), ("fma.rn", 3), ("max.NaN", 2)):
            one = evaluate(
                f"{name}.{kind}", kind, *((kind, a.view(array_type(kind))) for a in arrays[:n])
            )
            two = evaluate(f"{name}.{kind}x2", "u32", *(("u32", w) for w in words[:n]))
            assert two.view(np.uint16).tolist() == one.view(np.uint16).tolist()


def test_saturation_flush_and_relu() -> None:
    a = ("f32", [0.75, -3, NAN, 2, -0.0])
    assert evaluate("add.sat.f32", "f32", a, ("f32", [0.5])).tolist() == [1, 0, 0, 1, 0.5]
    got = evaluate("fma.rn.sat.f32", "f32", a, ("f32", [0.5]), ("f32", [0]))
    assert got.tolist() == [0.375, 0, 0, 1, 0]
    small = 1e-39  # subnormal
    got = evaluate(
        "add.ftz.f32", "f32", ("f32", [small, -small, 3e-38]), ("f32", [0, -0.0, -2e-38])
    )
    assert got.tolist() == [0, 0, 0] and np.signbit(got).tolist() == [False, True, False]
    assert evaluate("add.f32", "f32", ("f32", [small]), ("f32", [0])).tolist() == [
        np.float32(small)
    ]
    one, signs = ("f16", [1] * 3), ("f16", [-2, 3, NAN])
    got = evaluate("fma.rn.relu.f16", "f16", one, signs, ("f16", [0] * 3))
    assert got[:2].tolist() == [0, 3] and np.isnan(got[2])
    assert evaluate("mul.sat.f16", "f16", ("f16", [3.0]), ("f16", [0.5])).tolist() == [1]


def test_arithmetic_makes_the_canonical_nan() -> None:
    got = evaluate("add.f32", "f32", ("f32", [INF, NAN]), ("f32", [-INF, 1]))
    assert got.view(np.uint32).tolist() == [0x7FFFFFFF] * 2
    assert evaluate("mul.f16", "f16", ("f16", [INF]), ("f16", [0])).view(np.uint16) == 0x7FFF
    assert evaluate("sub.bf16", "bf16", ("bf16", [0x7F80]), ("bf16", [0x7F80])) == 0x7FFF


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "f64"])
def test_min_and_max(kind: str) -> None:
    def pack(values):
        if kind != "bf16":
            return values
        return torch.tensor(values).bfloat16().view(torch.uint16).numpy()

    a, b = [1, -0.0, NAN, 3, NAN, -INF], [2, 0.0, 3, NAN, NAN, 5]
    for name, want in (("min", [1, -0.0, 3, 3, NAN, -INF]), ("max", [2, 0.0, 3, 3, NAN, 5])):
        got = to_floats(evaluate(f"{name}.{kind}", kind, (kind, pack(a)), (kind, pack(b))), kind)
        assert all(map(same, got, want)), got
        if kind != "f64":
            nan = evaluate(f"{name}.NaN.{kind}", kind, (kind, pack(a)), (kind, pack(b)))
            assert np.isnan(to_floats(nan, kind)).tolist() == [
                False,
                False,
                True,
                True,
                True,
                False,
            ]
    swapped = to_floats(evaluate(f"max.{kind}", kind, (kind, pack(b)), (kind, pack(a))), kind)
    assert same(swapped[1], 0.0)


def test_division_and_roots() -> None:
    with np.errstate(all="ignore"):
        for kind in ("f32", "f64"):
            a, b = samples(kind, 3), samples(kind, 4)
            for opcode, got, want in (
                ("div.rn", (a, b), a / b),
                ("sqrt.rn", (a,), np.sqrt(a)),
                ("rcp.rn", (a,), 1 / a),
            ):
                result = evaluate(f"{opcode}.{kind}", kind, *((kind, v) for v in got))
                np.testing.assert_array_equal(result, want)
        a = samples("f32", 3)
        result = evaluate("div.rn.ftz.f32", "f32", ("f32", [1e-39, 1]), ("f32", [1e-39, 2]))
        assert np.isnan(result[0]) and result[1] == 0.5


@pytest.mark.parametrize(
    "opcode, function",
    [
        ("rcp.approx", lambda a: 1 / a),
        ("sqrt.approx", np.sqrt),
        ("rsqrt.approx", lambda a: 1 / np.sqrt(a)),
        ("ex2.approx", np.exp2),
        ("lg2.approx", np.log2),
        ("sin.approx", np.sin),
        ("cos.approx", np.cos),
        ("tanh.approx", np.tanh),
        ("rcp.approx.ftz", lambda a: 1 / a),
    ],
)
def test_approximations(opcode: str, function) -> None:
    a = np.linspace(0.01, 8, 300).astype(np.float32)
    got = evaluate(f"{opcode}.f32", "f32", ("f32", a))
    np.testing.assert_allclose(got, function(a.astype(np.float64)), rtol=2**-23)
    for form in ("approx", "full"):
        got = evaluate(f"div.{form}.f32", "f32", ("f32", a), ("f32", [3]))
        np.testing.assert_allclose(got, a / 3, rtol=2**-23)


def test_approximate_instructions_are_flagged() -> None:
    module = kernel("ex2.approx.f32 %f1, 0f3F800000; sqrt.rn.f32 %f2, %f1;")
    assert [i.opcode for i in run(module, 0).program.approximate] == ["ex2.approx.f32"]


def test_sign_bits() -> None:
    for kind, width in (("f32", 32), ("f64", 64), ("f16", 16), ("bf16", 16)):
        raw = np.array([1 << width - 1, 1, (1 << width) - 1], np.uint64).astype(f"u{width // 8}")
        source = (f"u{width}", raw)
        top = 1 << width - 1
        assert evaluate(f"neg.{kind}", f"u{width}", source).tolist() == [int(v) ^ top for v in raw]
        assert evaluate(f"abs.{kind}", f"u{width}", source).tolist() == [int(v) & ~top for v in raw]
    both = ("u32", [0x80000001])
    for kind in ("f16x2", "bf16x2"):
        assert evaluate(f"neg.{kind}", "u32", both).tolist() == [0x00008001]
        assert evaluate(f"abs.{kind}", "u32", both).tolist() == [1]
    assert evaluate("neg.ftz.f32", "f32", ("f32", [2.0, 1e-40])).tolist() == [-2, 0]
    assert evaluate("abs.ftz.f32", "f32", ("f32", [-2.0, 1e-40])).tolist() == [2, 0]
    assert evaluate("copysign.f32", "f32", ("f32", [-1, 1]), ("f32", [5, -6])).tolist() == [-5, 6]


def test_testp() -> None:
    a = ("f32", [1, 1e-40, 0, INF, NAN])
    for name, want in (
        ("finite", [1, 1, 1, 0, 0]),
        ("infinite", [0, 0, 0, 1, 0]),
        ("number", [1, 1, 1, 1, 0]),
        ("notanumber", [0, 0, 0, 0, 1]),
        ("normal", [1, 0, 0, 0, 0]),
        ("subnormal", [0, 1, 0, 0, 0]),
    ):
        assert evaluate(f"testp.{name}.f32", "pred", a).tolist() == want


@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
def test_comparisons_with_nan(kind: str) -> None:
    a, b = (kind, [1, 2, 2, NAN, 0.0]), (kind, [2, 2, 1, 1, -0.0])
    for name, want in (
        ("eq", [0, 1, 0, 0, 1]),
        ("ne", [1, 0, 1, 0, 0]),
        ("lt", [1, 0, 0, 0, 0]),
        ("le", [1, 1, 0, 0, 1]),
        ("gt", [0, 0, 1, 0, 0]),
        ("ge", [0, 1, 1, 0, 1]),
        ("equ", [0, 1, 0, 1, 1]),
        ("neu", [1, 0, 1, 1, 0]),
        ("ltu", [1, 0, 0, 1, 0]),
        ("leu", [1, 1, 0, 1, 1]),
        ("gtu", [0, 0, 1, 1, 0]),
        ("geu", [0, 1, 1, 1, 1]),
        ("num", [1, 1, 1, 0, 1]),
        ("nan", [0, 0, 0, 1, 0]),
    ):
        assert evaluate(f"setp.{name}.{kind}", "pred", a, b).tolist() == want, name
    tiny = evaluate("setp.gt.ftz.f32", "pred", ("f32", [1e-40]), ("f32", [0]))
    assert tiny.tolist() == [0]


# --- conversions ---

INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]


@pytest.mark.parametrize("to", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_between_integers(to: str, source: str) -> None:
    a = edges(source)
    got = evaluate(f"cvt.{to}.{source}", to, (source, a))
    assert got.tolist() == [wrap(int(v), to) for v in a]
    info = np.iinfo(array_type(to))
    got = evaluate(f"cvt.sat.{to}.{source}", to, (source, a))
    assert got.tolist() == [min(max(int(v), info.min), info.max) for v in a]


def test_a_wider_register_is_cut_and_extended() -> None:
    assert evaluate("cvt.s32.s8", "s32", ("u32", [0x1FF, 0x17F])).tolist() == [-1, 127]
    assert evaluate("cvt.u16.u8", "u16", ("u32", [0x1FF])).tolist() == [255]
    assert evaluate("cvt.s64.s32", "s64", ("s32", [-5])).tolist() == [-5]


@pytest.mark.parametrize("to", INTEGERS)
@pytest.mark.parametrize("source", ["f16", "f32", "f64", "bf16"])
def test_float_to_integer(to: str, source: str) -> None:
    a = samples(source, 5, 600)
    if source in ("f32", "f64"):
        a[:40] = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 128, 255, 255.5] * 4)
        a[40:80] *= np.resize(2.0 ** np.arange(20, 40), 40).astype(a.dtype)
    info = np.iinfo(array_type(to))
    wide = to in ("u64", "s64") or source == "f64"
    of_nan = 0 if not wide else info.min if to[0] == "s" else (info.max >> 1) + 1
    modes = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    for mode, f in modes.items():
        got = evaluate(f"cvt.{mode}.{to}.{source}", to, (source, a))
        for x, g in zip(to_floats(a, source), got.tolist(), strict=True):
            if math.isnan(x):
                want = of_nan
            elif math.isinf(x):
                want = info.max if x > 0 else info.min
            else:
                want = min(max(f(Fraction(x)), info.min), info.max)
            assert g == want, (mode, x)


@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_float(source: str) -> None:
    a = edges(source, count=300)
    for to in FORMATS:
        modes = ("rn", "rz", "rm", "rp") if to in ("f16", "f32") else ("rn",)
        for mode in modes:
            got = to_floats(evaluate(f"cvt.{mode}.{to}.{source}", to, (source, a)), to)
            assert got == [round_to(Fraction(int(v)), to, mode) for v in a], mode


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize(
    "to, source", [("f16", "f32"), ("f16", "f64"), ("f32", "f64"), ("bf16", "f32")]
)
def test_narrower_floats(to: str, source: str, mode: str) -> None:
    if to == "bf16" and mode in ("rm", "rp"):
        with pytest.raises(PtxError, match="unknown modifier, type or rounding"):
            evaluate("cvt.rm.bf16.f32", "bf16", ("f32", [1]))
        return
    a = samples(source, 6, 600)
    a[:200] = (
        np.random.default_rng(0).standard_normal(200) * 2.0 ** np.linspace(-30, 20, 200)
    ).astype(a.dtype)
    got = to_floats(evaluate(f"cvt.{mode}.{to}.{source}", to, (source, a)), to)
    for x, g in zip(a.astype(float).tolist(), got, strict=True):
        want = math.copysign(round_to(Fraction(x), to, mode), x) if math.isfinite(x) else x
        assert same(g, want), x


def test_wider_floats_and_integral_values() -> None:
    half = samples("f16", 7)
    np.testing.assert_array_equal(evaluate("cvt.f32.f16", "f32", ("f16", half)), half.astype("f4"))
    np.testing.assert_array_equal(evaluate("cvt.f64.f16", "f64", ("f16", half)), half.astype("f8"))
    single = samples("f32", 7)
    want = single.astype("f8")
    np.testing.assert_array_equal(evaluate("cvt.f64.f32", "f64", ("f32", single)), want)
    assert evaluate("cvt.f32.bf16", "f32", ("bf16", [0x3FC0])).tolist() == [1.5]
    for kind in ("f16", "f32", "f64"):
        for mode, f in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
            a = np.array([0.5, 1.5, 2.5, -0.5, -1.2, 3.7, INF], array_type(kind))
            got = evaluate(f"cvt.{mode}.{kind}.{kind}", kind, (kind, a))
            assert all(map(same, got.tolist(), f(a).tolist()))
    sat = evaluate("cvt.sat.f32.f32", "f32", ("f32", [2, -1, NAN, 0.25]))
    assert sat.tolist() == [1, 0, 0, 0.25]
    assert evaluate("cvt.rn.ftz.f16.f32", "f16", ("f32", [1e-40, 1])).tolist() == [0, 1]
    assert evaluate("cvt.sat.f16.f16", "f16", ("f16", [2])).tolist() == [1]
    assert evaluate("cvt.rni.ftz.s32.f32", "s32", ("f32", [1e-40, 2.5])).tolist() == [0, 2]


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_packed_floats(kind: str) -> None:
    """The first source goes to the upper half; equal to torch's rounding."""
    a, b = (torch.from_numpy(samples("f32", k, 600)) for k in (8, 9))
    keep = ~(a.isnan() | b.isnan())
    a, b = a[keep], b[keep]
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    sources = ("f32", a.numpy()), ("f32", b.numpy())
    got = evaluate(f"cvt.rn.{kind}x2.f32", "u32", *sources)
    want = torch.stack((b, a), -1).to(dtype).view(torch.uint16).numpy()
    assert got.view(np.uint16).tolist() == want.reshape(-1).tolist()
    got = evaluate(f"cvt.rn.relu.{kind}x2.f32", "u32", ("f32", [-1.0]), ("f32", [1.0]))
    one = {"f16": 0x3C00, "bf16": 0x3F80}[kind]
    assert got.tolist() == [one]
    got = evaluate(f"cvt.rz.{kind}x2.f32", "u32", ("f32", [1.9999]), ("f32", [-1.9999]))
    top = {"f16": 0x3FFF, "bf16": 0x3FFF}[kind]
    assert got.tolist() == [top << 16 | top | 0x8000]
    assert evaluate(f"cvt.rn.relu.{kind}.f32", kind, ("f32", [-2.0])).view(np.uint16) == 0


def test_packed_integers() -> None:
    a, b = ("s32", [300, -1, 5]), ("s32", [-300, 127, 6])
    assert evaluate("cvt.pack.sat.s16.s32", "u32", a, b).tolist() == [
        0x012CFED4,
        0xFFFF007F,
        0x00050006,
    ]
    assert evaluate("cvt.pack.sat.u16.s32", "u32", a, b).tolist() == [0x012C0000, 127, 0x50006]
    c = ("u32", [0x1234] * 3)
    assert evaluate("cvt.pack.sat.s8.s32.b32", "u32", a, b, c).tolist() == [
        0x12347F80,
        0x1234FF7F,
        0x12340506,
    ]
    assert evaluate("cvt.pack.sat.u8.s32.b32", "u32", a, b, c).tolist() == [
        0x1234FF00,
        0x1234007F,
        0x12340506,
    ]
