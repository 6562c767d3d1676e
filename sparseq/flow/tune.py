"""`tune`: measure this machine's kernels over a grid of layers, for `sparseq.choice`."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import sparseq._C as core
from sparseq.choice import DENSE, FLOAT, KERNELS, VERSION, Work, choose, user_table
from sparseq.files import atomic_path
from sparseq.nn import SparseQuantConv2d, SparseQuantLayer, SparseQuantLinear
from sparseq.sparse import nm_mask

ISAS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")  # those with INT8 kernels of their own
ROUNDS, BURST = 5, 0.0005
SCALE, ZERO = torch.tensor([0.03]), torch.tensor([3], dtype=torch.int32)


def works() -> list[Work]:
    """The grid: linear layers, 1x1 and 3x3 convolutions, depthwise ones."""
    sizes = (16, 64, 256, 1024, 4096)
    linear = [
        Work(rows, inputs, outputs)
        for rows in (1, 4, 16, 64, 256)
        for inputs in sizes
        for outputs in sizes
        if inputs * outputs * rows <= 2**27
    ]
    pixels = (49, 196, 784, 3136)
    channels = (8, 16, 32, 64, 128, 256, 512)
    conv = [Work(p, c, c, taps=9) for p in pixels for c in channels if 9 * c * c * p <= 2**28]
    depthwise = [Work(p, 1, 1, taps=9, groups=c) for p in pixels for c in (16, 64, 256)]
    return linear + conv + depthwise


def _layer(work: Work) -> tuple[SparseQuantLayer, Tensor]:
    channels = work.inputs * work.groups
    if work.taps == 1:
        linear = nn.Linear(work.inputs, work.outputs).requires_grad_(False)
        linear.weight.mul_(nm_mask(linear.weight))
        x = torch.randn(work.rows, work.inputs)
        return SparseQuantLinear.from_float(linear, scale=SCALE, zero_point=ZERO), x
    size = round(work.rows**0.5)
    conv = nn.Conv2d(channels, work.outputs * work.groups, 3, padding=1, groups=work.groups)
    conv.requires_grad_(False)
    if work.inputs >= 4:
        conv.weight.mul_(nm_mask(conv.weight))
    x = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    return SparseQuantConv2d.from_float(conv, scale=SCALE, zero_point=ZERO), x


def _time(call: Callable[[], object]) -> float:
    """Seconds of one call: the mean of a burst that is long enough for the clock."""
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    repeats = max(1, int(BURST / max(once, 1e-7)))
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(work: Work) -> dict[str, float]:
    """Microseconds of one layer by kernel, the kernels taking turns; on the ISA in use."""
    layer, x = _layer(work)
    calls: dict[str, Callable[[], object]] = {}
    for kernel in KERNELS if work.inputs >= 4 else (DENSE, FLOAT):
        module = copy.deepcopy(layer)
        module.use(kernel)
        calls[kernel] = partial(module, x)
    times: dict[str, list[float]] = {kernel: [] for kernel in calls}
    for _ in range(ROUNDS):
        for kernel, call in calls.items():
            times[kernel].append(_time(call))
    found = {kernel: round(1e6 * statistics.median(t), 2) for kernel, t in times.items()}
    return {kernel: found.get(kernel, found[DENSE]) for kernel in KERNELS}


def steps() -> int:
    """How many layers `tune` measures here."""
    return len(works()) * len(_isas())


def _isas() -> list[str]:
    return [isa for isa in ISAS if isa in core.supported_isas()]


def tune(path: Path | None = None) -> Iterator[Work]:
    """Measure every ISA of this CPU on one thread and write the table.

    Takes a minute or two; other programs should be quiet.

    Args:
        path: of the table; None for the user's cache, where `sparseq.convert` looks first.
            The tables of other ISAs in it are kept.

    Yields:
        Each layer once it was measured.

    Raises:
        OSError: the file cannot be written.
    """
    target = path or user_table()
    found: dict[str, list[list[float]]] = {}
    if target.is_file():
        content = json.loads(target.read_text())
        found = content["isas"] if content.get("version") == VERSION else {}
    active, threads = core.isa(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for isa in _isas():
                core.set_isa(isa)
                rows = []
                for work in works():
                    rows.append([*work.shape, *measure(work).values()])
                    yield work
                found[isa] = rows
    finally:
        core.set_isa(active)
        torch.set_num_threads(threads)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.write_text(_pretty(found))
    choose.cache_clear()


def _pretty(isas: dict[str, list[list[float]]]) -> str:
    """JSON with one line a shape, so that a diff of two tables can be read."""
    blocks = [
        f'  "{isa}": [\n' + ",\n".join(f"   {json.dumps(row)}" for row in rows) + "\n  ]"
        for isa, rows in isas.items()
    ]
    head = ["rows", "inputs", "outputs", "taps", "groups", *KERNELS]
    return (
        f'{{\n "version": {VERSION},\n "columns": {json.dumps(head)},\n "isas": {{\n'
        + ",\n".join(blocks)
        + "\n }\n}\n"
    )
