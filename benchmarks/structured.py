"""Channels removed for real, and channels that change places.

    make bench ARGS="structured [smoke]"

Latency of ResNet-20 and ResNet-18 at half their MACs beside the dense ones, and the permutation
search on the random matrix of apex's README. What both cost in accuracy: cifar10_pruning.py.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sparseq
from sparseq import Channels, bench
from sparseq.files import atomic_path
from sparseq.run import models
from sparseq.structured import search_order

RESULTS = Path(__file__).parent / "results"


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    model = models.ResNet(3, 10, width=16, depth=3, stages=3)
    return model.to(memory_format=torch.channels_last).eval()


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return models.build("resnet18", 3, 10).to(memory_format=torch.channels_last).eval()


def in_turns(
    models: dict[str, nn.Module], batch: int, threads: int, small: bool
) -> dict[str, float]:
    """Median milliseconds of each, so that a busy machine is busy for all."""
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    repeats, warmup = (3, 1) if small else (50, 10) if batch == 1 else (5, 2)
    times: dict[str, list[float]] = {kind: [] for kind in models}
    for _ in range(1 if small else 5):
        for kind, model in models.items():
            found = bench.latency(model, x, threads=threads, repeats=repeats, warmup=warmup)
            times[kind].append(found.median_ms)
    return {kind: float(np.median(values)) for kind, values in times.items()}


def latencies(small: bool) -> list[dict[str, Any]]:
    """Dense beside pruned, by how many channels stay together."""
    rows = []
    for name, build in {"ResNet-20": resnet20, "ResNet-18": resnet18}.items():
        if small and name == "ResNet-18":
            continue
        dense = build()
        for round_to in (1, 8, 16):
            pruned = copy.deepcopy(dense)
            x = torch.randn(1, 3, 32, 32)
            report = sparseq.prune_channels(pruned, x, Channels(0.5, round_to=round_to), macs=0.5)
            both = {"dense": dense, "pruned": pruned}
            for batch, threads in itertools.product((1, 32), (1, 2)):
                row = {"network": name, "round_to": round_to, "batch": batch, "threads": threads}
                row["macs"] = report.macs[1] / report.macs[0]
                rows.append({**row, **in_turns(both, batch, threads, small)})
    return rows


def searches(small: bool) -> list[dict[str, float]]:
    """The matrix of apex's README: 128 x 64, uniform, seed 1."""
    matrix = torch.from_numpy(np.random.RandomState(1).rand(128, 64))
    rows = float(matrix.sort(dim=1).values[:, 32:].sum())
    found = []
    for escapes in (0, 10) if small else (0, 10, 100, 1000):
        start = time.perf_counter()
        order = search_order(matrix, escapes=escapes)
        seconds = time.perf_counter() - start
        efficacy = 100 * (order.after - order.before) / (rows - order.before)
        found.append({"escapes": escapes, "magnitude": order.after, "efficacy": efficacy,
                      "seconds": seconds})  # fmt: skip
    return found


def main(arguments: list[str], results: Path | None = None) -> None:
    small = arguments[:1] == ["smoke"]
    if results is None:
        results = RESULTS / "smoke" if small else RESULTS
    results.mkdir(exist_ok=True)
    content: dict[str, Any] = {"latency": latencies(small), "search": searches(small)}
    stamp = bench.environment()
    text = page(content, stamp)
    with atomic_path(results / "structured.json") as path:
        path.write_text(json.dumps({"environment": stamp, **content}, indent=1) + "\n")
    with atomic_path(results / "structured.md") as path:
        path.write_text(text)
    print(text)


def page(content: dict[str, Any], stamp: dict[str, Any]) -> str:
    """The tables."""
    lines = ["# structured", "", "Half the MACs, 32 x 32 images, float32, medians in turns.", ""]
    lines += ["| network | round_to | MACs | batch | threads | dense ms | pruned ms | speed-up |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
    for r in content["latency"]:
        lines.append(
            f"| {r['network']} | {r['round_to']} | {r['macs']:.1%} | {r['batch']} | {r['threads']} "
            f"| {r['dense']:.2f} | {r['pruned']:.2f} | {r['dense'] / r['pruned']:.2f}x |"
        )
    lines += ["", "Channel permutation for 2:4, a uniform random matrix of 128 x 64 (seed 1). "
              "apex's README has 35.5 % for two stripes, 35.6 % with 1000 escapes, 36.6 % for "
              "three stripes, and 60.7 s on a CPU for the first.", ""]  # fmt: skip
    lines += ["| escapes | magnitude | efficacy % | seconds |", "|---:|---:|---:|---:|"]
    lines += [
        f"| {r['escapes']} | {r['magnitude']:.3f} | {r['efficacy']:.1f} | {r['seconds']:.2f} |"
        for r in content["search"]
    ]
    return "\n".join([*lines, "", *(f"- {key}: {value}" for key, value in stamp.items()), ""])


if __name__ == "__main__":
    main(sys.argv[1:])
