"""What every benchmark file shares: a row, and how it is timed beside its peers."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Row:
    name: str
    ours: Callable[[], object]
    check: Callable[[], bool]
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    reset: Callable[[], None] = lambda: None
    moved: int = 0  # bytes read and written at least
    threads: int = 2
    rounds: int = 15


PAUSE_SECONDS, WARM_SECONDS, CALLS = 0.02, 0.006, 5


def burst(call: Callable[[], object], reset: Callable[[], None] = lambda: None) -> list[float]:
    """Seconds of some calls after warm ones: each contender with its own threads and caches awake.

    The pause lets the threads of the one before, which may spin while they wait, go to sleep.
    """
    time.sleep(PAUSE_SECONDS)
    begun, warm, times = time.perf_counter(), 0, []
    while warm < 2 or time.perf_counter() - begun < WARM_SECONDS:
        reset()
        call()
        warm += 1
    for _ in range(CALLS):
        reset()
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        del result
    return times


def run(row: Row, benchmark) -> None:  # type: ignore[no-untyped-def]
    """Check a row, then time it; its peers take turns with it, in the setup of each round."""
    torch.set_num_threads(row.threads)
    assert row.check(), f"{row.name} differs from its reference"
    contenders = {"": row.ours, **row.peers}
    times: dict[str, list[float]] = {name: [] for name in contenders}

    def all_in_turn() -> None:
        for name in random.sample(list(contenders), len(contenders)):
            times[name] += burst(contenders[name], row.reset)

    # pytest-benchmark counts the rounds; what is compared are calls timed alike, ours and theirs
    benchmark.pedantic(lambda: None, setup=all_in_turn, rounds=row.rounds, warmup_rounds=1)
    medians = {name: statistics.median(t[CALLS:]) for name, t in times.items()}
    benchmark.extra_info |= {"median_s": medians.pop(""), "peers": medians, "moved": row.moved}
