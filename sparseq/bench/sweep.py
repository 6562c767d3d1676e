"""`throughput`: images per second over batch sizes and threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sparseq.bench.inputs import Example, of_batch
from sparseq.bench.timing import Latency, check_counts, latency
from sparseq.table import text_table

BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Throughput:
    """Times over batch sizes and threads; `print` shows the table.

    Attributes:
        rows: one for each pair, threads first; they tell their batch (`images`) and threads.
    """

    rows: tuple[Latency, ...]

    @property
    def best(self) -> Latency:
        """The row of the most images per second."""
        return max(self.rows, key=lambda row: row.images_per_second)

    def growth(self, threads: int) -> float:
        """Time an image at the largest batch, by that at the smallest: 1 where cost is linear.

        Raises:
            ValueError: no row has so many threads.
        """
        rows = sorted((r for r in self.rows if r.threads == threads), key=lambda row: row.images)
        if not rows:
            known = sorted({row.threads for row in self.rows})
            raise ValueError(f"growth: threads must be one of {known}, got {threads}")
        return rows[-1].per_image_ms / rows[0].per_image_ms

    def __str__(self) -> str:
        """A line for each row; the best one is marked."""
        head = ("threads", "batch", "median ms", "95 % interval", "p95 ms", "ms/image", "images/s")
        body = []
        for row in self.rows:
            low, high = row.interval_ms
            body.append(
                (
                    str(row.threads),
                    str(row.images),
                    f"{row.median_ms:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    f"{row.p95_ms:.3f}",
                    f"{row.per_image_ms:.3f}",
                    f"{row.images_per_second:,.1f}" + ("*" if row is self.best else " "),
                )
            )
        return text_table(head, body)


def throughput(
    model: nn.Module,
    example: Example,
    *,
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] | None = None,
    repeats: int | None = None,
    warmup: int | None = None,
    seconds: float = 1.0,
) -> Throughput:
    """Time a model over batch sizes and numbers of threads.

    Args:
        model: module to time.
        example: its input, ``(N, ...)``, whose images are repeated or cut to each batch size.
        batches: sizes.
        threads: numbers of torch's threads; None for 1 and as many as torch has.
        repeats: calls for each pair; None for as many as fit into `seconds`, at least 10.
        warmup: calls before those, untimed; None until they no longer get faster.
        seconds: for each pair, where nobody says how often.

    Returns:
        The table.

    Raises:
        ValueError: a size or count is too small, or there is none.
    """
    counts = sorted({1, torch.get_num_threads()}) if threads is None else list(threads)
    if not batches or not counts:
        raise ValueError("throughput: batches and threads must hold at least one number, got none")
    for batch in batches:
        check_counts("throughput", batches=(batch, 1))
    rows = [
        latency(
            model,
            of_batch(example, batch),
            repeats=repeats,
            warmup=warmup,
            threads=count,
            seconds=seconds,
        )
        for count in counts
        for batch in batches
    ]
    return Throughput(tuple(rows))
