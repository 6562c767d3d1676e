"""Divergence, barriers, votes, shuffles and races; and what the interpreter refuses to execute."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import Device, PtxError
from ptx.forms import TABLE
from snippets import kernel, run

FULL = "0xffffffff"
LANES = np.arange(32)


def words(body: str, result: str = "%r1", threads: int = 32, shared: int = 0, grid: int = 1, **how):
    """The 32-bit register `result` of every thread after the body; %in is 3 * its index + 1."""
    device = Device(1)
    out = device.allocate(4 * threads * grid)
    body = f"""
.reg .b32 %in; .reg .b32 %lane;
mov.u32 %lane, %laneid;
mad.lo.u32 %in, %tid, 3, 1;
{body}
mov.u32 %r31, %ctaid.x; mov.u32 %r30, %ntid.x; mad.lo.u32 %r31, %r31, %r30, %tid;
mul.wide.u32 %d31, %r31, 4; add.u64 %d31, %at0, %d31; st.global.b32 [%d31], {result};"""
    run(kernel(body, 1, shared), out, device=device, threads=threads, grid=(grid,), **how)
    return device.download(out, np.uint32, (threads * grid,))


def fails(match: str, body: str, **options) -> None:
    with pytest.raises(PtxError, match=match):
        words(body, **options)


IN = 3 * LANES + 1


@pytest.mark.parametrize(
    "mode, b, c, source",
    [
        ("up", 1, 0, np.maximum(LANES - 1, 0)),
        ("down", 2, 31, np.where(LANES + 2 > 31, LANES, LANES + 2)),
        ("bfly", 5, 31, LANES ^ 5),
        ("idx", 7, 31, np.full(32, 7)),
        # segments of 8: c's upper part is ~7
        ("up", 3, 0x1800, np.where(LANES % 8 < 3, LANES, LANES - 3)),
        ("down", 3, 0x181F, np.where(LANES % 8 + 3 > 7, LANES, LANES + 3)),
        ("idx", 2, 0x181F, LANES // 8 * 8 + 2),
        ("idx", 33, 31, np.full(32, 1)),
        # a partner in a later segment of 16 cannot be read, one in an earlier can
        ("bfly", 16, 0x100F, np.where(LANES < 16, LANES, LANES ^ 16)),
    ],
)
def test_shuffles(mode: str, b: int, c: int, source) -> None:
    body = f"shfl.sync.{mode}.b32 %r1|%p1, %in, {b}, {c:#x}, {FULL};"
    assert words(body).tolist() == IN[source].tolist()
    found = words(body + "selp.u32 %r1, 1, 0, %p1;")
    if mode in ("up", "down"):
        assert found.tolist() == (source != LANES).astype(int).tolist()


def test_votes() -> None:
    body = "setp.lt.u32 %p1, %lane, 5;\n"
    ballot = body + f"vote.sync.ballot.b32 %r1, %p1, {FULL};"
    assert set(words(ballot)) == {31}
    for mode, want in (("any", 1), ("all", 0), ("uni", 0)):
        vote = body + f"vote.sync.{mode}.pred %p2, %p1, {FULL}; selp.u32 %r1, 1, 0, %p2;"
        assert set(words(vote)) == {want}
    inverted = body + f"vote.sync.ballot.b32 %r1, !%p1, {FULL};"
    assert set(words(inverted)) == {0xFFFFFFE0}
    part = body + "@%p1 vote.sync.all.pred %p2, %p1, 31; selp.u32 %r1, 1, 0, %p2;"
    assert words(part).tolist() == [1] * 5 + [0] * 27


def test_matches() -> None:
    body = "shr.u32 %r2, %lane, 4;\n"
    anyone = body + f"match.any.sync.b32 %r1, %r2, {FULL};"
    assert words(anyone).tolist() == [0xFFFF] * 16 + [0xFFFF0000] * 16
    wide = body + f"cvt.u64.u32 %d1, %r2; match.any.sync.b64 %r1, %d1, {FULL};"
    assert words(wide).tolist() == [0xFFFF] * 16 + [0xFFFF0000] * 16
    every = body + f"match.all.sync.b32 %r1|%p1, %r2, {FULL};"
    assert set(words(every)) == {0}
    agreed = f"mov.u32 %r2, 7; match.all.sync.b32 %r1|%p1, %r2, {FULL};"
    assert set(words(agreed)) == {0xFFFFFFFF}


@pytest.mark.parametrize(
    "operation, want",
    [
        ("add.u32", IN.sum()),
        ("add.s32", IN.sum()),
        ("min.u32", 1),
        ("max.s32", 94),
        ("and.b32", np.bitwise_and.reduce(IN)),
        ("or.b32", np.bitwise_or.reduce(IN)),
        ("xor.b32", np.bitwise_xor.reduce(IN)),
    ],
)
def test_reductions(operation: str, want: int) -> None:
    assert set(words(f"redux.sync.{operation} %r1, %in, {FULL};")) == {want}


def test_a_reduction_of_signed_numbers_wraps() -> None:
    body = f"sub.s32 %r2, 5, %in; redux.sync.min.s32 %r1, %r2, {FULL};"
    assert set(words(body).view(np.int32)) == {5 - 94}
    body = f"mov.u32 %r2, 0x10000001; redux.sync.add.u32 %r1, %r2, {FULL};"
    assert set(words(body)) == {32}


def test_activemask_and_special_registers() -> None:
    body = "setp.lt.u32 %p1, %lane, 3; mov.u32 %r1, 0; @%p1 activemask.b32 %r1;"
    assert words(body).tolist() == [7] * 3 + [0] * 29
    for name, want in (
        ("lt", (1 << LANES.astype(object)) - 1),
        ("le", (2 << LANES.astype(object)) - 1),
        ("eq", 1 << LANES.astype(object)),
        ("gt", 0xFFFFFFFF & ~((2 << LANES.astype(object)) - 1)),
        ("ge", 0xFFFFFFFF & ~((1 << LANES.astype(object)) - 1)),
    ):
        assert words(f"mov.u32 %r1, %lanemask_{name};").tolist() == want.tolist()
    body = "mov.u32 %r1, %warpid; mov.u32 %r2, %nctaid.x; mad.lo.u32 %r1, %r2, 100, %r1;"
    assert words(body, threads=64, grid=2).tolist() == ([200] * 32 + [201] * 32) * 2


@pytest.mark.parametrize(
    "what, instruction",
    [
        ("shfl.sync", f"shfl.sync.bfly.b32 %r1, %in, 1, 31, {FULL};"),
        ("vote.sync", f"vote.sync.ballot.b32 %r1, %p1, {FULL};"),
        ("match.sync", f"match.any.sync.b32 %r1, %in, {FULL};"),
        ("redux.sync", f"redux.sync.add.u32 %r1, %in, {FULL};"),
        ("bar.warp.sync", f"bar.warp.sync {FULL};"),
    ],
)
def test_collectives_need_the_threads_they_name(what: str, instruction: str) -> None:
    fails(f"{what} diverged", f"setp.lt.u32 %p1, %lane, 9; @%p1 {instruction}")
    part = instruction.replace(FULL, "0xf")
    fails(f"{what} by a thread that is not in its mask", part)
    # those that have exited need not come
    words(f"setp.lt.u32 %p1, %lane, 9; @%p1 bra $on; bra $on; $on: {instruction}")


def test_a_shuffle_reads_only_threads_that_take_part() -> None:
    body = "setp.lt.u32 %p1, %lane, 4; @%p1 shfl.sync.idx.b32 %r1, %in, 9, 31, 0xf;"
    fails("reads from a thread that does not take part", body)


# --- divergence ---


@pytest.mark.parametrize("schedule", ["lockstep", "random"])
def test_loops_and_branches_diverge_and_join(schedule: str) -> None:
    """3 * tid mod 7 rounds of adding 2, or 5 in odd threads; then a shuffle over all."""
    body = f"""
rem.u32 %r2, %in, 7;
mov.u32 %r1, 0;
and.b32 %r3, %tid, 1;
setp.eq.u32 %p2, %r3, 1;
$loop:
setp.eq.u32 %p1, %r2, 0;
@%p1 bra $done;
@%p2 bra $odd;
add.u32 %r1, %r1, 2;
bra $next;
$odd:
add.u32 %r1, %r1, 5;
$next:
sub.u32 %r2, %r2, 1;
bra $loop;
$done:
shfl.sync.bfly.b32 %r4, %r1, 1, 31, {FULL};
mad.lo.u32 %r1, %r4, 1000, %r1;
"""
    tid = np.arange(96)
    own = (3 * tid + 1) % 7 * np.where(tid % 2, 5, 2)
    got = words(body, threads=96, schedule=schedule, seed=3)
    assert got.tolist() == (own[tid ^ 1] * 1000 + own).tolist()


def test_predicated_instructions_keep_what_was_there() -> None:
    body = "mov.u32 %r1, 5; setp.lt.u32 %p1, %lane, 2; @%p1 add.u32 %r1, %r1, %lane;"
    assert words(body).tolist() == [5, 6, *[5] * 30]
    assert words(body.replace("@%p1", "@!%p1")).tolist() == [5, 5, *(LANES[2:] + 5)]


def test_threads_exit_early() -> None:
    body = """mov.u32 %r1, 1; mul.wide.u32 %d31, %tid, 4; add.u64 %d31, %at0, %d31;
st.global.b32 [%d31], %r1; setp.gt.u32 %p1, %lane, 7; @%p1 exit; mov.u32 %r1, 2;"""
    assert words(body).tolist() == [2] * 8 + [1] * 24


@pytest.mark.parametrize("threads", [1, 31, 33, 50])
def test_blocks_of_any_size(threads: int) -> None:
    body = f"setp.eq.u32 %p1, %tid, 0; vote.sync.any.pred %p2, %p1, {FULL};"
    body += "bar.sync 0; selp.u32 %r1, 1, 0, %p2;"
    assert (
        words(body, threads=threads, grid=3).tolist() == [int(t < 32) for t in range(threads)] * 3
    )


# --- barriers ---

SWAP = """
shl.b32 %r2, %tid, 2;
st.shared.b32 [%r2], %in;
{between}
xor.b32 %r3, %r2, {distance};
ld.shared.b32 %r1, [%r3];
"""


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_barrier_orders_a_block(seed: int | None) -> None:
    how = {} if seed is None else {"schedule": "random", "seed": seed}
    body = SWAP.format(between="barrier.sync.aligned 0;", distance=128)
    got = words(body, threads=64, shared=256, grid=3, **how)
    tid = np.arange(64)
    assert got.tolist() == (3 * (tid ^ 32) + 1).tolist() * 3


@pytest.mark.parametrize("schedule", ["lockstep", "random"])
@pytest.mark.parametrize(
    "between, distance, races",
    [
        ("", 128, True),
        ("", 4, True),
        ("bar.warp.sync 0xffffffff;", 4, False),
        ("bar.warp.sync 0xffffffff;", 128, True),
        ("bar.cta.sync 0;", 128, False),
        ("membar.cta;", 4, True),
        (f"shfl.sync.bfly.b32 %r9, %in, 1, 31, {FULL};", 4, True),
    ],
)
def test_races_in_shared_memory(between: str, distance: int, races: bool, schedule: str) -> None:
    body = SWAP.format(between=between, distance=distance)
    if races:
        # where the reader comes first there is nothing yet to read
        what = "shared-memory race: read of byte|uninitialised memory"
        fails(what, body, threads=64, shared=256, schedule=schedule)
        assert words(body, threads=64, shared=256, races=False).size == 64
    else:
        words(body, threads=64, shared=256, schedule=schedule)


def test_a_write_after_a_read_races() -> None:
    body = """
shl.b32 %r2, %tid, 2;
st.shared.b32 [%r2], %in;
bar.sync 0;
xor.b32 %r3, %r2, 128;
ld.shared.b32 %r1, [%r3];
{}
st.shared.b32 [%r2], 0;
"""
    fails("write of byte .* also read", body.format(""), threads=64, shared=256)
    words(body.format("bar.sync 0;"), threads=64, shared=256)


def test_writes_of_several_threads_race() -> None:
    fails("written in one instruction", "st.shared.b32 [buffer], %in; mov.u32 %r1, 0;", shared=16)
    body = "setp.eq.u32 %p1, %tid, {}; @%p1 st.shared.b32 [buffer], 1;"
    both = body.format(0) + body.format(33) + "mov.u32 %r1, 0;"
    fails("also written by thread 0", both, shared=16, threads=64)


def test_atomics_race_with_other_accesses_only() -> None:
    zero = "setp.eq.u32 %p1, %tid, 0; @%p1 st.shared.u32 [buffer], 0;"
    add = "red.shared.add.u32 [buffer], 1;"
    read = "ld.shared.u32 %r1, [buffer];"
    how = {"shared": 16, "threads": 64}
    assert set(words(zero + "bar.sync 0;" + add + add + "bar.sync 0;" + read, **how)) == {128}
    fails("shared-memory race: atomic of byte 0 also written", zero + add + read, **how)
    fails("also changed atomically", zero + "bar.sync 0;" + add + read, **how)


@pytest.mark.parametrize("seed", [None, 4, 5])
def test_named_barriers_order_the_warps_that_meet(seed: int | None) -> None:
    """Of four warps two and two meet; a warp that reads across the pairs races."""
    how = {} if seed is None else {"schedule": "random", "seed": seed}
    between = "shr.u32 %r4, %tid, 6; add.u32 %r4, %r4, 1; bar.sync %r4, 64;"
    one = "setp.lt.u32 %p1, %tid, 64; @%p1 bra $a; bar.sync 2, 64; bra $b; $a: bar.sync 1, 64; $b:"
    how |= {"threads": 128, "shared": 512}
    tid = np.arange(128)
    got = words(SWAP.format(between=one, distance=128), **how)
    assert got.tolist() == (3 * (tid ^ 32) + 1).tolist()
    fails("race", SWAP.format(between=one, distance=256), **how)
    fails("a barrier must be", SWAP.format(between=between, distance=128), threads=128, shared=512)


@pytest.mark.parametrize(
    "what, body",
    [
        ("reached by part of a warp", "setp.lt.u32 %p1, %tid, 40; @%p1 bar.sync 0;"),
        ("after some of its threads exited", "setp.lt.u32 %p1, %tid, 40; @!%p1 exit; bar.sync 0;"),
        (
            "waits for threads that have exited",
            "setp.lt.u32 %p1, %tid, 32; @!%p1 exit; bar.sync 0;",
        ),
        (
            "waits for threads that wait at another",
            "setp.lt.u32 %p1, %tid, 32; @%p1 bra $a; bar.sync 1; bra $b; $a: bar.sync 0; $b:",
        ),
        ("multiple of 32", "bar.sync 0, 40;"),
        ("more threads at a barrier than its count", "bar.sync 0, 32;"),
        ("one of 0 to 15", "bar.sync 16;"),
        (
            "different counts",
            "shr.u32 %r1, %tid, 5; add.u32 %r1, %r1, 1; shl.b32 %r1, %r1, 5; bar.sync 0, %r1;",
        ),
        ("part of a warp is not modelled", "setp.lt.u32 %p1, %lane, 4; @%p1 bar.warp.sync 15;"),
        ("trap", "trap;"),
    ],
)
def test_bad_barriers(what: str, body: str) -> None:
    fails(what, body + "mov.u32 %r1, 0;", threads=64)


# --- global memory ---

GLOBAL = "mul.wide.u32 %d1, %r9, 4; add.u64 %d1, %at1, %d1;"


def exchange(first: str, second: str, grid: int = 1, threads: int = 64, **how) -> None:
    """Each thread of the grid accesses its own word, then that of the thread 32 away."""
    device = Device(1)
    x = device.upload(np.zeros(1024, np.uint32))
    body = f"""
mov.u32 %r8, %ctaid.x; mad.lo.u32 %r9, %r8, {threads}, %tid; {GLOBAL} {first}
xor.b32 %r9, %r9, 32; {GLOBAL} {second}"""
    run(kernel(body, 2), 0, x, device=device, grid=(grid,), threads=threads, **how)


STORE, LOAD = "st.global.b32 [%d1], 1;", "ld.global.b32 %r1, [%d1];"


@pytest.mark.parametrize("schedule", ["lockstep", "random"])
@pytest.mark.parametrize(
    "first, second, grid, threads",
    [(STORE, LOAD, 1, 64), (STORE, STORE, 1, 64), (LOAD, STORE, 1, 64), (STORE, LOAD, 2, 32)],
)
def test_races_in_global_memory(first, second, grid, threads, schedule) -> None:
    how = {"grid": grid, "threads": threads, "schedule": schedule, "seed": 7}
    with pytest.raises(PtxError, match="global-memory race"):
        exchange(first, second, **how)
    if grid == 1:
        exchange(first + "bar.sync 0;", second, **how)
    else:
        with pytest.raises(PtxError, match="global-memory race"):
            exchange(first + "bar.sync 0;", second, **how)


def test_reads_and_atomics_do_not_race() -> None:
    exchange(LOAD, LOAD, grid=4)
    add = "red.global.add.u32 [%d1], 1;"
    exchange(add, add, grid=4)
    with pytest.raises(PtxError, match="global-memory race"):
        exchange(add, LOAD, grid=4)
    with pytest.raises(PtxError, match="global-memory race"):
        exchange(LOAD, add, grid=1)


def test_many_readers_are_remembered() -> None:
    """A word that all threads read, in one block and in several, is then written by the first."""
    read = "ld.global.b32 %r1, [%at1]; "
    write = "setp.eq.u32 %p1, %tid, 0; mov.u32 %r2, %ctaid.x; setp.eq.and.u32 %p1, %r2, 0, %p1;"
    write += "@%p1 st.global.b32 [%at1], 1;"
    with pytest.raises(PtxError, match="global-memory race"):
        exchange(read, write)
    exchange(read, "bar.sync 0;" + write)
    with pytest.raises(PtxError, match="global-memory race"):
        exchange(read, "bar.sync 0;" + write, grid=2)


def test_what_nc_reads_must_not_be_written() -> None:
    constant = "ld.global.nc.b32 %r1, [%d1];"
    with pytest.raises(PtxError, match=r"reads through ld.global.nc"):
        exchange(constant, "bar.sync 0;" + STORE)
    with pytest.raises(PtxError, match="global-memory race"):
        exchange(STORE, constant)
    device = Device(1)
    x = device.upload(np.zeros(64, np.uint32))
    own = f"mov.u32 %r9, %tid; {GLOBAL} {STORE} {constant}"
    with pytest.raises(PtxError, match=r"ld.global.nc of memory that this launch writes"):
        run(kernel(own, 2), 0, x, device=device)


# --- what is refused ---


@pytest.mark.parametrize(
    "text",
    [
        "frobnicate.u32 %r1, %r2;",
        "add.u8 %r1, %r1, %r2;",
        "add.rn.u32 %r1, %r1, %r2;",
        "add.rna.f32 %f1, %f1, %f2;",
        "add.cc.u32 %r1, %r1, %r2;",
        "cvt.f16.f32 %h1, %f1;",
        "cvt.rni.f32.s32 %f1, %r1;",
        "cvt.rs.f16x2.f32 %r1, %f1, %f2;",
        "ld.global.unknown.b32 %r1, [%at0];",
        "ld.const.b32 %r1, [%at0];",
        "st.global.nc.b32 [%at0], %r1;",
        "shfl.bfly.b32 %r1, %r2, 1, 31;",
        "bar.red.popc.u32 %r1, 0, %p1;",
        "barrier.sync 0;",
        "mul.u32 %r1, %r1, %r2;",
        "setp.lo.s32 %p1, %r1, %r2;",
        "setp.lt.b32 %p1, %r1, %r2;",
        "fma.f32 %f1, %f1, %f1, %f1;",
        "div.rz.f32 %f1, %f1, %f1;",
        "sqrt.f32 %f1, %f1;",
        "min.relu.u32 %r1, %r1, %r1;",
        "cp.async.bulk.commit_group;",
        "atom.global.add.s64 %d1, [%at0], %d2;",
        "red.global.exch.b32 [%at0], %r1;",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r1,%r2,%r3}, [%r4];",
        "mma.sync.aligned.m16n8k32.row.row.s32.s8.s8.s32 {%r1}, {%r1}, {%r1}, {%r1};",
        "add.u32 %r1, %r1;",
        "add.u32 %d1, %r1, %r2;",
        "add.u64 %d1, %r1, %d2;",
        "mov.u32 %r1, %clock;",
        "mov.u32 %r1, nothing;",
        "add.f32 %f1, %f1, 1;",
        "bra $nowhere;",
    ],
)
def test_what_is_not_modelled_is_an_error(text: str) -> None:
    """Before anything runs, with both lines."""
    body = f"ld.global.b32 %r1, [%at0];\n.loc 1 42 1\n{text}"
    with pytest.raises(PtxError) as caught:
        run(kernel(body), 0)
    assert text.rstrip(";") in str(caught.value) and ":42" in str(caught.value)
    assert "PTX line" in str(caught.value)


def test_directives_that_are_not_modelled() -> None:
    for text in (".const .b32 table[4];", ".branchtargets a;"):
        with pytest.raises(PtxError, match="is not modelled"):
            run(kernel(text), 0)


def test_the_table_holds_no_form_twice() -> None:
    for forms in TABLE.values():
        texts = [form.text for form in forms]
        assert len(texts) == len(set(texts))
