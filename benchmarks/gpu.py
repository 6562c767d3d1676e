"""Every CUDA op beside its peers on the GPU at hand: the second half of `make gpu-check`.

usage: gpu.py [--device cuda|cpu] [--small] [--out FOLDER]   (cpu, small: a test of this program)
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from gpu_rows import KINDS, GpuRow, rows

from sparseq import bench
from sparseq.files import atomic_path

ABOUT = """\
Each row is compared with the CPU kernels, bit for bit, before it is timed. Contenders take turns in
random order; the GPU's second-level cache is overwritten before each call, and calls are queued
behind a pause, so that the time to launch them is no one's. The share is of the roof: the least
time in which this GPU can move the bytes (at the bandwidth of a copy, measured here) and do the
products (at the tensor cores' rate, from NVIDIA's data sheets); medians."""

RESULTS = Path(__file__).parent / "results"
ROUNDS = 20
PAUSE_CYCLES = 1_000_000  # about half a millisecond: long enough to queue a call behind

# INT8 products a multiprocessor adds up in a cycle, dense: NVIDIA's architecture white papers,
# whose peak rates are multiprocessors x boost clock x twice this. 16 bits: half; 2:4: twice.
PRODUCTS_PER_CYCLE = {
    (8, 0): 2048,
    (8, 6): 1024,
    (8, 9): 1024,
    (9, 0): 4096,
    (10, 0): 8192,
    (12, 0): 1024,
}


@dataclass(frozen=True)
class Roof:
    """What the device can do at most.

    Attributes:
        bandwidth: bytes a second, read and written, of a copy.
        products: INT8 products a second, dense; None where the architecture is not known.
    """

    bandwidth: float
    products: float | None

    def seconds(self, row: GpuRow) -> float | None:
        """The least time for a row's bytes and products."""
        if row.kind is None:
            return row.moved / self.bandwidth
        if self.products is None:
            return None
        return max(row.moved / self.bandwidth, row.products / (self.products * KINDS[row.kind]))


class Clock:
    """Times calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flushed = None
        if device.type == "cuda":
            size = torch.cuda.get_device_properties(device).L2_cache_size
            self.flushed = torch.empty(max(2 * size, 1 << 20), dtype=torch.uint8, device=device)

    def seconds(self, call: Callable[[], object]) -> float:
        """One call."""
        if self.flushed is None:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(PAUSE_CYCLES)
        self.flushed.zero_()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3


def roof_of(clock: Clock, size: int) -> Roof:
    """Measure a copy of `size` bytes; take the tensor cores' rate from the table."""
    source = torch.empty(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copy = statistics.median(clock.seconds(lambda: target.copy_(source)) for _ in range(ROUNDS))
    products = None
    if clock.device.type == "cuda":
        about = torch.cuda.get_device_properties(clock.device)
        each = PRODUCTS_PER_CYCLE.get((about.major, about.minor))
        if each is not None:
            products = float(about.multi_processor_count * about.clock_rate * 1e3 * each)
    return Roof(2 * size / copy, products)


def measure(row: GpuRow, clock: Clock, rounds: int = ROUNDS) -> dict[str, float | str]:
    """Median seconds by contender, ours as ""; for a peer that cannot run, why.

    Raises:
        AssertionError: ours gives other numbers than the CPU.
    """
    row.check()
    contenders = {"": row.ours, **row.peers}
    found: dict[str, float | str] = {}
    for name in list(contenders):
        try:
            contenders[name]()  # also what is compiled, searched or allocated once
        except Exception as error:
            if name == "":
                raise
            found[name] = str(error).strip().partition("\n")[0][:60] or type(error).__name__
            del contenders[name]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in random.sample(list(contenders), len(contenders)):
            times[name].append(clock.seconds(contenders[name]))
    return found | {name: statistics.median(t) for name, t in times.items()}


def table(results: list[tuple[GpuRow, dict[str, float | str]]], roof: Roof) -> list[str]:
    """A markdown line a contender: microseconds, times ours, and what share of the roof ours is."""
    lines = [
        "| work | sparseq us | of the roof | peer | peer us | ratio |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for row, times in results:
        ours, least = times[""], roof.seconds(row)
        assert isinstance(ours, float)
        share = "" if least is None else f"{least / ours:.0%}"
        head = f"{row.name} | {ours * 1e6:.1f} | {share}"
        for name in row.peers or [""]:
            theirs = times[name]
            if name == "":
                lines.append(f"| {head} | | | |")
            elif isinstance(theirs, str):
                lines.append(f"| {head} | {name} | - | did not run: {theirs} |")
            else:
                lines.append(f"| {head} | {name} | {theirs * 1e6:.1f} | {theirs / ours:.2f}x |")
            head = "| | "
    return lines


def environment(device: torch.device) -> dict[str, str]:
    """The usual stamp, and the GPU's."""
    stamp = bench.environment()
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        stamp |= {
            "gpu": about.name,
            "compute capability": f"{about.major}.{about.minor}",
            "multiprocessors": str(about.multi_processor_count),
            "boost clock MHz": str(about.clock_rate // 1000),
            "cuda": str(torch.version.cuda),
        }
    return stamp


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="tiny shapes, a few rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: needs a CUDA device, and torch sees none")
        return 1
    device = torch.device(options.device)
    clock = Clock(device)
    roof = roof_of(clock, (1 << 16) if options.small else (1 << 28))
    rounds = 3 if options.small else ROUNDS
    results = []
    for make in rows(options.small):
        row = make(device)  # one at a time: they would not all fit
        results.append((row, measure(row, clock, rounds)))
        print("\n".join(table(results[-1:], roof)[2:]), flush=True)
    stamp = environment(device)
    about = [f"- {key}: {value}" for key, value in stamp.items()]
    about.append(f"- copy: {roof.bandwidth / 1e9:.0f} GB/s")
    text = "\n".join(["# gpu", "", ABOUT, "", *table(results, roof), "", *about]) + "\n"
    kept = [{"work": row.name, "seconds": times, "moved": row.moved} for row, times in results]
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.out / "gpu.json") as path:
        path.write_text(json.dumps({"environment": stamp, "results": kept}, indent=1) + "\n")
    with atomic_path(options.out / "gpu.md") as path:
        path.write_text(text)
    print(f"{options.out / 'gpu.md'} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
