"""Time calls: one alone, several in turns, and in bursts where each has threads of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sparseq.bench.inputs import (
    Example,
    call_with,
    evaluating,
    tensors_of,
    threads_set,
    waiting,
)
from sparseq.bench.stats import median_interval, percentile, steady

SECONDS = 2.0  # for each callable, where nobody says how often to call it
LEAST, MOST, WARMEST = 10, 10_000, 100  # rounds: at least, at most, and untimed ones at most
PAUSE_SECONDS, WARM_SECONDS, CALLS = 0.02, 0.006, 5

Order = Literal["abba", "random"]
Bursts = dict[str, list[list[float]]]


@dataclass(frozen=True)
class Latency:
    """Times of one callable, in milliseconds per call; `print` shows them.

    Attributes:
        median_ms: half of the calls were faster.
        p95_ms: 95 % of the calls were faster.
        p99_ms: 99 % of the calls were faster.
        min_ms: the fastest call.
        interval_ms: two times that hold the true median with a confidence of 95 %.
        images: images in a call.
        repeats: calls that were timed.
        threads: torch's threads during the measurement.
    """

    median_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    interval_ms: tuple[float, float]
    images: int
    repeats: int
    threads: int

    @property
    def per_image_ms(self) -> float:
        """Median milliseconds per image."""
        return self.median_ms / self.images

    @property
    def images_per_second(self) -> float:
        """Images per second at the median."""
        return 1000.0 / self.per_image_ms

    def __str__(self) -> str:
        """All of them in one line."""
        low, high = self.interval_ms
        return (
            f"median {self.median_ms:.3f} ms (95 % interval {low:.3f} to {high:.3f}), "
            f"p95 {self.p95_ms:.3f}, p99 {self.p99_ms:.3f}, min {self.min_ms:.3f}; "
            f"{self.images_per_second:,.1f} images/s; batch {self.images}, "
            f"threads {self.threads}, {self.repeats} calls"
        )


def summarise(seconds: Sequence[float], images: int, threads: int) -> Latency:
    """What a list of times, in seconds, says."""
    low, high = median_interval(seconds)
    return Latency(
        median_ms=1000 * percentile(seconds, 50),
        p95_ms=1000 * percentile(seconds, 95),
        p99_ms=1000 * percentile(seconds, 99),
        min_ms=1000 * min(seconds),
        interval_ms=(1000 * low, 1000 * high),
        images=images,
        repeats=len(seconds),
        threads=threads,
    )


def check_counts(caller: str, **counts: tuple[float | None, float]) -> None:
    """ValueError where a number is smaller than it may be; None is none."""
    for name, (value, least) in counts.items():
        if value is not None and not value >= least:
            raise ValueError(f"{caller}: {name} must be at least {least}, got {value}")


def latency(
    model: nn.Module,
    example: Example,
    *,
    repeats: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
) -> Latency:
    """Time ``model(example)`` in evaluation mode without gradients.

    Args:
        model: module to time; its mode is put back afterwards.
        example: its input, ``(N, ...)``; a sequence or mapping where it has several. On a GPU each
            call is waited for.
        repeats: calls to time; None for as many as fit into `seconds`, at least 10.
        warmup: calls before those, untimed; None until they no longer get faster.
        threads: torch's threads during the measurement; None leaves them as they are.
        seconds: how long to go on, where nobody says how often.

    Returns:
        The times, with ``images = N``.

    Raises:
        ValueError: a count is too small, or the example is empty or has no batch dimension.
        TypeError: the example holds something else than tensors.
    """
    first = tensors_of("latency", example)[0]
    with evaluating(model):
        times = side_by_side(
            {"model": waiting(lambda: call_with(model, example), first.device)},
            repeats=repeats,
            warmup=warmup,
            threads=threads,
            images=first.shape[0],
            seconds=seconds,
        )
    return times["model"]


def side_by_side(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    images: int = 1,
    seconds: float = SECONDS,
) -> dict[str, Latency]:
    """Time callables in turns: `sparseq.bench.compare` of a mapping."""
    if not calls:
        raise ValueError("compare: calls must name at least one callable, got none")
    check_counts(
        "compare", repeats=(repeats, 1), warmup=(warmup, 0), images=(images, 1),
        threads=(threads, 1), seconds=(seconds, 0),
    )  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in calls}
    names, rounds = list(calls), 0

    def one_round() -> None:
        nonlocal rounds
        for name in names if rounds % 2 else reversed(names):
            call = calls[name]
            call()
            start = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - start)
        rounds += 1

    with threads_set(threads), torch.inference_mode():
        begun, budget = time.perf_counter(), seconds * len(calls)
        while rounds < (WARMEST if warmup is None else warmup):
            late = time.perf_counter() - begun > budget / 2 and rounds > 1
            if warmup is None and (late or all(map(steady, found.values()))):
                break
            one_round()
        for times in found.values():
            times.clear()
        begun, warm = time.perf_counter(), rounds
        while rounds - warm < (MOST if repeats is None else repeats):
            late = time.perf_counter() - begun > budget and rounds - warm >= LEAST
            if repeats is None and late:
                break
            one_round()
        used = torch.get_num_threads()
    return {name: summarise(times, images, used) for name, times in found.items()}


def burst(
    call: Callable[[], object],
    reset: Callable[[], None] = lambda: None,
    *,
    calls: int = CALLS,
) -> list[float]:
    """Seconds of some calls after warm ones: a contender with its own threads and caches awake.

    The pause lets the threads of the one before, which may spin while they wait, go to sleep.

    Args:
        call: what to time.
        reset: runs before each call, untimed.
        calls: how many to time.

    Returns:
        A time for each.
    """
    time.sleep(PAUSE_SECONDS)
    begun, warm, times = time.perf_counter(), 0, []
    while warm < 2 or time.perf_counter() - begun < WARM_SECONDS:
        reset()
        call()
        warm += 1
    for _ in range(calls):
        reset()
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        del result
    return times


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int | None = None,
    seconds: float = 10.0,
    order: Order = "abba",
    threads: int | None = None,
) -> Bursts:
    """Time engines in bursts that take turns, each with the machine to itself for a while.

    Unlike `compare` of callables, which share torch's threads, engines have threads of their own
    that spin for a while after a call: each one's burst begins with a pause and untimed calls.

    Args:
        calls: callables without arguments, by name.
        rounds: bursts of each; None for as many as fit into `seconds`, at least 10. One more goes
            before them, untimed.
        seconds: how long all of it may take, where nobody says how many.
        order: "abba" forwards and backwards in turns, "random" shuffled for each round (the same
            orders in every run).
        threads: torch's threads during the measurement; None leaves them as they are.

    Returns:
        By name, for each round the seconds of its calls.

    Raises:
        ValueError: nothing to time, a count is too small, or an unknown order.
    """
    if not calls:
        raise ValueError("alternate: calls must name at least one callable, got none")
    check_counts("alternate", rounds=(rounds, 1), seconds=(seconds, 0), threads=(threads, 1))
    if order not in ("abba", "random"):
        raise ValueError(f"alternate: order must be 'abba' or 'random', got {order!r}")
    found: Bursts = {name: [] for name in calls}
    shuffled, done, begun = random.Random(0), 0, 0.0
    with threads_set(threads):
        while done <= (MOST if rounds is None else rounds):
            late = done > LEAST and time.perf_counter() - begun > seconds
            if rounds is None and late:
                break
            names: Iterable[str] = list(calls) if done % 2 else reversed(list(calls))
            if order == "random":
                names = shuffled.sample(list(calls), len(calls))
            for name in names:
                times = burst(calls[name])
                if done:
                    found[name].append(times)
            begun = begun if done else time.perf_counter()
            done += 1
    return found
