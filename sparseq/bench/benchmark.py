"""`benchmark_model`: speed, size and work of a model in one call."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparseq.bench.inputs import Example, call_with, tensors_of
from sparseq.bench.sizes import Size, model_size
from sparseq.bench.timing import SECONDS, Latency, latency
from sparseq.flow.macs import count_macs


@dataclass(frozen=True)
class Benchmark:
    """What a model costs; `print` shows it.

    Attributes:
        latency: of a call on the example.
        size: of its tensors and its file.
        macs: multiplications of that call, zeros of the weights included; None where an op does not
            tell.
    """

    latency: Latency
    size: Size
    macs: int | None

    @property
    def macs_per_second(self) -> float | None:
        """At the median."""
        return None if self.macs is None else 1000 * self.macs / self.latency.median_ms

    def __str__(self) -> str:
        """Three lines."""
        work = "unknown"
        if self.macs is not None and self.macs_per_second is not None:
            work = f"{self.macs:,} a call, {self.macs_per_second / 1e9:.1f} GMAC/s"
        return f"latency: {self.latency}\nsize: {self.size}\nMACs: {work}"


def benchmark_model(
    model: nn.Module,
    example: Example,
    *,
    repeats: int | None = None,
    warmup: int | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
) -> Benchmark:
    """Measure latency, throughput, size and multiplications of a model.

    Args:
        model: float, prepared or converted.
        example: its input, ``(N, ...)``; a sequence or mapping where it has several.
        repeats: calls to time; None for as many as fit into `seconds`, at least 10.
        warmup: calls before those, untimed; None until they no longer get faster.
        threads: torch's threads; None leaves them as they are.
        seconds: how long to time, where nobody says how often.

    Returns:
        The figures; `measure_memory` tells the memory.

    Raises:
        ValueError: a count is too small, or the example is empty.
    """
    tensors_of("benchmark_model", example)
    times = latency(
        model, example, repeats=repeats, warmup=warmup, threads=threads, seconds=seconds
    )
    macs = count_macs(lambda: call_with(model, example), model)
    return Benchmark(times, model_size(model), macs)
