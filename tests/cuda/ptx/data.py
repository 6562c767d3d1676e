"""Moves, loads and stores."""

from __future__ import annotations

import numpy as np

from .elementwise import elementwise
from .errors import PtxError
from .forms import BITS, Action, instruction
from .memory import GLOBAL, IN_FLIGHT, LOCAL, SHARED, Space
from .operation import Operation
from .syntax import Address, Symbol, Vector
from .types import SIGNED, UNSIGNED, Array, bits_of
from .warps import Threads

TYPES = "b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f32|f64"
SPACES = "global|shared|shared::cta|local|param|const"
# how long data should stay in a cache changes no result
EVICT = "evict_normal|evict_unchanged|evict_first|evict_last|no_allocate"
HINTS = (
    f"[.L1::<l1:{EVICT}>][.L2::<l2:evict_normal|evict_first|evict_last>][.L2::<policy:cache_hint>]"
)
ORDER = "[.<order:weak|volatile>]"
STRONG = ".<scope:cta|gpu|sys>"
BASES = {"global": 0, "const": 0, "param": 0, "shared": SHARED, "local": LOCAL}


@instruction(f"mov.<type:pred|{BITS}|u16|u32|u64|s16|s32|s64|f32|f64>")
def mov(op: Operation) -> Action:
    op.expect(2)
    kind = op.get("type")
    if kind == "pred":
        return elementwise(op, kind, (kind,), lambda a: a)
    bits = bits_of(kind)
    whole = f"b{bits}"
    target, source = op.operands
    if isinstance(source, Vector):
        part = bits // len(source.items)
        readers = [op.read(item, f"b{part}") for item in source.items]
        write = op.write(0, whole)
        wide = UNSIGNED[bits]

        def join(threads: Threads) -> None:
            value = wide(0)
            for k, read in enumerate(readers):
                value = value | read(threads).astype(wide) << wide(k * part)
            write(threads, value)

        return join
    if isinstance(target, Vector):
        part = bits // len(target.items)
        writers = [op.write(item, f"b{part}") for item in target.items]
        read = op.read(1, whole)

        def take_apart(threads: Threads) -> None:
            value = read(threads)
            for k, write in enumerate(writers):
                write(threads, (value >> UNSIGNED[bits](k * part)).astype(UNSIGNED[part]))

        return take_apart
    return elementwise(op, whole, (whole,), lambda a: a)


def count_of(op: Operation) -> int:
    return int(op.get("vec", "v1")[1:])


def resolve(threads: Threads, name: str, address: Array) -> tuple[Space, Array]:
    """The space of an access and the address within it; a generic address says which it is."""
    if not name:
        first = int(address.flat[0]) if address.ndim else int(address)
        name = "global" if first >= GLOBAL else "shared" if first >= SHARED else "local"
        if first < LOCAL:
            threads.fail(f"a generic address in no space: {first:#x}")
        other = (address >= GLOBAL) != (first >= GLOBAL)
        if np.any(other | ((address >= SHARED) != (first >= SHARED))):
            threads.fail("generic addresses of several spaces in one access are not modelled")
        address = address - BASES[name]
    return threads.chunk.spaces[name], address


def watch(
    threads: Threads, space: Space, offsets: Array, size: int, kind: str, constant: bool = False
) -> None:
    """Shows an access to the race checkers."""
    chunk = threads.chunk
    if space.name == "global" and chunk.launch.global_races is not None:
        chunk.launch.global_races.access(threads, offsets, size, kind, constant)
    elif space.name == "shared" and chunk.shared_races is not None:
        if kind != "read" and chunk.copies is not None and chunk.copies.pending:
            refuse_in_flight(threads, space, offsets, size)
        chunk.shared_races.access(threads, offsets, size, kind)


def refuse_in_flight(threads: Threads, space: Space, offsets: Array, size: int) -> None:
    flying = (space.state.reshape(-1, size)[offsets // size] == IN_FLIGHT).any(1)
    if flying.any():
        threads.fail("write to shared memory that a cp.async has in flight", flying)


def parameter(op: Operation, kind: str, count: int) -> Action:
    """ld.param: the same for every thread."""
    address = op.operands[1]
    if not (isinstance(address, Address) and isinstance(address.base, Symbol)):
        raise PtxError("ld.param through a register is not modelled")
    if address.base.name not in op.symbols:
        raise PtxError(f"no parameter {address.base.name}")
    size = bits_of(kind) // 8
    begin = op.symbols[address.base.name] + address.base.offset + address.offset
    if begin + size * count > op.kernel.parameter_bytes or begin % (size * count):
        raise PtxError("out-of-bounds or misaligned parameter")
    family = (SIGNED if kind[0] == "s" else UNSIGNED)[8 * size]
    name = kind if kind[0] == "s" else f"b{8 * size}"
    writers = [op.write(item, name, wide=True) for item in op.items(0, count)]

    def load(threads: Threads) -> None:
        raw = threads.chunk.launch.parameters
        for k, write in enumerate(writers):
            write(threads, np.frombuffer(raw, family, 1, begin + k * size)[0])

    return load


@instruction(
    f"ld{ORDER}[.<space:{SPACES}>][.<cache:ca|cg|cs|lu|cv>]{HINTS}[.L2::<fetch:64B|128B|256B>]"
    f"[.<vec:v2|v4>].<type:{TYPES}>",
    f"ld.<order:relaxed|acquire>{STRONG}[.<space:global|shared|shared::cta>][.<vec:v2|v4>].<type:{TYPES}>",
    f"ld.<space:global>[.<cache:ca|cg|cs>].<nc:nc>{HINTS}[.L2::<fetch:64B|128B|256B>]"
    f"[.<vec:v2|v4>].<type:{TYPES}>",
)
def load(op: Operation) -> Action:
    op.expect(3 if op.get("policy") else 2)
    kind, count = op.get("type"), count_of(op)
    space_name = op.get("space").partition(":")[0]
    if space_name == "param":
        return parameter(op, kind, count)
    if space_name == "const":
        raise PtxError("constant memory is not modelled")
    size, constant = bits_of(kind) // 8, bool(op.get("nc"))
    name = kind if kind[0] == "s" else f"b{8 * size}"
    writers = [op.write(item, name, wide=True) for item in op.items(0, count)]
    address = op.address(1)

    def act(threads: Threads) -> None:
        space, where = resolve(threads, space_name, address(threads))
        offsets = space.where(threads, where, size * count)
        values = space.load(threads, offsets, size, count)
        watch(threads, space, offsets, size * count, "read", constant)
        if kind[0] == "s":
            values = values.view(SIGNED[8 * size])
        for write, value in zip(writers, values.T.copy(), strict=True):
            write(threads, value)

    return act


@instruction(
    f"st{ORDER}[.<space:global|shared|shared::cta|local>][.<cache:wb|cg|cs|wt>]{HINTS}"
    f"[.<vec:v2|v4>].<type:{TYPES}>",
    f"st.<order:relaxed|release>{STRONG}[.<space:global|shared|shared::cta>][.<vec:v2|v4>].<type:{TYPES}>",
)
def store(op: Operation) -> Action:
    op.expect(3 if op.get("policy") else 2)
    count, bits = count_of(op), bits_of(op.get("type"))
    space_name = op.get("space").partition(":")[0]
    address = op.address(0)
    readers = [op.read(item, f"b{bits}", wide=True) for item in op.items(1, count)]
    size = bits // 8 * count

    def act(threads: Threads) -> None:
        space, where = resolve(threads, space_name, address(threads))
        offsets = space.where(threads, where, size)
        values = np.empty((threads.count, count), UNSIGNED[bits])
        for k, read in enumerate(readers):
            values[:, k] = read(threads)
        watch(threads, space, offsets, size, "write")
        space.store(offsets, values)

    return act


@instruction("cvta[.<to:to>].<space:global|shared|shared::cta|local|const|param>.<type:u32|u64>")
def cvta(op: Operation) -> Action:
    """Between generic addresses and those within a space; global ones are the same."""
    kind = op.get("type")
    base = BASES[op.get("space").partition(":")[0]]
    if kind == "u32" and base:
        raise PtxError("32-bit generic addresses are not modelled")
    by = UNSIGNED[bits_of(kind)](base)
    if op.get("to"):
        return elementwise(op, kind, (kind,), lambda a: a - by)
    return elementwise(op, kind, (kind,), lambda a: a + by)


@instruction("isspacep.<space:global|shared|shared::cta|local>")
def isspacep(op: Operation) -> Action:
    low = {"global": GLOBAL, "shared": SHARED, "local": LOCAL}[op.get("space").partition(":")[0]]
    high = {GLOBAL: 1 << 62, SHARED: GLOBAL, LOCAL: SHARED}[low]
    return elementwise(op, "pred", ("u64",), lambda a: (a >= low) & (a < high))


@instruction(
    "prefetch[.<space:global|local>].<level:L1|L2>",
    "prefetch.global.L2::<evict:evict_last|evict_normal>",
    "prefetchu.L1",
)
def prefetch(op: Operation) -> Action:
    op.address(0)
    return lambda threads: None


@instruction(
    f"createpolicy.fractional.L2::<first:{EVICT}>[.L2::<second:evict_first|evict_unchanged>].b64"
)
def createpolicy(op: Operation) -> Action:
    write = op.write(0, "b64")
    return lambda threads: write(threads, np.uint64(0))  # type: ignore[arg-type]
