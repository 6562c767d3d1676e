"""Whole networks, converted layer by layer, against torch float32: `make bench ARGS=models`.

ResNet-18 with the CIFAR stem and random weights, which are the slowest kind for the INT8 kernels:
uniform weights overflow 16-bit pairs more often than trained, bell-shaped ones.
"""

from __future__ import annotations

import copy

import pytest
import torch
from harness import Row, run
from torch import nn

import sparseq
from sparseq import NM, Layer, Plan, Quant
from sparseq.run import models


def _close(fast: nn.Module, prepared: nn.Module, x: torch.Tensor) -> bool:
    """A rounding may tip over now and then and travel on: within 5 % of the greatest logit."""
    with torch.inference_mode():
        got, wanted = fast(x), prepared(x)
    return bool((got - wanted).abs().max() < 0.05 * wanted.abs().max())


def _call(model: nn.Module, x: torch.Tensor):  # type: ignore[no-untyped-def]
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return model(x)

    return call


def rows() -> list[Row]:
    torch.manual_seed(0)
    base = models.build("resnet18", 3, 10, student=False).eval()
    plain = sparseq.convert(base)  # batch norms folded, as in the others
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    found = []
    for name, sparsity in (("INT8", None), ("INT8 2:4", NM(2, 4))):
        layer = Layer(weight=Quant(axis=0), input=Quant(symmetric=False), sparsity=sparsity)
        prepared = sparseq.prepare(copy.deepcopy(base), Plan({"*": layer}))
        sparseq.calibrate(prepared, [torch.randn(4, 3, 32, 32)])
        fast = sparseq.convert(prepared)
        for batch in (1, 32):
            x = torch.randn(batch, 3, 32, 32)
            found += [
                Row(
                    f"ResNet-18 32x32 {name}, batch {batch}, threads {threads}",
                    _call(fast, x),
                    lambda fast=fast, prepared=prepared, x=x: _close(fast, prepared, x),
                    {"torch float32": _call(plain, x), "channels_last": _call(last, x)},
                    threads=threads,
                    rounds=9,
                )
                for threads in (1, 2)
            ]
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_row(row: Row, benchmark) -> None:  # type: ignore[no-untyped-def]
    run(row, benchmark)
