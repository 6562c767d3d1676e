"""Atomic operations on global and shared memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .data import resolve, watch
from .forms import Action, instruction
from .memory import Space
from .operation import Operation
from .types import Array, bits_of, decoder, encoder
from .warps import Threads

HEAD = (
    "[.<order:relaxed|acquire|release|acq_rel>][.<scope:cta|gpu|sys>]"
    "[.<space:global|shared|shared::cta>]"
)
TAILS = [
    "<op:add>.<type:u32|s32|u64|f32|f64>",
    "<op:add>.noftz.<type:f16|f16x2|bf16|bf16x2>",
    "<op:min|max>.<type:u32|s32|u64|s64>",
    "<op:and|or|xor>.<type:b32|b64>",
    "<op:inc|dec>.<type:u32>",
]
SWAPS = ["<op:exch>.<type:b32|b64>", "<op:cas>.<type:b16|b32|b64>"]


def _increment(old: Array, limit: Array) -> Array:
    return np.where(old >= limit, 0, old + 1)


def _decrement(old: Array, limit: Array) -> Array:
    return np.where((old == 0) | (old > limit), limit, old - 1)


COMBINE: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: np.where(old == expected, new, old),
    "inc": _increment,
    "dec": _decrement,
}


@instruction(*(f"atom{HEAD}.{tail}" for tail in TAILS + SWAPS), *(f"red{HEAD}.{t}" for t in TAILS))
def atomic(op: Operation) -> Action:
    returns = op.instruction.opcode.startswith("atom")
    kind, name = op.get("type"), op.get("op")
    at = 1 if returns else 0
    op.expect(at + (3 if name == "cas" else 2))
    bits = bits_of(kind)
    space_name = op.get("space").partition(":")[0]
    address = op.address(at)
    readers = [op.read(k, kind) for k in range(at + 1, len(op.operands))]
    write = op.write(0, f"b{bits}") if returns else None
    decode, encode, combine = decoder(kind, bits), encoder(kind, bits), COMBINE[name]

    def act(threads: Threads) -> None:
        space, where = resolve(threads, space_name, address(threads))
        offsets = space.where(threads, where, bits // 8)
        watch(threads, space, offsets, bits // 8, "atomic")
        values = [read(threads) for read in readers]
        old = _in_turn(threads, space, offsets, values)
        if write is not None:
            write(threads, old)

    def _in_turn(threads: Threads, space: Space, offsets: Array, values: list[Array]) -> Array:
        """One thread after another where several name one address; the rest at once."""
        shape = (threads.count, *np.shape(decode(np.zeros(1, f"u{bits // 8}")))[1:])
        values = [np.broadcast_to(v, shape) for v in values]
        space.load(threads, offsets, bits // 8, 1)  # for its check
        order = np.arange(threads.count)
        if threads.chunk.launch.schedule == "random":
            order = threads.chunk.launch.rng.permutation(order)
        result = np.empty(threads.count, f"u{bits // 8}")
        while order.size:
            _, first = np.unique(offsets[order], return_index=True)
            now = order[first]
            before = space.load(threads, offsets[now], bits // 8, 1)[:, 0]
            result[now] = before
            after = encode(combine(decode(before), *(v[now] for v in values)))
            space.store(offsets[now], after[:, None])
            order = np.delete(order, first)
        return result

    return act
