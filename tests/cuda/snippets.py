"""Small PTX kernels for the tests of the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ptx import Device, Launch, Module
from ptx.syntax import WIDTHS
from ptx.types import FLOAT, SIGNED, UNSIGNED

HEADER = ".version 9.0\n.target sm_80\n.address_size 64\n"


def kernel(body: str, parameters: int = 1, shared: int = 0, block: int = 1024) -> Module:
    """A kernel `k` of u64 parameters p0, p1, ... with registers %p, %h, %r, %d, %f, %g to spare.

    %tid is the thread's index in the block, %at0, %at1, ... the parameters as global addresses.
    """
    names = ", ".join(f".param .u64 p{k}" for k in range(parameters))
    at = "\n".join(f"ld.param.u64 %at{k}, [p{k}];" for k in range(parameters))
    memory = f".shared .align 16 .b8 buffer[{shared}];" if shared else ""
    return Module(f"""{HEADER}
.visible .entry k({names})
.maxntid {block}, 1, 1
{{
.reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .b64 %d<32>;
.reg .f32 %f<16>; .reg .f64 %g<16>; .reg .b32 %tid; .reg .b64 %at<{parameters}>;
{memory}
{at}
mov.u32 %tid, %tid.x;
{body}
ret;
}}
""")


def run(
    module: Module,
    *arguments: Any,
    grid: Sequence[int] = (1,),
    threads: int = 32,
    device: Device | None = None,
    **options: Any,
) -> Launch:
    return Launch(device or Device(1), module, "k", grid, (threads,), arguments, **options).run()


def array_type(name: str) -> Any:
    """What an array of a PTX type is in NumPy; types that NumPy lacks are their bits."""
    bits = WIDTHS[name]
    if name[0] == "s":
        return SIGNED[bits]
    return FLOAT[bits] if name in ("f16", "f32", "f64") else UNSIGNED[bits]


def register_type(name: str) -> str:
    return f"b{max(WIDTHS[name], 16)}"


def evaluate(
    opcode: str, result: str, *sources: tuple[str, Any] | str, second: str | None = None
) -> Any:
    """The instruction for every element of arrays: (type, array) each, or text for a constant.

    A predicate is given as an array of integers and returned as 0s and 1s. `second` is the type
    of another destination, which makes the result a pair.
    """
    arrays = [
        np.atleast_1d(np.asarray(s[1], array_type(s[0])))
        if s[0] != "pred"
        else np.atleast_1d(np.asarray(s[1], np.uint32))
        for s in sources
        if not isinstance(s, str)
    ]
    count = max(a.size for a in arrays)
    arrays = [np.broadcast_to(a, count) for a in arrays]
    lines, names, k = [], [], 0
    lines.append("mul.wide.u32 %d31, %tid, 1;")
    for source in sources:
        if isinstance(source, str):
            names.append(source)
            continue
        kind, size = source[0], arrays[k].dtype.itemsize
        lines.append(f"mad.lo.u64 %d30, %d31, {size}, %at{k};")
        if kind == "pred":
            lines.append(f"ld.global.u32 %r31, [%d30];\nsetp.ne.u32 %in{k}, %r31, 0;")
            declared = "pred"
        else:
            bits = 8 * size
            lines.append(f"ld.global.{'u8' if bits == 8 else f'b{bits}'} %in{k}, [%d30];")
            declared = register_type(kind)
        lines.insert(0, f".reg .{declared} %in{k};")
        names.append(f"%in{k}")
        k += 1
    results = [result] if second is None else [result, second]
    for j, kind in enumerate(results):
        declared = "pred" if kind == "pred" else register_type(kind)
        lines.insert(0, f".reg .{declared} %out{j};")
    target = "|".join(f"%out{j}" for j in range(len(results)))
    lines.append(f"{opcode} {', '.join([target, *names])};")
    device, outputs = Device(1), []
    for j, kind in enumerate(results):
        dtype = np.dtype(np.uint32 if kind == "pred" else array_type(kind))
        outputs.append((device.allocate(count * dtype.itemsize), dtype))
        lines.append(f"mad.lo.u64 %d30, %d31, {dtype.itemsize}, %at{k + j};")
        if kind == "pred":
            lines.append(f"selp.u32 %r30, 1, 0, %out{j};\nst.global.u32 [%d30], %r30;")
        else:
            lines.append(f"st.global.b{8 * dtype.itemsize} [%d30], %out{j};")
    module = kernel("\n".join(lines), k + len(results))
    inputs = [device.upload(a) for a in arrays]
    addresses = [address for address, _ in outputs]
    run(module, *inputs, *addresses, threads=count, device=device)
    found = [device.download(address, dtype, (count,)) for address, dtype in outputs]
    return found[0] if second is None else found


def edges(kind: str, seed: int = 0, count: int = 60) -> Any:
    """Integers of a type: limits, small ones, powers of two and their neighbours, random ones."""
    bits, signed = WIDTHS[kind], kind[0] == "s"
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = {low, low + 1, high, high - 1, 0, 1, 2, 3, 7, 100}
    values |= {1 << k for k in range(0, bits, 5)} | {(1 << k) - 1 for k in range(0, bits, 7)}
    values |= {-v for v in list(values)}
    kept = sorted(v for v in values if low <= v <= high)
    random = np.random.default_rng(seed)
    more = random.integers(low, high, count, endpoint=True, dtype=array_type(kind))
    return np.concatenate([np.array(kept, array_type(kind)), more])


def pairs(kind: str, other: str | None = None, count: int = 900) -> tuple[Any, Any]:
    """Edges of two types, all with all, cut to a block's worth by chance."""
    a, b = np.meshgrid(edges(kind), edges(other or kind, 1))
    pick = np.random.default_rng(2).permutation(a.size)[:count]
    return a.reshape(-1)[pick], b.reshape(-1)[pick]


def wrap(value: int, kind: str) -> int:
    """An integer as a type holds it."""
    bits = WIDTHS[kind]
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> bits - 1 else value
