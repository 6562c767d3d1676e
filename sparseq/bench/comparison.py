"""`compare`: two models beside each other, their outputs first, then their times."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast, overload

import torch
from torch import Tensor

from sparseq.bench.contenders import Given, opened
from sparseq.bench.files import Architecture
from sparseq.bench.inputs import Example, tensors_of, threads_set
from sparseq.bench.stats import percentile, ratio_interval
from sparseq.bench.timing import (
    SECONDS,
    Latency,
    Order,
    alternate,
    check_counts,
    side_by_side,
    summarise,
)
from sparseq.table import text_table

CALLER = "compare"


@dataclass(frozen=True)
class Agreement:
    """How far one model's outputs are from another's.

    Attributes:
        largest: greatest absolute difference; NaN where one of them is not finite.
        relative: `||a - b|| / ||b||` over all outputs.
        same_argmax: share of rows of the first output whose largest entry is at the same place;
            None where a row has one entry.
    """

    largest: float
    relative: float
    same_argmax: float | None

    def __str__(self) -> str:
        """In one line."""
        text = f"largest difference {self.largest:.3g}, relative {self.relative:.3g}"
        if self.same_argmax is not None:
            text += f", same arg-max {self.same_argmax:.1%}"
        return text


def agreement(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> Agreement:
    """Compare outputs, number by number.

    Args:
        outputs: of one model.
        wanted: of the other, of the same shapes.

    Raises:
        ValueError: their number or shapes differ.
    """
    shapes = [[tuple(t.shape) for t in tensors] for tensors in (outputs, wanted)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"{CALLER}: both models must give outputs of the same shapes, got {shapes[0]} and "
            f"{shapes[1]}"
        )
    pairs = [(a.double(), b.double()) for a, b in zip(outputs, wanted, strict=True)]
    # max of tensors keeps a NaN, Python's does not
    largest = float(torch.stack([_largest(a - b) for a, b in pairs]).max())
    error = math.fsum(float((a - b).square().sum()) for a, b in pairs)
    norm = math.fsum(float(b.square().sum()) for _, b in pairs)
    first, second = pairs[0]
    same = None
    if first.dim() > 0 and first.shape[-1] > 1:
        same = float((first.argmax(-1) == second.argmax(-1)).double().mean())
    relative = math.sqrt(error / norm) if norm else (0.0 if error == 0 else math.inf)
    return Agreement(largest, relative, same)


def _largest(difference: Tensor) -> Tensor:
    return difference.abs().max() if difference.numel() else difference.new_zeros(())


@dataclass(frozen=True)
class Comparison:
    """Two models beside each other; `print` shows them.

    Attributes:
        names: of both, as they were given.
        runtimes: what ran them.
        times: of both.
        ratio: how many times as fast as the second the first is, by their medians.
        interval: of the ratio, with a confidence of 95 %.
        agreement: of their outputs, before anything was timed.
        rounds: bursts of each.
    """

    names: tuple[str, str]
    runtimes: tuple[str, str]
    times: tuple[Latency, Latency]
    ratio: float
    interval: tuple[float, float]
    agreement: Agreement
    rounds: int

    def cells(self) -> list[tuple[str, ...]]:
        """The table as text: a head, a line for each model."""
        head = ("model", "runtime", "median ms", "95 % interval", "p95 ms", "min ms", "images/s")
        lines: list[tuple[str, ...]] = [head]
        for name, runtime, time in zip(self.names, self.runtimes, self.times, strict=True):
            low, high = time.interval_ms
            lines.append(
                (
                    name,
                    runtime,
                    f"{time.median_ms:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{time.p95_ms:.3f}",
                    f"{time.min_ms:.3f}",
                    f"{time.images_per_second:,.1f}",
                )
            )
        return lines

    @property
    def verdict(self) -> str:
        """The ratio in words."""
        low, high = self.interval
        text = f"{self.names[0]} is {self.ratio:.2f}x as fast as {self.names[1]} "
        text += f"(95 % interval {low:.2f}x to {high:.2f}x)"
        return text if not low <= 1 <= high else text + ": no difference that these rounds show"

    def __str__(self) -> str:
        """Outputs, times, ratio."""
        head, *body = self.cells()
        time = self.times[0]
        how = f"batch {time.images}, threads {time.threads}, {self.rounds} rounds in turns"
        return "\n".join([f"outputs: {self.agreement}", text_table(head, body), self.verdict, how])


@overload
def compare(
    first: Mapping[str, Callable[[], object]],
    *,
    repeats: int | None = ...,
    warmup: int | None = ...,
    threads: int | None = ...,
    images: int = ...,
    seconds: float | None = ...,
) -> dict[str, Latency]: ...


@overload
def compare(
    first: Given,
    second: Given,
    example: Example,
    *,
    repeats: int | None = ...,
    threads: int | None = ...,
    seconds: float | None = ...,
    order: Order = ...,
    architecture: Architecture | tuple[Architecture | None, Architecture | None] | None = ...,
    runtime: str | tuple[str | None, str | None] | None = ...,
    names: tuple[str, str] | None = ...,
) -> Comparison: ...


def compare(
    first: Mapping[str, Callable[[], object]] | Given,
    second: Given | None = None,
    example: Example | None = None,
    *,
    repeats: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    images: int = 1,
    seconds: float | None = None,
    order: Order = "abba",
    architecture: Architecture | tuple[Architecture | None, Architecture | None] | None = None,
    runtime: str | tuple[str | None, str | None] | None = None,
    names: tuple[str, str] | None = None,
) -> dict[str, Latency] | Comparison:
    """Time two models or files, or several callables, in turns: a busy moment hits them all.

    Two models: their outputs on the example are compared first. Then they run in bursts that take
    turns (see `alternate`), on the same inputs and with as many threads each. The ratio's interval
    is a bootstrap over rounds, both models' times of a round together.

    A mapping of callables: each round calls every one twice, in an order that alternates from round
    to round. Only the second call is timed: it finds its weights where its own first call left
    them, not behind those of its neighbours.

    Args:
        first: a module; a file: .pt or .pt2 (an archive of `torch.export.save`, `torch.jit.save` or
            AOTInductor), .safetensors, .onnx, OpenVINO's .xml, or a TensorRT .engine (on a GPU); or
            callables without arguments, by name.
        second: the model or file to compare with.
        example: the inputs of both, ``(N, ...)``; a sequence or mapping where there are several.
        repeats: rounds, at least 1; None for as many as fit into `seconds`, at least 10.
        warmup: of callables: rounds before those, untimed; None until they no longer get faster.
        threads: of torch and of the other runtimes; None for torch's number.
        images: of callables: images in each call.
        seconds: where nobody says how often; 10 for two models, 2 for each callable.
        order: of two models: "abba", or "random" for each round.
        architecture: for .safetensors: "MODULE:CALLABLE", the name of a network of torchvision or
            timm, or a callable that makes the float network; a pair where the two differ.
        runtime: for .onnx: "onnxruntime" (the default) or "openvino"; a pair where the two differ.
        names: of two models, for people.

    Returns:
        Of two models a `Comparison`; of callables the times by name, in their order.

    Raises:
        ValueError: there is nothing to time, a count is too small, a file cannot run, or outputs
            of different shapes.
        TypeError: no model, no example.
        FileNotFoundError: no such file.
    """
    if isinstance(first, Mapping):
        if second is not None or example is not None:
            raise TypeError(
                "compare: callables come in one mapping, without a second or an example"
            )
        budget = SECONDS if seconds is None else seconds
        return side_by_side(
            first, repeats=repeats, warmup=warmup, threads=threads, images=images, seconds=budget
        )
    if second is None or example is None:
        raise TypeError("compare: two models need an example, compare(first, second, example)")
    if warmup is not None or images != 1:
        raise TypeError("compare: warmup and images are for callables only")
    check_counts(CALLER, repeats=(repeats, 1), threads=(threads, 1), seconds=(seconds, 0))
    images = tensors_of(CALLER, example)[0].shape[0]
    count = threads or torch.get_num_threads()
    architectures, runtimes = _pair(architecture), _pair(runtime)
    with ExitStack() as stack:
        stack.enter_context(threads_set(count))
        contenders = [
            stack.enter_context(
                opened(
                    CALLER,
                    given,
                    example,
                    threads=count,
                    architecture=architectures[index],
                    runtime=runtimes[index],
                    name=names[index] if names else None,
                )
            )
            for index, given in enumerate((first, second))
        ]
        found = agreement(contenders[0].outputs(), contenders[1].outputs())
        calls = {str(index): contender.call for index, contender in enumerate(contenders)}
        bursts = alternate(
            calls, rounds=repeats, seconds=10.0 if seconds is None else seconds, order=order
        )
    ratio, interval = burst_ratio(bursts["0"], bursts["1"])
    labels = cast(tuple[str, str], tuple(c.name for c in contenders))
    if labels[0] == labels[1]:
        labels = (f"{labels[0]} (A)", f"{labels[1]} (B)")
    return Comparison(
        labels,
        cast(tuple[str, str], tuple(c.runtime for c in contenders)),
        cast(
            tuple[Latency, Latency],
            tuple(summarise(list(chain(*b)), images, count) for b in bursts.values()),
        ),
        ratio,
        interval,
        found,
        len(bursts["0"]),
    )


def burst_ratio(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> tuple[float, tuple[float, float]]:
    """How many times as fast as the second the first is, and the interval of 95 %.

    Args:
        first: for each round, the seconds of its calls, from `alternate`.
        second: the other's, of the same rounds.
    """
    medians = [[percentile(times, 50) for times in bursts] for bursts in (first, second)]
    whole = [percentile(values, 50) for values in medians]
    return whole[1] / whole[0], ratio_interval(medians[1], medians[0])


def _pair(given: Any) -> tuple[Any, Any]:
    return given if isinstance(given, tuple) else (given, given)
