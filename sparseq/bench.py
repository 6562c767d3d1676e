"""Measure a model: time per image, size on disk, accuracy, sparsity, and on what machine."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from sparseq.nn import SparseQuantEmbedding, SparseQuantLayer

__all__ = ["Latency", "accuracy", "compare", "environment", "latency", "size_mb", "sparsity"]

_WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Latency:
    """Times of one callable, in milliseconds per call.

    Attributes:
        median_ms: half of the calls were faster.
        p95_ms: 95 % of the calls were faster.
        p99_ms: 99 % of the calls were faster.
        images: images in a call.
        repeats: calls that were timed.
        threads: torch's threads during the measurement.
    """

    median_ms: float
    p95_ms: float
    p99_ms: float
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


def latency(
    model: nn.Module,
    example: Tensor,
    *,
    repeats: int = 100,
    warmup: int = 10,
    threads: int | None = None,
) -> Latency:
    """Time ``model(example)`` in evaluation mode without gradients.

    Args:
        model: module to time; its mode is put back afterwards.
        example: its input, ``(N, ...)``.
        repeats: calls to time.
        warmup: calls before those, untimed.
        threads: torch's threads during the measurement; None leaves them as they are.

    Returns:
        The times, with ``images = N``.

    Raises:
        ValueError: a count is too small, or the example is empty or has no batch dimension.
    """
    if example.dim() == 0 or example.shape[0] == 0:
        raise ValueError(f"latency: example must hold an image, got shape {tuple(example.shape)}")
    with _evaluating(model):
        times = compare(
            {"model": lambda: model(example)},
            repeats=repeats,
            warmup=warmup,
            threads=threads,
            images=example.shape[0],
        )
    return times["model"]


def compare(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 100,
    warmup: int = 10,
    threads: int | None = None,
    images: int = 1,
) -> dict[str, Latency]:
    """Time several callables side by side, so that a busy moment of the machine hits them all.

    Each round calls every callable twice, in an order that alternates from round to round. Only
    the second call is timed: it finds its weights where its own first call left them, not behind
    those of its neighbours.

    Args:
        calls: callables without arguments, by name.
        repeats: rounds, at least 1.
        warmup: rounds before those, untimed, at least 0.
        threads: torch's threads during the measurement; None leaves them as they are.
        images: images in each call.

    Returns:
        The times by name, in the order of ``calls``.

    Raises:
        ValueError: there is nothing to time, or a count is too small.
    """
    if not calls:
        raise ValueError("compare: calls must name at least one callable, got none")
    smallest = {"repeats": (repeats, 1), "warmup": (warmup, 0), "images": (images, 1)}
    smallest["threads"] = (1 if threads is None else threads, 1)
    for name, (value, least) in smallest.items():
        if value < least:
            raise ValueError(f"compare: {name} must be at least {least}, got {value}")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with _threads(threads), torch.inference_mode():
        for index in range(warmup + repeats):
            for name in names if index % 2 else reversed(names):
                call = calls[name]
                call()
                start = time.perf_counter()
                call()
                elapsed = time.perf_counter() - start
                if index >= warmup:
                    seconds[name].append(elapsed)
        used = torch.get_num_threads()
    return {
        name: Latency(
            median_ms=1000 * _percentile(times, 50),
            p95_ms=1000 * _percentile(times, 95),
            p99_ms=1000 * _percentile(times, 99),
            images=images,
            repeats=repeats,
            threads=used,
        )
        for name, times in seconds.items()
    }


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of images whose largest logit is their label's, in percent.

    Args:
        model: maps inputs to logits ``(N, classes)``; its mode is put back afterwards.
        batches: pairs of inputs and labels ``(N,)``.

    Returns:
        Top-1 accuracy, 0 to 100.

    Raises:
        ValueError: there is no image.
    """
    right = total = 0
    with _evaluating(model), torch.no_grad():
        for inputs, labels in batches:
            right += int((model(inputs).argmax(dim=1) == labels).sum())
            total += len(labels)
    if total == 0:
        raise ValueError("accuracy: batches must hold at least one image, got none")
    return 100.0 * right / total


def size_mb(path: str | os.PathLike[str]) -> float:
    """Return the size of a file in megabytes (10^6 bytes).

    Raises:
        FileNotFoundError: there is no such file.
    """
    return Path(path).stat().st_size / 1e6


def sparsity(model: nn.Module) -> float:
    """Return the share of exact zeros among the weights of all linear and convolution layers.

    Of a prepared layer the weight as it computes with counts, masked and rounded; of a converted
    one the stored integers, where they stand for zero. Biases and norms do not count.

    Args:
        model: float, prepared or converted.

    Returns:
        The share, 0 to 1.

    Raises:
        ValueError: there is no such layer.
    """
    zeros = total = 0
    with _evaluating(model), torch.no_grad():
        for module in model.modules():
            if isinstance(module, SparseQuantEmbedding):
                continue  # a table, as a float one is
            if isinstance(module, SparseQuantLayer):
                weight = module.packed().dequantize()
            elif isinstance(module, _WEIGHED):
                weight = module.weight
            else:
                continue
            zeros += int((weight == 0).sum())
            total += weight.numel()
    if total == 0:
        raise ValueError("sparsity: model must have a linear or convolution layer, got none")
    return zeros / total


def environment() -> dict[str, str]:
    """Return what a report must say of where it was made.

    Returns:
        Text by name: cpu, isa, threads, python, torch, sparseq, commit (empty outside a git
        checkout of this package) and date (UTC, ISO 8601).
    """
    from sparseq import _C

    return {
        "cpu": _cpu(),
        "isa": _C.isa(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparseq": metadata.version("sparseq"),
        "commit": _commit(Path(__file__).resolve().parent.parent),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _percentile(values: list[float], percent: float) -> float:
    """Return the percentile by linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = math.ceil(position)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _commit(root: Path) -> str:
    if not (root / ".git").exists():  # an installed copy inside somebody else's checkout
        return ""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
