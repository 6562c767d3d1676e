"""mma and mma.sp for tiles of 16 x 8, by the fragment layouts of the PTX ISA.

With g = lane / 4 and t = lane % 4, and `per` elements of A or B to a register: A's register r holds
row g + 8 (r % 2), columns 4 per (r / 2) + per t + j; B's register r holds rows 4 per r + per t + j
of column g; the accumulator's element i is row g + 8 (i / 2), column 2t + i % 2. Sums are exact,
rounded once: a device's tensor cores round float sums in steps of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .errors import PtxError
from .forms import Action, instruction
from .operation import Operation, Reader, Writer
from .types import Array, bits_of, decoder
from .warps import Threads

LANE = np.arange(32)
G, T = LANE >> 2, LANE & 3
INTEGER = ".row.col[.satfinite].s32.<a:s8|u8>.<b:s8|u8>.<c:s32>"
HALF = ".row.col.<d:f16|f32>.<a:f16>.<b:f16>.<c:f16|f32>"
BFLOAT = ".row.col.<d:f32>.<a:bf16>.<b:bf16>.<c:f32>"
SPARSE = "mma.<sparse:sp|sp::ordered_metadata>.sync.aligned"


class Fragments:
    """Reads a warp's registers as the values of a matrix."""

    def __init__(self, op: Operation, index: int, kind: str, count: int) -> None:
        self.readers: list[Reader] = [op.read(item, "b32", True) for item in op.items(index, count)]
        self.count, self.kind = count, kind
        self.per = max(32 // bits_of(kind), 1)
        self.decode = decoder("bf16" if kind == "bf16" else kind, bits_of(kind))

    def read(self, threads: Threads, warps: int) -> Array:
        """[warp, lane, register, element]"""
        words = np.empty((threads.count, self.count), np.uint32)
        for k, read in enumerate(self.readers):
            words[:, k] = read(threads)
        elements = words.view(f"u{bits_of(self.kind) // 8}")
        return self.decode(elements).reshape(warps, 32, self.count, self.per)


def matrix_a(fragments: Array, columns: int) -> Array:
    warps, _, count, per = fragments.shape
    a = np.empty((warps, 16, columns), np.float64)
    for r in range(count):
        for j in range(per):
            a[:, G + 8 * (r & 1), 4 * per * (r >> 1) + per * T + j] = fragments[:, :, r, j]
    return a


def matrix_b(fragments: Array, rows: int) -> Array:
    warps, _, count, per = fragments.shape
    b = np.empty((warps, rows, 8), np.float64)
    for r in range(count):
        for j in range(per):
            b[:, 4 * per * r + per * T + j, G] = fragments[:, :, r, j]
    return b


def matrix_c(fragments: Array) -> Array:
    flat = fragments.reshape(fragments.shape[0], 32, 4)
    c = np.empty((fragments.shape[0], 16, 8), np.float64)
    for i in range(4):
        c[:, G + 8 * (i >> 1), 2 * T + (i & 1)] = flat[:, :, i]
    return c


def nibbles_of(words: Array, selector: int, kind: str, columns: int) -> Array:
    """[warp, row, group of four columns]: two positions of two bits each, from the lanes' words.

    Which lanes of four give it, and for which rows, the selector says where not all of them do.
    """
    words = words.reshape(-1, 8, 4)
    nibbles = np.empty((words.shape[0], 16, columns // 4), np.int64)
    eight_bit = bits_of(kind) == 8

    def put(t: int, rows: int, first: int, shift: int, count: int) -> None:
        for k in range(count):
            value = words[:, :, t] >> np.uint32(shift + 4 * k) & np.uint32(15)
            nibbles[:, rows : rows + 8, first + k] = value

    if eight_bit and columns == 64:  # all four: rows g and g + 8 in turn, then the other 32 columns
        for t in range(4):
            put(t, 8 * (t & 1), 8 * (t >> 1), 0, 8)
    elif eight_bit:  # a pair: row g, row g + 8
        for u in range(2):
            put(2 * selector + u, 8 * u, 0, 0, 8)
    elif columns == 32:  # a pair: 16 columns each, row g in the lower half
        for u in range(2):
            put(2 * selector + u, 0, 4 * u, 0, 4)
            put(2 * selector + u, 8, 4 * u, 16, 4)
    else:  # one lane
        put(selector, 0, 0, 0, 4)
        put(selector, 8, 0, 16, 4)
    return nibbles


def selectors(kind: str, columns: int) -> int:
    """How many values the sparsity selector may have."""
    return {(8, 64): 1, (8, 32): 2, (16, 32): 2, (16, 16): 4}[bits_of(kind), columns]


def expand(threads: Threads, a: Array, nibbles: Array, ordered: bool) -> Array:
    """The dense A that a compressed one and its metadata stand for."""
    first, second = nibbles & 3, nibbles >> 2
    wrong = first >= second if ordered else first == second
    if wrong.any():
        warp, row, group = np.argwhere(wrong)[0]
        nibble = int(nibbles[warp, row, group])
        message = f"2:4 metadata {nibble:#x} of row {row}, columns from {4 * group} on"
        lanes = np.zeros(threads.count, bool)
        lanes[32 * warp] = True
        threads.fail(f"{message}: positions must {'rise' if ordered else 'differ'}", lanes)
    dense = np.zeros((*nibbles.shape, 4))
    pairs = a.reshape(*nibbles.shape, 2)
    np.put_along_axis(dense, first[..., None], pairs[..., :1], 3)
    np.put_along_axis(dense, second[..., None], pairs[..., 1:], 3)
    return dense.reshape(a.shape[0], 16, -1)


def selected_product(a: Array, nibbles: Array, b: Array) -> Array:
    """A b of the kept columns alone: what b holds for the others, inf or NaN, is not looked at."""
    kept = np.zeros((*nibbles.shape, 4), bool)
    for positions in (nibbles & 3, nibbles >> 2):
        np.put_along_axis(kept, positions[..., None], True, 3)
    kept = kept.reshape(a.shape)
    return np.where(kept[..., None], a[..., None] * b[:, None], 0.0).sum(2)


def result_writer(op: Operation, kind: str) -> Callable[[Threads, Array], None]:
    """Stores [warp, 16, 8] results in the accumulator's registers."""
    count = 2 if kind == "f16" else 4
    name = "f16x2" if kind == "f16" else kind
    writers: list[Writer] = [op.write(item, name) for item in op.items(0, count)]

    def write(threads: Threads, result: Array) -> None:
        parts = [result[:, G + 8 * (i >> 1), 2 * T + (i & 1)].reshape(-1) for i in range(4)]
        if kind == "f16":
            parts = [np.stack(parts[k : k + 2], -1) for k in (0, 2)]
        for store, part in zip(writers, parts, strict=True):
            store(threads, part)

    return write


@instruction(
    *(f"mma.sync.aligned.<shape:m16n8k16|m16n8k32>{INTEGER}",),
    *(f"mma.sync.aligned.<shape:m16n8k8|m16n8k16>{tail}" for tail in (HALF, BFLOAT)),
    *(f"{SPARSE}.<shape:m16n8k32|m16n8k64>{INTEGER}",),
    *(f"{SPARSE}.<shape:m16n8k16|m16n8k32>{tail}" for tail in (HALF, BFLOAT)),
)
def mma(op: Operation) -> Action:
    sparse = bool(op.get("sparse"))
    op.expect(6 if sparse else 4)
    k = int(re.findall(r"\d+", op.get("shape"))[2])
    kind, accumulator, result = op.get("a"), op.get("c"), op.get("d", "s32")
    per, columns = 32 // bits_of(kind), k // 2 if sparse else k
    a = Fragments(op, 1, kind, 16 * columns // (32 * per))
    b = Fragments(op, 2, op.get("b"), 8 * k // (32 * per))
    c = Fragments(op, 3, accumulator, 2 if accumulator == "f16" else 4)
    write = result_writer(op, result)
    saturate, ordered = op.has("satfinite"), "ordered" in op.get("sparse")
    metadata: Reader | None = None
    selector = 0
    if sparse:
        metadata, selector = op.read(4, "b32"), op.constant(5)
        if not 0 <= selector < selectors(kind, k):
            raise PtxError(f"sparsity selector {selector} out of range")

    def act(threads: Threads) -> None:
        warps = threads.whole_warps("mma")
        left = matrix_a(a.read(threads, warps), columns)
        right = matrix_b(b.read(threads, warps), k)
        if metadata is None:
            total = left @ right
        else:
            words = threads.spread(metadata(threads))
            nibbles = nibbles_of(words, selector, kind, k)
            left = expand(threads, left, nibbles, ordered)
            if np.isfinite(right).all():
                total = left @ right
            else:
                total = selected_product(left, nibbles, right)
        total = total + matrix_c(c.read(threads, warps))
        if result == "s32":
            total = total.astype(np.int64)
            if saturate:
                total = np.clip(total, -(2**31), 2**31 - 1)
        write(threads, total)

    return act
