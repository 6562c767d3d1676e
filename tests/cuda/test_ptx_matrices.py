"""ldmatrix, mma and mma.sp against the fragment layouts, written out as the PTX ISA has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from ptx import Device, PtxError
from snippets import kernel, run


@dataclass(frozen=True)
class Shape:
    """One section of the ISA: where element i of a lane's fragment lies, by its formulas."""

    k: int
    bits: int
    a_low_rows: tuple[range, ...]  # elements in row groupID; the others in groupID + 8
    sparse: bool = False

    def a(self, lane: int, i: int) -> tuple[int, int]:
        """Row and column; for a sparse A of the compressed matrix."""
        group, in_group, per = lane >> 2, lane % 4, 32 // self.bits
        row = group if any(i in r for r in self.a_low_rows) else group + 8
        first = 0 if i < 2 * per else 4 * per
        return row, in_group * per + i % per + first

    def b(self, lane: int, i: int) -> tuple[int, int]:
        group, in_group, per = lane >> 2, lane % 4, 32 // self.bits
        return in_group * per + i % per + 4 * per * (i // per), group

    @property
    def columns(self) -> int:
        return self.k // 2 if self.sparse else self.k


def c_at(lane: int, i: int) -> tuple[int, int]:
    return (lane >> 2) + (0 if i < 2 else 8), (lane % 4) * 2 + (i & 1)


SHAPES = {
    "m16n8k16.s8": Shape(16, 8, (range(4),)),
    "m16n8k32.s8": Shape(32, 8, (range(4), range(8, 12))),
    "m16n8k8.f16": Shape(8, 16, (range(2),)),
    "m16n8k16.f16": Shape(16, 16, (range(2), range(4, 6))),
    "sp.m16n8k32.s8": Shape(32, 8, (range(4),), True),
    "sp.m16n8k64.s8": Shape(64, 8, (range(4), range(8, 12)), True),
    "sp.m16n8k16.f16": Shape(16, 16, (range(2),), True),
    "sp.m16n8k32.f16": Shape(32, 16, (range(2), range(4, 6)), True),
}


def fragments(matrix, at, count: int, words: int):
    """[lane, register] words of a matrix, by a layout."""
    out = np.zeros((32, count), matrix.dtype)
    for lane in range(32):
        for i in range(count):
            out[lane, i] = matrix[at(lane, i)]
    return out.view(np.uint32).reshape(32, words)


def metadata(positions, shape: Shape, selector: int):
    """One word a lane, as the ISA's figures have it; lanes that do not take part hold rubbish.

    `positions`: [16, k / 4] four-bit pairs of positions, the lower position in the lower bits.
    """
    words = np.full(32, 0xDEADBEEF, np.uint32)

    def word(row: int, first: int, count: int) -> int:
        return sum(int(positions[row, first + n]) << 4 * n for n in range(count))

    for group in range(8):
        for in_group in range(4):
            lane = 4 * group + in_group
            if shape.bits == 8 and shape.k == 64:
                words[lane] = word(group + 8 * (in_group % 2), 8 * (in_group // 2), 8)
            elif shape.bits == 8 and in_group // 2 == selector:
                words[lane] = word(group + 8 * (in_group % 2), 0, 8)
            elif shape.bits == 16 and shape.k == 32 and in_group // 2 == selector:
                first = 4 * (in_group % 2)
                words[lane] = word(group, first, 4) | word(group + 8, first, 4) << 16
            elif shape.bits == 16 and shape.k == 16 and in_group == selector:
                words[lane] = word(group, 0, 4) | word(group + 8, 0, 4) << 16
    return words[:, None]


def execute(opcode: str, tail: str, *operands, results: int):
    """The registers of each lane after the instruction, whose operands are [lane, register]."""
    device, body, names, k = Device(1), [], [], 1
    table = np.concatenate(operands, 1)
    body.append(f"mul.wide.u32 %d1, %tid, {4 * table.shape[1]}; add.u64 %d1, %at0, %d1;")
    for operand in operands:
        count = operand.shape[1]
        body += [f"ld.global.b32 %x{k + n}, [%d1+{4 * (k - 1 + n)}];" for n in range(count)]
        names.append([f"%x{k + n}" for n in range(count)])
        k += count
    groups = ["{" + ",".join(n) + "}" for n in names[:3]] + [n[0] for n in names[3:]]
    out = [f"%x{40 + n}" for n in range(results)]
    body.append(f"{opcode} {{{','.join(out)}}}, {', '.join(groups)}{tail};")
    body.append(f"mul.wide.u32 %d2, %tid, {4 * results}; add.u64 %d2, %at1, %d2;")
    body += [f"st.global.b32 [%d2+{4 * n}], {name};" for n, name in enumerate(out)]
    target = device.allocate(32 * 4 * results)
    text = ".reg .b32 %x<50>;\n" + "\n".join(body)
    run(kernel(text, 2), device.upload(table), target, device=device)
    return device.download(target, np.uint32, (32, results))


def compressed(shape: Shape, random, values):
    """A dense 16 x k matrix with two of four kept, its kept values and their positions."""
    dense = values((16, shape.k))
    groups = dense.reshape(16, -1, 4)
    order = np.sort(random.random(groups.shape).argsort(2)[:, :, :2], 2)
    kept = np.take_along_axis(groups, order, 2)
    sparse = np.zeros_like(groups)
    np.put_along_axis(sparse, order, kept, 2)
    return sparse.reshape(dense.shape), kept.reshape(16, -1), order[..., 0] | order[..., 1] << 2


def result_matrix(registers, dtype):
    per = 4 // np.dtype(dtype).itemsize
    values = registers.view(dtype).reshape(32, registers.shape[1] * per)
    out = np.zeros((16, 8), dtype)
    for lane in range(32):
        for i in range(4):
            out[c_at(lane, i)] = values[lane, i]
    return out


def build(name: str, selector: int, dtype, seed: int = 0):
    """Dense A, B, and the operands of A, B and the metadata."""
    shape, random = SHAPES[name], np.random.default_rng(seed)

    def values(size):
        if shape.bits == 8:
            info = np.iinfo(dtype)
            return random.integers(info.min, info.max, size, endpoint=True).astype(dtype)
        return random.integers(-8, 9, size).astype(np.float16)

    b = values((shape.k, 8))
    per = 32 // shape.bits
    if shape.sparse:
        a, kept, positions = compressed(shape, random, values)
        extra = [metadata(positions, shape, selector)]
    else:
        a = kept = values((16, shape.k))
        extra = []
    count_a, count_b = 16 * shape.columns // 32, 8 * shape.k // 32
    left = fragments(kept, shape.a, count_a, count_a // per)
    right = fragments(b, shape.b, count_b, count_b // per)
    return a, b, left, right, extra


INTEGER = [n for n in SHAPES if n.endswith("s8")]
HALF = [n for n in SHAPES if n.endswith("f16")]


def cases(names: list[str]) -> list[tuple[str, int]]:
    lanes = {(8, 64): 1, (8, 32): 2, (16, 32): 2, (16, 16): 4}
    out = []
    for name in names:
        shape = SHAPES[name]
        count = lanes[shape.bits, shape.k] if shape.sparse else 1
        out += [(name, selector) for selector in range(count)]
    return out


def opcode_of(name: str, types: str, ordered: bool = True, extra: str = "") -> str:
    parts = name.split(".")
    sparse = ("mma.sp::ordered_metadata" if ordered else "mma.sp") if parts[0] == "sp" else "mma"
    return f"{sparse}.sync.aligned.{parts[-2]}.row.col{extra}.{types}"


@pytest.mark.parametrize("kinds", ["s8.s8", "u8.s8", "s8.u8", "u8.u8"])
@pytest.mark.parametrize("name, selector", cases(INTEGER))
def test_integer_products(name: str, selector: int, kinds: str) -> None:
    shape = SHAPES[name]
    dtypes = [np.uint8 if k[0] == "u" else np.int8 for k in kinds.split(".")]
    a, _, left, _, extra = build(name, selector, dtypes[0])
    _, b, _, right, _ = build(name, selector, dtypes[1], 1)
    c = np.random.default_rng(3).integers(-(2**31), 2**31, (16, 8)).astype(np.int32)
    accumulator = fragments(c, c_at, 4, 4)
    tail = f", {selector}" if shape.sparse else ""
    want = a.astype(np.int64) @ b.astype(np.int64) + c
    for extra_modifier in ("", ".satfinite"):
        opcode = opcode_of(name, f"s32.{kinds}.s32", extra=extra_modifier)
        got = execute(opcode, tail, left, right, accumulator, *extra, results=4)
        clipped = np.clip(want, -(2**31), 2**31 - 1) if extra_modifier else want
        assert np.array_equal(result_matrix(got, np.int32), clipped.astype(np.int32))


@pytest.mark.parametrize(
    "types", ["f32.f16.f16.f32", "f16.f16.f16.f16", "f32.f16.f16.f16", "f32.bf16.bf16.f32"]
)
@pytest.mark.parametrize("name, selector", cases(HALF))
def test_half_products(name: str, selector: int, types: str) -> None:
    shape = SHAPES[name]
    result, kind, _, accumulate = types.split(".")
    a, b, left, right, extra = build(name, selector, np.float16)
    if kind == "bf16":  # the same small integers, in the other format
        left, right = (
            torch.from_numpy(w.view(np.float16))
            .to(torch.bfloat16)
            .view(torch.uint16)
            .numpy()
            .view(np.uint32)
            for w in (left, right)
        )
    dtype = np.float16 if accumulate == "f16" else np.float32
    c = np.random.default_rng(3).integers(-50, 50, (16, 8)).astype(dtype)
    accumulator = fragments(c, c_at, 4, 4 if dtype == np.float32 else 2)
    tail = f", {selector}" if shape.sparse else ""
    got = execute(
        opcode_of(name, types),
        tail,
        left,
        right,
        accumulator,
        *extra,
        results=2 if result == "f16" else 4,
    )
    want = a.astype(np.float64) @ b.astype(np.float64) + c
    out = result_matrix(got, np.float16 if result == "f16" else np.float32)
    assert np.array_equal(out, want.astype(out.dtype))


@pytest.mark.parametrize("name, selector", [c for c in cases(HALF) if SHAPES[c[0]].sparse])
def test_what_b_holds_for_a_dropped_column_is_not_looked_at(name: str, selector: int) -> None:
    """A kept 0 times infinity is NaN, as in every product."""
    shape = SHAPES[name]
    positions = np.full((16, shape.k // 4), 0b1100)  # columns 0 and 3 of each four
    a = np.full((16, shape.columns), 0, np.float16)
    a[:, 2:] = 1
    b = np.ones((shape.k, 8), np.float16)
    b[1, 0], b[2, 1], b[5, 2] = np.inf, np.nan, -np.inf  # dropped
    b[0, 3], b[3, 4], b[4, 5], b[4, 6] = np.inf, np.nan, -np.inf, 2
    count_a, count_b = 16 * shape.columns // 32, 8 * shape.k // 32
    operands = (
        fragments(a, shape.a, count_a, count_a // 2),
        fragments(b, shape.b, count_b, count_b // 2),
    )
    zero = np.zeros((32, 4), np.uint32)
    opcode, tail = opcode_of(name, "f32.f16.f16.f32"), f", {selector}"
    got = execute(opcode, tail, *operands, zero, metadata(positions, shape, selector), results=4)
    ones = shape.columns - 2
    want = [ones, ones, ones, np.nan, np.nan, -np.inf, ones + 1, ones]
    assert np.array_equal(result_matrix(got, np.float32), np.tile(want, (16, 1)), equal_nan=True)


def sparse_case(nibble: int, ordered: bool, selector: int = 0):
    shape = SHAPES["sp.m16n8k64.s8"]
    positions = np.full((16, 16), 0b0100)
    positions[5, 9] = nibble
    a = np.ones((16, 32), np.int8)
    left = fragments(a, shape.a, 16, 4)
    right = fragments(np.ones((64, 8), np.int8), shape.b, 16, 4)
    zero = np.zeros((32, 4), np.uint32)
    opcode = opcode_of("sp.m16n8k64.s8", "s32.s8.s8.s32", ordered)
    return execute(
        opcode, f", {selector}", left, right, zero, metadata(positions, shape, 0), results=4
    )


@pytest.mark.parametrize("nibble", range(16))
def test_metadata_must_name_two_positions(nibble: int) -> None:
    first, second = nibble & 3, nibble >> 2
    for ordered in (True, False):
        if first == second or (ordered and first > second):
            with pytest.raises(PtxError, match=r"2:4 metadata .* of row 5, columns from 36 on"):
                sparse_case(nibble, ordered)
        else:
            assert (sparse_case(nibble, ordered) == 32).all()


def test_the_selector_has_a_range() -> None:
    with pytest.raises(PtxError, match="sparsity selector 1 out of range"):
        sparse_case(0b0100, True, 1)


def test_the_metadata_layout_by_hand() -> None:
    """Row 9 of A is one 1, at column 34 + 1: position 3 of columns 32-35, in lane 7's low bits."""
    shape = SHAPES["sp.m16n8k64.s8"]
    kept = np.zeros((16, 32), np.int8)
    kept[9, 17] = 1  # the second kept value of columns 32-35
    words = np.full((32, 1), 0x44444444, np.uint32)
    words[4 * 1 + 3] = 0x4444444C  # group 1, row 1 + 8, columns 32-63: positions 0 and 3
    left = fragments(kept, shape.a, 16, 4)
    b = np.arange(64)[:, None] + np.zeros((1, 8), int)
    right = fragments(b.astype(np.int8), shape.b, 16, 4)
    zero = np.zeros((32, 4), np.uint32)
    opcode = opcode_of("sp.m16n8k64.s8", "s32.s8.s8.s32")
    got = result_matrix(execute(opcode, ", 0x0", left, right, zero, words, results=4), np.int32)
    want = np.zeros((16, 8))
    want[9] = 35
    assert np.array_equal(got, want)


def test_wrong_register_counts() -> None:
    four, two = np.zeros((32, 4), np.uint32), np.zeros((32, 2), np.uint32)
    with pytest.raises(PtxError, match="operand 1 has 2 registers, not 4"):
        execute(opcode_of("m16n8k32.s8", "s32.s8.s8.s32"), "", two, two, four, results=4)


def test_mma_needs_the_whole_warp() -> None:
    registers = "{%r1,%r2,%r3,%r4}"
    body = "setp.lt.u32 %p1, %tid, 9; @%p1 mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
    body += f"{registers}, {registers}, {{%r1,%r2}}, {registers};"
    with pytest.raises(PtxError, match="needs all 32 threads"):
        run(kernel(body), 0)


# --- ldmatrix ---


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    """Rows at permuted places; lane 4r + c gets elements 2c and 2c + 1 of row r of each matrix."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    place = random.permutation(32)
    device = Device(1)
    memory = np.zeros((32, 8), np.uint16)
    memory[place] = rows
    out = device.allocate(32 * 4 * count)
    registers = ",".join(f"%r{10 + k}" for k in range(count))
    trans = ".trans" if transposed else ""
    body = f"""
mul.wide.u32 %d1, %tid, 16; add.u64 %d1, %at0, %d1;
shl.b32 %r1, %tid, 4;
cp.async.cg.shared.global [%r1], [%d1], 16;
cp.async.wait_all;
bar.sync 0;
mul.wide.u32 %d2, %tid, 4; add.u64 %d2, %at1, %d2; ld.global.b32 %r2, [%d2];
ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r2];
mul.wide.u32 %d3, %tid, {4 * count}; add.u64 %d3, %at2, %d3;
""" + "\n".join(f"st.global.b32 [%d3+{4 * k}], %r{10 + k};" for k in range(count))
    addresses = device.upload((place * 16).astype(np.uint32))
    run(kernel(body, 3, 512), device.upload(memory), addresses, out, device=device)
    got = device.download(out, np.uint16, (32, count, 2))
    for lane in range(32):
        for m in range(count):
            matrix = rows[8 * m : 8 * m + 8]
            matrix = matrix.T if transposed else matrix
            row, column = lane // 4, 2 * (lane % 4)
            assert got[lane, m].tolist() == matrix[row, column : column + 2].tolist()


@pytest.mark.parametrize(
    "what, offset, between",
    [
        ("misaligned 16-byte shared", 8, "bar.sync 0;"),
        ("out-of-bounds shared", 512, "bar.sync 0;"),
        ("shared-memory race", 0, ""),
        ("uninitialised", 512, "bar.sync 0;"),
    ],
)
def test_bad_ldmatrix(what: str, offset: int, between: str) -> None:
    body = f"""
shl.b32 %r1, %tid, 4;
st.shared.v4.b32 [%r1], {{%r1,%r1,%r1,%r1}};
{between}
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r2,%r3,%r4,%r5}}, [%r1+{offset}];"""
    with pytest.raises(PtxError, match=what):
        run(kernel(body, 1, 1024 if what == "uninitialised" else 512), 0)
