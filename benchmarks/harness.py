"""What every benchmark file shares: a row, and how it is timed beside its peers."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sparseq import ops, reference
from sparseq.bench import burst
from sparseq.bench.timing import CALLS


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


def equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, tuple):
        return all(equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return torch.equal(ours, theirs)


def same(name: str, *arguments: object) -> Callable[[], bool]:
    """Whether an op equals its definition."""
    return lambda: equal(getattr(ops, name)(*arguments), getattr(reference, name)(*arguments))


def same_raw(name: str, *arguments: object) -> Callable[[], bool]:
    """The same of the op under the wrapper."""
    raw = torch.ops.sparseq
    return lambda: equal(getattr(raw, name)(*arguments), getattr(reference, name)(*arguments))
