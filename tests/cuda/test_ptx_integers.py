"""Integer instructions of the interpreter against Python's integers, at the edges of every type."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import PtxError
from snippets import array_type, edges, evaluate, pairs, wrap

TYPES = ["u16", "u32", "u64", "s16", "s32", "s64"]


def bits(kind: str) -> int:
    return int(kind[1:])


def expect(opcode: str, result: str, oracle, *sources) -> None:
    """The instruction equals a function of Python integers for every element."""
    got = evaluate(opcode, result, *sources)
    arrays = [np.broadcast_to(s[1], got.size) for s in sources if not isinstance(s, str)]
    want = [wrap(int(oracle(*map(int, row))), result) for row in zip(*arrays, strict=True)]
    wrong = [(*map(int, r), int(g), w) for *r, g, w in zip(*arrays, got, want) if int(g) != w]  # noqa: B905
    assert not wrong, f"{opcode}: {wrong[:3]} of {len(wrong)}"


def truncated(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, kind: str) -> None:
    a, b = pairs(kind)
    expect(f"{name}.{kind}", kind, BINARY[name], (kind, a), (kind, b))


@pytest.mark.parametrize("kind", TYPES)
def test_high_and_wide_products(kind: str) -> None:
    (a, b), c = pairs(kind), edges(kind)[0]
    expect(f"mul.hi.{kind}", kind, lambda a, b: a * b >> bits(kind), (kind, a), (kind, b))
    mad = (kind, np.full(a.size, c))
    expect(f"mad.lo.{kind}", kind, lambda a, b, c: a * b + c, (kind, a), (kind, b), mad)
    expect(
        f"mad.hi.{kind}", kind, lambda a, b, c: (a * b >> bits(kind)) + c, (kind, a), (kind, b), mad
    )
    if bits(kind) < 64:
        wide = f"{kind[0]}{2 * bits(kind)}"
        expect(f"mul.wide.{kind}", wide, lambda a, b: a * b, (kind, a), (kind, b))
        last = (wide, np.resize(edges(wide), a.size))
        expect(f"mad.wide.{kind}", wide, lambda a, b, c: a * b + c, (kind, a), (kind, b), last)


@pytest.mark.parametrize("kind", TYPES)
def test_division_truncates(kind: str) -> None:
    a, b = pairs(kind)
    a, b = a[b != 0], b[b != 0]
    expect(f"div.{kind}", kind, truncated, (kind, a), (kind, b))
    expect(f"rem.{kind}", kind, lambda a, b: a - b * truncated(a, b), (kind, a), (kind, b))


def test_division_by_zero_is_an_error() -> None:
    with pytest.raises(PtxError, match="division by zero"):
        evaluate("div.s32", "s32", ("s32", [1, 2]), ("s32", [1, 0]))


@pytest.mark.parametrize("name", ["add", "sub"])
def test_saturation(name: str) -> None:
    a, b = pairs("s32")
    limit = lambda v: max(-(2**31), min(2**31 - 1, v))  # noqa: E731
    expect(f"{name}.sat.s32", "s32", lambda a, b: limit(BINARY[name](a, b)), ("s32", a), ("s32", b))


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_signs(kind: str) -> None:
    expect(f"neg.{kind}", kind, lambda a: -a, (kind, edges(kind)))
    expect(f"abs.{kind}", kind, abs, (kind, edges(kind)))  # of the least one: itself
    a, b = pairs("s32")
    expect("max.relu.s32", "s32", lambda a, b: max(a, b, 0), ("s32", a), ("s32", b))
    expect("min.relu.s32", "s32", lambda a, b: max(min(a, b), 0), ("s32", a), ("s32", b))


@pytest.mark.parametrize("kind", TYPES)
def test_sad(kind: str) -> None:
    a, b = pairs(kind)
    expect(f"sad.{kind}", kind, lambda a, b, c: c + abs(a - b), (kind, a), (kind, b), (kind, [7]))


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_24_bits(kind: str) -> None:
    a, b = pairs(kind)
    low = lambda v: wrap(v << 8, kind) >> 8  # noqa: E731
    expect(f"mul24.lo.{kind}", kind, lambda a, b: low(a) * low(b), (kind, a), (kind, b))
    expect(
        f"mad24.lo.{kind}",
        kind,
        lambda a, b, c: low(a) * low(b) + c,
        *((kind, v) for v in (a, b, b)),
    )


@pytest.mark.parametrize("width", [16, 32, 64])
def test_logic(width: int) -> None:
    kind = f"u{width}"
    a, b = pairs(kind)
    for name, f in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
        expect(f"{name}.b{width}", kind, f, (kind, a), (kind, b))
    expect(f"not.b{width}", kind, lambda a: ~a, (kind, a))
    expect(f"cnot.b{width}", kind, lambda a: a == 0, (kind, a))


def test_logic_of_predicates() -> None:
    a, b = [0, 0, 1, 1], [0, 1, 0, 1]
    for name, want in (("and", [0, 0, 0, 1]), ("or", [0, 1, 1, 1]), ("xor", [0, 1, 1, 0])):
        assert evaluate(f"{name}.pred", "pred", ("pred", a), ("pred", b)).tolist() == want
    assert evaluate("not.pred", "pred", ("pred", a)).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("table", [0x00, 0x96, 0xE8, 0xCA, 0x2A, 0xFF])
def test_lop3(table: int) -> None:
    a, b = pairs("u32")
    c = b[::-1]

    def oracle(a: int, b: int, c: int) -> int:
        out = 0
        for k in range(32):
            index = (a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1)
            out |= (table >> index & 1) << k
        return out

    expect("lop3.b32", "u32", oracle, ("u32", a), ("u32", b), ("u32", c), f"{table:#x}")


@pytest.mark.parametrize("kind", TYPES)
def test_shifts_beyond_the_width(kind: str) -> None:
    width = bits(kind)
    by = np.array([0, 1, 5, width - 1, width, width + 1, 63, 64, 255, 2**31, 2**32 - 1], np.uint32)
    a, n = (x.reshape(-1)[:1000] for x in np.meshgrid(edges(kind), by))
    unsigned = f"u{width}"
    raw = a.view(array_type(unsigned))
    expect(f"shl.b{width}", unsigned, lambda a, n: a << min(n, 64), (unsigned, raw), ("u32", n))
    expect(f"shr.{kind}", kind, lambda a, n: a >> min(n, 64), (kind, a), ("u32", n))
    expect(f"shr.b{width}", unsigned, lambda a, n: a >> min(n, 64), (unsigned, raw), ("u32", n))


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shift(mode: str) -> None:
    a, b = pairs("u32")
    n = np.resize(np.array([0, 1, 8, 31, 32, 33, 40, 2**32 - 1], np.uint32), a.size)
    count = lambda n: min(n, 32) if mode == "clamp" else n & 31  # noqa: E731
    sources = ("u32", a), ("u32", b), ("u32", n)
    expect(f"shf.r.{mode}.b32", "u32", lambda a, b, n: (b << 32 | a) >> count(n), *sources)
    expect(f"shf.l.{mode}.b32", "u32", lambda a, b, n: (b << 32 | a) << count(n) >> 32, *sources)


@pytest.mark.parametrize(
    "selector, want",
    [
        (0x3210, 0x84838281),
        (0x7654, 0x08070605),
        (0x0123, 0x81828384),
        (0x6420, 0x07058381),
        (0xBA98, 0xFFFFFFFF),  # the signs of a's bytes
        (0xFEDC, 0x00000000),
        (0x9040, 0xFF810581),
    ],
)
def test_prmt(selector: int, want: int) -> None:
    sources = ("u32", [0x84838281]), ("u32", [0x08070605]), f"{selector:#x}"
    assert evaluate("prmt.b32", "u32", *sources).tolist() == [want]


@pytest.mark.parametrize(
    "mode, want",
    [
        ("f4e", [0x03020100, 0x04030201, 0x05040302, 0x06050403]),
        ("b4e", [0x05060700, 0x06070001, 0x07000102, 0x00010203]),
        ("rc8", [0x00000000, 0x01010101, 0x02020202, 0x03030303]),
        ("ecl", [0x03020100, 0x03020101, 0x03020202, 0x03030303]),
        ("ecr", [0x00000000, 0x01010100, 0x02020100, 0x03020100]),
        ("rc16", [0x01000100, 0x03020302, 0x01000100, 0x03020302]),
    ],
)
def test_prmt_modes(mode: str, want: list[int]) -> None:
    """The table of the PTX ISA, for the bytes 7 6 5 4 and 3 2 1 0."""
    sources = ("u32", [0x03020100] * 4), ("u32", [0x07060504] * 4), ("u32", range(4))
    assert evaluate(f"prmt.b32.{mode}", "u32", *sources).tolist() == want


def field_oracle(kind: str):
    top = bits(kind) - 1

    def bfe(a: int, position: int, length: int) -> int:  # the PTX ISA's loop
        position, length = position & 255, length & 255
        signed = kind[0] == "s" and length
        sign = a >> min(position + length - 1, top) & 1 if signed else 0
        out = 0
        for k in range(top + 1):
            inside = k < length and position + k <= top
            out |= (a >> position + k & 1 if inside else sign) << k
        return out

    return bfe


@pytest.mark.parametrize("kind", ["u32", "u64", "s32", "s64"])
def test_bit_fields(kind: str) -> None:
    random = np.random.default_rng(0)
    a = np.resize(edges(kind), 1000)
    position = random.choice([0, 1, 7, 31, 32, 63, 64, 100, 255, 256], 1000)
    length = random.choice([0, 1, 8, 31, 32, 33, 64, 65, 255, 257], 1000)
    counts = ("u32", position), ("u32", length)
    expect(f"bfe.{kind}", kind, field_oracle(kind), (kind, a), *counts)
    if kind[0] == "u":

        def bfi(a: int, b: int, position: int, length: int) -> int:
            position, length = position & 255, length & 255
            for k in range(length):
                if position + k < bits(kind):
                    b = b & ~(1 << position + k) | (a >> k & 1) << position + k
            return b

        expect(f"bfi.b{bits(kind)}", kind, bfi, (kind, a), (kind, a[::-1]), *counts)


@pytest.mark.parametrize("kind", ["u32", "u64", "s32", "s64"])
def test_bfind(kind: str) -> None:
    def bfind(a: int) -> int:
        return ((~a if a < 0 else a).bit_length() - 1) & 0xFFFFFFFF

    a = edges(kind)
    expect(f"bfind.{kind}", "u32", bfind, (kind, a))
    top = bits(kind) - 1
    amount = lambda a: top - bfind(a) if bfind(a) < 64 else -1  # noqa: E731
    expect(f"bfind.shiftamt.{kind}", "u32", amount, (kind, a))


@pytest.mark.parametrize("width", [32, 64])
def test_counts(width: int) -> None:
    kind = f"u{width}"
    a = edges(kind)
    expect(f"popc.b{width}", "u32", lambda a: a.bit_count(), (kind, a))
    expect(f"clz.b{width}", "u32", lambda a: width - a.bit_length(), (kind, a))
    flipped = lambda a: int(f"{a:0{width}b}"[::-1], 2)  # noqa: E731
    expect(f"brev.b{width}", kind, flipped, (kind, a))


def test_bmsk() -> None:
    sources = ("u32", [0, 4, 31, 32, 8]), ("u32", [0, 8, 5, 1, 40])
    want = [0, 0xFF0, 0x80000000, 0, 0xFFFFFF00]
    assert evaluate("bmsk.clamp.b32", "u32", *sources).tolist() == want


@pytest.mark.parametrize("left", ["u32", "s32"])
@pytest.mark.parametrize("right", ["u32", "s32"])
def test_dot_products(left: str, right: str) -> None:
    a, b = pairs("u32")
    result = "u32" if left == right == "u32" else "s32"
    c = np.resize(edges(result), a.size)

    def parts(word: int, kind: str, width: int) -> list[int]:
        narrow = f"{kind[0]}{width}"
        return [wrap(word >> k, narrow) for k in range(0, 32, width)]

    def dp4a(a: int, b: int, c: int) -> int:
        return c + sum(x * y for x, y in zip(parts(a, left, 8), parts(b, right, 8), strict=True))

    sources = ("u32", a), ("u32", b), (result, c)
    expect(f"dp4a.{left}.{right}", result, dp4a, *sources)
    for half, begin in (("lo", 0), ("hi", 2)):

        def dp2a(a: int, b: int, c: int, begin: int = begin) -> int:
            bytes_of_b = parts(b, right, 8)[begin : begin + 2]
            return c + sum(x * y for x, y in zip(parts(a, left, 16), bytes_of_b, strict=True))

        expect(f"dp2a.{half}.{left}.{right}", result, dp2a, *sources)


COMPARE = {
    "eq": int.__eq__,
    "ne": int.__ne__,
    "lt": int.__lt__,
    "le": int.__le__,
    "gt": int.__gt__,
    "ge": int.__ge__,
}


@pytest.mark.parametrize("kind", TYPES)
def test_setp(kind: str) -> None:
    a, b = pairs(kind)
    a[:30] = b[:30]
    for name, f in COMPARE.items():
        got = evaluate(f"setp.{name}.{kind}", "pred", (kind, a), (kind, b))
        assert got.tolist() == [int(f(int(x), int(y))) for x, y in zip(a, b, strict=True)]
    raw = [(f"u{bits(kind)}", v.view(f"u{v.itemsize}")) for v in (a, b)]
    assert evaluate(f"setp.ne.b{bits(kind)}", "pred", *raw).tolist() == (a != b).tolist()
    if kind[0] == "u":
        for name, same in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
            got = evaluate(f"setp.{name}.{kind}", "pred", (kind, a), (kind, b))
            want = evaluate(f"setp.{same}.{kind}", "pred", (kind, a), (kind, b))
            assert got.tolist() == want.tolist()


def test_setp_joins_a_predicate_with_both_results() -> None:
    sources = ("s32", [1, 1, 2, 2]), ("s32", [1, 1, 1, 1]), ("pred", [0, 1, 0, 1])
    for join, p, q in (
        ("and", [0, 1, 0, 0], [0, 0, 0, 1]),
        ("or", [1, 1, 0, 1], [0, 1, 1, 1]),
        ("xor", [1, 0, 0, 1], [0, 1, 1, 0]),
    ):
        got = evaluate(f"setp.eq.{join}.s32", "pred", *sources, second="pred")
        assert [g.tolist() for g in got] == [p, q]


def test_set_and_selections() -> None:
    sources = ("s32", [1, -1]), ("s32", [0, 0])
    assert evaluate("set.lt.u32.s32", "u32", *sources).tolist() == [0, 0xFFFFFFFF]
    assert evaluate("set.lt.f32.s32", "f32", *sources).tolist() == [0.0, 1.0]
    assert evaluate("set.gt.u32.f32", "u32", *(("f32", s[1]) for s in sources)).tolist() == [
        0xFFFFFFFF,
        0,
    ]
    chosen = evaluate("selp.u64", "u64", ("u64", [1, 2]), ("u64", [3, 4]), ("pred", [0, 1]))
    assert chosen.tolist() == [3, 2]
    by = [0, 5, -1]
    assert evaluate(
        "slct.b32.s32", "u32", ("u32", [1] * 3), ("u32", [2] * 3), ("s32", by)
    ).tolist() == [1, 1, 2]
    floats = [-0.0, float("nan"), -1.0, 1e-45]
    assert evaluate(
        "slct.u32.f32", "u32", ("u32", [1] * 4), ("u32", [2] * 4), ("f32", floats)
    ).tolist() == [1, 2, 2, 1]
