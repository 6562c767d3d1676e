"""What cifar10_pruning.py measures of a network beside the whole one."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sparseq import bench
from sparseq.run.data import Dataset


def right(model: nn.Module, dataset: Dataset) -> torch.Tensor:
    """1.0 for each test image whose label the model finds, else 0.0."""
    with torch.no_grad():
        found = [model(x).argmax(1) == labels for x, labels in dataset.test_batches()]
    return torch.cat(found).float()


def drop_error(before: torch.Tensor, now: torch.Tensor) -> float:
    """Standard error, in points, of a drop between two networks that saw the same images."""
    return 100 * float((before - now).std()) / len(now) ** 0.5


def speed(
    whole: nn.Module, narrow: nn.Module, image: tuple[int, ...], repeats: int
) -> list[dict[str, float]]:
    """Milliseconds of both, in turns, medians of the rounds' medians: batches of 1 and 32."""
    rows = []
    for batch in (1, 32):
        x = torch.randn(batch, *image[1:]).contiguous(memory_format=torch.channels_last)
        for threads in (1, 2):
            times: dict[str, list[float]] = {"whole": [], "narrow": []}
            for _ in range(5):
                for key, model in (("whole", whole), ("narrow", narrow)):
                    timed = bench.latency(model, x, threads=threads, repeats=repeats, warmup=5)
                    times[key].append(timed.median_ms)
            medians = {key: float(np.median(values)) for key, values in times.items()}
            rows.append({"batch": batch, "threads": threads, **medians})
    return rows
