"""Loads, stores, atomics and cp.async; every kind of bad access is an error that names its line."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import Device, PtxError
from snippets import evaluate, kernel, run

WORDS = np.arange(100, 228, dtype=np.uint32)


def copied(body: str, data, out_bytes: int, threads: int = 32, shared: int = 0, **options):
    """What `body` writes to %at1 from %at0, as bytes."""
    device = Device(1)
    source, out = device.upload(data), device.allocate(out_bytes)
    run(kernel(body, 2, shared), source, out, device=device, threads=threads, **options)
    return device.download(out, np.uint8, (out_bytes,))


def fails(match: str, body: str, *arguments, shared: int = 0, threads: int = 32, **options) -> str:
    device = options.pop("device", None) or Device(1)
    module = kernel(body, max(len(arguments), 1), shared)
    with pytest.raises(PtxError, match=match) as caught:
        run(module, *(arguments or (0,)), device=device, threads=threads, **options)
    return str(caught.value)


AT = "mul.wide.u32 %d1, %tid, {size};\nadd.u64 %d2, %at0, %d1;\nadd.u64 %d3, %at1, %d1;\n"


@pytest.mark.parametrize(
    "hint", ["", ".ca", ".cg", ".L1::no_allocate", ".L2::128B", ".nc", ".volatile"]
)
@pytest.mark.parametrize("vector, size", [("", 4), (".v2", 8), (".v4", 16)])
def test_vectors(hint: str, vector: str, size: int) -> None:
    registers = "{%r1, %r2, %r3, %r4}" if size == 16 else "{%r1, %r2}" if size == 8 else "%r1"
    order, cache = (hint, "") if hint == ".volatile" else ("", hint)
    body = AT.format(size=size)
    body += f"ld{order}.global{cache}{vector}.u32 {registers}, [%d2];\n"
    body += f"st.global{vector}.b32 [%d3], {registers};"
    got = copied(body, WORDS, 32 * size)
    assert got.tobytes() == WORDS.tobytes()[: 32 * size]


def test_other_hints() -> None:
    body = (
        AT.format(size=4)
        + """
createpolicy.fractional.L2::evict_last.b64 %d9;
prefetch.global.L2 [%d2];
prefetchu.L1 [%d2];
prefetch.global.L2::evict_last [%d2];
ld.global.nc.L1::evict_last.L2::cache_hint.L2::256B.b32 %r1, [%d2], %d9;
ld.relaxed.gpu.global.b32 %r2, [%d2];
ld.acquire.sys.global.b32 %r2, [%d2];
st.global.L2::cache_hint.b32 [%d3], %r1, %d9;
st.release.gpu.global.b32 [%d3], %r2;
st.volatile.global.b32 [%d3], %r1;
membar.gl;
fence.acq_rel.gpu;
"""
    )
    assert copied(body, WORDS, 128).tobytes() == WORDS.tobytes()[:128]


def test_narrow_loads_extend_and_stores_cut() -> None:
    data = np.array([0x80, 0x7F, 0xFF, 1] * 8, np.uint8)
    body = AT.format(size=1) + "ld.global.s8 %r1, [%d2]; mul.wide.u32 %d4, %tid, 8;"
    body += "add.u64 %d3, %at1, %d4; st.global.u32 [%d3], %r1; ld.global.u8 %h1, [%d2];"
    body += "cvt.u32.u16 %r2, %h1; add.u32 %r2, %r2, 0x100; st.global.u8 [%d3+4], %r2;"
    body += "st.global.u8 [%d3+5], 0; st.global.u16 [%d3+6], %r1;"
    got = copied(body, data, 256).reshape(32, 8)
    assert got[:, :4].copy().view(np.int32)[:, 0].tolist() == data.view(np.int8).tolist()
    assert got[:, 4].tolist() == data.tolist()


def test_shared_local_and_generic_memory() -> None:
    body = (
        AT.format(size=4)
        + """
.local .align 4 .b8 mine[16];
.reg .b32 %base; .reg .b64 %sp; .reg .pred %q;
ld.global.b32 %r1, [%d2];
mov.u32 %base, buffer;
shl.b32 %r2, %tid, 2;
add.u32 %r2, %base, %r2;
st.shared.b32 [%r2], %r1;
cvt.u64.u32 %sp, %r2;
cvta.shared.u64 %sp, %sp;
ld.b32 %r3, [%sp];
mov.u64 %d5, mine;
cvta.local.u64 %d6, %d5;
st.b32 [%d6+4], %r3;
ld.local.b32 %r4, [mine+4];
isspacep.shared %q, %sp;
@!%q trap;
isspacep.local %q, %d6;
@!%q trap;
isspacep.global %q, %d2;
@!%q trap;
cvta.to.shared.u64 %d7, %sp;
ld.shared.b32 %r4, [%d7];
cvta.to.global.u64 %d3, %d3;
st.b32 [%d3], %r4;
"""
    )
    assert copied(body, WORDS, 128, shared=128).tobytes() == WORDS.tobytes()[:128]


def test_a_swap_between_threads_through_shared_memory() -> None:
    body = (
        AT.format(size=4)
        + """
ld.global.b32 %r1, [%d2];
shl.b32 %r2, %tid, 2;
st.shared.b32 [%r2], %r1;
bar.sync 0;
xor.b32 %r3, %r2, 252;
ld.shared.b32 %r4, [%r3];
st.global.b32 [%d3], %r4;
"""
    )
    got = copied(body, WORDS, 256, threads=64, shared=256).view(np.uint32)
    assert got.tolist() == WORDS[63::-1].tolist()


def test_mov_joins_and_takes_apart() -> None:
    body = (
        AT.format(size=4)
        + """
ld.global.b32 %r1, [%d2];
mov.b32 {%h1, %h2}, %r1;
mov.b32 %r2, {%h2, %h1};
mov.b64 %d5, {%r2, %r1};
mov.b64 {%r3, _}, %d5;
st.global.b32 [%d3], %r3;
"""
    )
    want = (WORDS[:32] >> 16) | (WORDS[:32] << 16)
    assert copied(body, WORDS, 128).view(np.uint32).tolist() == want.tolist()


# --- errors ---


@pytest.mark.parametrize(
    "opcode, operand, what",
    [
        ("ld.global.b32 %r1,", "[%at0+400]", "out-of-bounds global"),
        ("ld.global.b32 %r1,", "[%at0-4]", "out-of-bounds global"),
        ("ld.global.v4.b32 {%r1,%r2,%r3,%r4},", "[%at0+396]", "misaligned 16-byte global"),
        ("ld.global.b32 %r1,", "[%at0+2]", "misaligned 4-byte global"),
        ("ld.global.b64 %d1,", "[%at0+396]", "misaligned 8-byte global"),
        ("ld.global.v2.b32 {%r1,%r2},", "[%at0+400]", "out-of-bounds global"),
        ("ld.shared.b32 %r1,", "[buffer+64]", "out-of-bounds shared"),
        ("ld.shared.b16 %h1,", "[buffer+1]", "misaligned 2-byte shared"),
        ("ld.shared.b32 %r1,", "[buffer]", "uninitialised memory .shared"),
        ("ld.global.b32 %r1,", "[%at1]", "uninitialised memory .global"),
        ("ld.local.b32 %r1,", "[mine]", "uninitialised memory .local"),
        ("ld.local.b32 %r1,", "[mine+16]", "out-of-bounds local"),
        ("ld.b32 %r1,", "[%zero]", "generic address in no space"),
    ],
)
def test_bad_loads(opcode: str, operand: str, what: str) -> None:
    device = Device(1)
    arguments = device.upload(np.zeros(100, np.int32), "x"), device.allocate(64)
    body = f"""
.reg .b64 %zero;
.local .align 8 .b8 mine[16];
mov.u64 %zero, 0;
.loc 1 7 3
{opcode} {operand};"""
    message = fails(what, body, *arguments, shared=64, device=device)
    assert (
        f"`{opcode} {operand}`" in message and "PTX line" in message and "thread (0,0,0)" in message
    )


def test_errors_name_the_source_line_through_inlining() -> None:
    body = ".loc 1 7 3, function_name $L__info, inlined_at 1 20 5\nld.global.b32 %r1, [%at0];"
    module = kernel(body)
    module.files[1] = "gemm.cuh"
    with pytest.raises(PtxError, match=r"gemm.cuh:7 in gemm.cuh:20"):
        run(module, 0)


def test_an_allocation_is_named_with_the_distance() -> None:
    device = Device(1)
    x = device.upload(np.zeros(10, np.int32), "weights")
    message = fails("out-of-bounds", "ld.global.b32 %r1, [%at0+40];", x, device=device)
    assert "byte 40 of an allocation 'weights' of 40 bytes" in message


def test_a_result_must_be_written() -> None:
    with pytest.raises(PtxError, match="never written: 64 of 128 bytes"):
        copied(AT.format(size=4) + "st.global.b32 [%d3], %tid;", WORDS, 128, threads=16)


def test_out_of_bounds_stores() -> None:
    device = Device(1)
    x = device.upload(np.zeros(10, np.int32))
    fails("out-of-bounds", "st.global.b32 [%at0+40], 1;", x, device=device)
    fails("out-of-bounds shared", "st.shared.b32 [buffer+16], 1;", shared=16)


def test_parameters_are_bounded() -> None:
    fails("out-of-bounds or misaligned parameter", "ld.param.u64 %d1, [p0+8];")
    with pytest.raises(PtxError, match="2 arguments for 1 parameters"):
        run(kernel(""), 1, 2)


def test_launch_limits() -> None:
    with pytest.raises(PtxError, match="threads, at most 64"):
        run(kernel("", block=64), 0, threads=65)
    with pytest.raises(PtxError, match="65552 bytes of shared memory, at most 49152"):
        run(kernel("st.shared.b32 [buffer], 1;", shared=16), 0, dynamic_shared=65536)
    with pytest.raises(PtxError, match="a grid of"):
        run(kernel(""), 0, grid=(1, 65536))


def test_an_endless_loop_ends(monkeypatch) -> None:
    monkeypatch.setattr("ptx.launch.MOST_STEPS", 1000)
    fails("endless loop", "$again: bra $again;")


# --- atomics ---


@pytest.mark.parametrize("schedule", ["lockstep", "random"])
@pytest.mark.parametrize("space", ["global", "shared", ""])
@pytest.mark.parametrize("root", ["atom", "red"])
def test_a_sum_of_all_threads(root: str, space: str, schedule: str) -> None:
    """Of 64 threads in each of three blocks; shared: each block's own, added up at the end."""
    target = "%r9," if root == "atom" else ""
    if space == "shared":
        body = f"""
setp.eq.u32 %p1, %tid, 0;
@%p1 st.shared.u32 [buffer], 0;
bar.sync 0;
{root}.shared.add.u32 {target} [buffer], %tid;
bar.sync 0;
@!%p1 bra $end;
ld.shared.u32 %r1, [buffer];
red.global.add.u32 [%at0], %r1;
$end:
"""
    else:
        body = f"{root}{'.' if space else ''}{space}.add.u32 {target} [%at0], %tid;"
    device = Device(1)
    total = device.upload(np.zeros(1, np.uint32))
    module = kernel(body, 1, 16)
    run(module, total, grid=(3,), threads=64, device=device, schedule=schedule, seed=1)
    assert device.download(total, np.uint32, (1,)) == 3 * 63 * 32


@pytest.mark.parametrize(
    "opcode, kind, start, values, want",
    [
        ("min.s32", np.int32, 5, [-3, 7, -9], -9),
        ("max.u32", np.uint32, 5, [3, 0xFFFFFFFE, 9], 0xFFFFFFFE),
        ("min.u32", np.uint32, 5, [0xFFFFFFFE], 5),
        ("max.s64", np.int64, -5, [-7, -2], -2),
        ("add.f32", np.float32, 0.5, [1.5, 2.25], 4.25),
        ("add.f64", np.float64, 0.5, [1.5, 2.25], 4.25),
        ("add.noftz.f16", np.float16, 1, [2048, 1], 2048),  # rounded at each step
        ("and.b32", np.uint32, 0xFF, [0xF0, 0x3C], 0x30),
        ("or.b32", np.uint32, 1, [2, 4], 7),
        ("xor.b32", np.uint32, 1, [3, 4], 6),
        ("inc.u32", np.uint32, 1, [2, 2, 2], 1),
        ("dec.u32", np.uint32, 1, [5, 5, 5], 4),
        ("exch.b32", np.uint32, 1, [8, 9], 9),
    ],
)
def test_atomics(opcode: str, kind, start, values, want) -> None:
    """With and without the old value as a result."""
    size = np.dtype(kind).itemsize
    raw, new, old = {2: "%h1 %h1 %h2", 4: "%r1 %r1 %r2", 8: "%d5 %d5 %d6"}[size].split()
    load = f"ld.global.b{8 * size} {raw}, [%d2];\n"
    if opcode.endswith(("f32", "f64")):
        new, old = ("%f1", "%f2") if size == 4 else ("%g1", "%g2")
        load += f"mov.b{8 * size} {new}, {raw};\n"
    forms = [f"atom.global.{opcode} {old}, [%at1], {new};"]
    if not opcode.startswith("exch"):
        forms.append(f"red.relaxed.gpu.global.{opcode} [%at1], {new};")
    for form in forms:
        device = Device(1)
        data, cell = device.upload(np.array(values, kind)), device.upload(np.array([start], kind))
        module = kernel(AT.format(size=size) + load + form, 2)
        run(module, data, cell, threads=len(values), device=device)
        assert device.download(cell, kind, (1,)).tolist() == [want]


def test_cas_returns_what_was_there() -> None:
    device = Device(1)
    cell, out = device.upload(np.array([0], np.uint32)), device.allocate(16)
    body = "add.u32 %r1, %tid, 1; atom.global.cas.b32 %r2, [%at0], %tid, %r1;"
    body += "mul.wide.u32 %d1, %tid, 4; add.u64 %d1, %at1, %d1; st.global.b32 [%d1], %r2;"
    run(kernel(body, 2), cell, out, threads=4, device=device)
    assert device.download(cell, np.uint32, (1,)) == 4
    assert device.download(out, np.uint32, (4,)).tolist() == [0, 1, 2, 3]


def test_atomics_on_x2() -> None:
    device = Device(1)
    cell = device.upload(np.array([1, 2], np.float16))
    body = "mov.b32 %r1, 0x40003c00; red.global.add.noftz.f16x2 [%at0], %r1;"
    run(kernel(body), cell, threads=2, device=device)
    assert device.download(cell, np.float16, (2,)).tolist() == [3, 6]


def test_atomics_on_uninitialised_memory() -> None:
    device = Device(1)
    fails("uninitialised", "red.global.add.u32 [%at0], 1;", device.allocate(4), device=device)


# --- cp.async ---

COPY = AT.format(size=16) + "shl.b32 %r1, %tid, 4;\n"
OUT = "ld.shared.v4.b32 {%r2,%r3,%r4,%r5}, [%r1]; st.global.v4.b32 [%d3], {%r2,%r3,%r4,%r5};"


@pytest.mark.parametrize(
    "form", ["cg.shared.global", "ca.shared::cta.global", "cg.shared.global.L2::128B"]
)
def test_cp_async(form: str) -> None:
    body = f"{COPY} cp.async.{form} [%r1], [%d2], 16; cp.async.commit_group;"
    body += "cp.async.wait_group 0;" + OUT
    assert copied(body, WORDS, 512, shared=512).tobytes() == WORDS.tobytes()


@pytest.mark.parametrize("size", [4, 8])
def test_cp_async_of_less(size: int) -> None:
    body = AT.format(size=size) + f"mul.lo.u32 %r1, %tid, {size};"
    body += f"cp.async.ca.shared.global [%r1], [%d2], {size}; cp.async.wait_all;"
    register = "%r2" if size == 4 else "%d5"
    body += f"ld.shared.b{8 * size} {register}, [%r1]; st.global.b{8 * size} [%d3], {register};"
    assert copied(body, WORDS, 32 * size, shared=512).tobytes() == WORDS.tobytes()[: 32 * size]


def test_cp_async_fills_with_zeros() -> None:
    """Thread t copies t bytes, up to 16."""
    body = COPY + "min.u32 %r9, %tid, 16; cp.async.cg.shared.global [%r1], [%d2], 16, %r9;"
    body += "cp.async.wait_all;" + OUT
    got = copied(body, WORDS, 512, shared=512).reshape(32, 16)
    want = WORDS.view(np.uint8).reshape(32, 16).copy()
    want[np.arange(16) >= np.minimum(np.arange(32), 16)[:, None]] = 0
    assert got.tolist() == want.tolist()


def test_a_source_of_no_bytes_may_lie_anywhere() -> None:
    body = COPY + "cp.async.cg.shared.global [%r1], [%d2+4096], 16, 0; cp.async.wait_all;" + OUT
    assert not copied(body, WORDS, 512, shared=512).any()


def test_groups_land_in_order() -> None:
    """With one group allowed in flight only the older copy has landed."""
    begin = (
        COPY
        + """
add.u32 %r9, %r1, 512;
cp.async.cg.shared.global [%r1], [%d2], 16;
cp.async.commit_group;
cp.async.cg.shared.global [%r9], [%d2], 16;
cp.async.commit_group;
cp.async.wait_group 1;
"""
    )
    end = "cp.async.wait_group 0;"
    assert copied(begin + OUT + end, WORDS, 512, shared=1024).tobytes() == WORDS.tobytes()
    with pytest.raises(PtxError, match=r"cp\.async has in flight"):
        copied(begin + OUT.replace("[%r1]", "[%r9]") + end, WORDS, 512, shared=1024)


@pytest.mark.parametrize(
    "what, body",
    [
        ("that a cp.async has in flight", OUT),
        ("that a cp.async has in flight", "cp.async.commit_group; cp.async.wait_group 1;" + OUT),
        ("that no thread waited for", ""),
        ("write to shared memory that a cp.async", "st.shared.b32 [%r1], 1;"),
    ],
)
def test_copies_not_waited_for(what: str, body: str) -> None:
    with pytest.raises(PtxError, match=what):
        copied(COPY + "cp.async.cg.shared.global [%r1], [%d2], 16;" + body, WORDS, 512, shared=512)


def test_another_threads_copy_needs_a_barrier() -> None:
    body = COPY + "cp.async.cg.shared.global [%r1], [%d2], 16; cp.async.wait_all; {}"
    other = "xor.b32 %r1, %r1, 16;" + OUT
    with pytest.raises(PtxError, match="shared-memory race"):
        copied(body.format("") + other, WORDS, 512, shared=512)
    for wait in ("bar.sync 0;", "bar.warp.sync 0xffffffff;"):
        copied(body.format(wait) + other, WORDS, 512, shared=512)


@pytest.mark.parametrize(
    "what, instruction",
    [
        ("misaligned 16-byte shared", "cp.async.cg.shared.global [%r1+4], [%d2], 16;"),
        ("misaligned 16-byte global", "cp.async.cg.shared.global [%r1], [%d2+4], 16;"),
        ("misaligned cp.async", "cp.async.cg.shared.global [%r1], [%d2+4], 16, 8;"),
        ("out-of-bounds global", "cp.async.cg.shared.global [%r1], [%d2+16], 16;"),
        ("out-of-bounds shared", "cp.async.cg.shared.global [%r1+16], [%d2], 16;"),
        ("source size above", "cp.async.cg.shared.global [%r1], [%d2], 16, 17;"),
        ("cp.async.cg of 8 bytes", "cp.async.cg.shared.global [%r1], [%d2], 8;"),
    ],
)
def test_bad_copies(what: str, instruction: str) -> None:
    with pytest.raises(PtxError, match=what):
        copied(COPY + instruction + "cp.async.wait_all;", WORDS, 512, shared=512)


def test_evaluate_reports_what_it_ran() -> None:
    """The helper itself: a constant operand and a predicate."""
    assert evaluate("add.u32", "u32", ("u32", [1, 2]), "5").tolist() == [6, 7]
